"""Who stays closer to dense at the same cost, in `diffusers`: `python -m benchmarks diffusers-fidelity --out DIR`.

The demo model as a `diffusers` pipeline; dense, ours, the paper's method and every peer in one process and in turn, on the same prompts and
seeds. Writes `diffusers-fidelity.json`, `diffusers-fidelity.md` and a Pareto plot, `diffusers-fidelity.png`.

`with method.change(pipe):` has the pipeline run by a method, and leaves it as it was. Every call of it in the block begins with an empty
cache. MagCache alone learns something first: its ratios, from its first call with so many steps, which is dense. So each peer is called
once before it is timed, with the steps that are to be timed; what it learnt stays with the list that `caches` returned.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from safe_dit_engine.guidance import GuidanceConfig
from safe_dit_engine.hosts.diffusers.pipeline import apply, preset
from safe_dit_engine.masks.ledger import MaskMode
from safe_dit_engine.presets import DEFAULT_PRESET, PRESETS, SafeConfig

from ..measure.fidelity import options, read, run
from ..measure.in_turn import Cell, Sample, Shot, rows_through, timed
from ..measure.methods import Method, at_our_steps, fewer_steps, named, picked, preset_text
from ..measure.methods import whole_steps as whole_steps_of
from ..measure.pareto import AT_OUR_STEPS
from .caches import Enable, Ratios, cache_dit, first_block, hooked, magnitudes, taylor_seer, whole_steps

CAPTION = """\
`seconds` is the median time of a call of the pipeline without its autoencoder, `seconds_over_dense` the median ratio to the dense run of
the same prompt and seed. `rows_computed_share` counts the rows that pass the feed-forward layer of the middle block; TaylorSeer on
attention leaves out attention alone, and computes them all. `default`: the setting that a user gets who asks for nothing else.
FirstBlockCache's is hardly ever met on this model, and DBCache's first 8 blocks are all it has. `skipped`: why a method did not
run. An empty PSNR: the picture is the dense one bit for bit, or (`safe_sw`) differs from it on purpose."""
# Name, setting and what is done to the pipeline.
Setting = tuple[str, str, Enable]
# What a setting begins with where it is the library's own.
DEFAULT = "default:"
# DBCache, without and with its TaylorSeer calibrator: the order of that.
CACHE_DITS = {"cache_dit": 0, "cache_dit_taylorseer": 1}


def unchanged(pipe: Any) -> Any:
    """The pipeline as it is."""
    return nullcontext()


DENSE = Method("dense", "all steps", unchanged)


# Ours


@contextmanager
def accelerated(config: SafeConfig, pipe: Any) -> Iterator[Any]:
    """The pipeline with a configuration of ours; what tells its report."""
    with apply(pipe, config) as safe:
        yield safe


def ours() -> list[Method]:
    """Masks alone, our presets, and the default one with sensitivity-weighted guidance; the preset of the paper goes by that name."""
    texts = {name: preset_text(name, values) for name, values in PRESETS.items() if not values.schedule.speedup}
    guided = replace(preset(DEFAULT_PRESET), guidance=GuidanceConfig())
    return [
        Method("dense_fast_path", "without masks that change nothing", partial(accelerated, SafeConfig(masks=MaskMode.ELIDE))),
        *(Method("paper" if name == "paper" else "ours", text, partial(accelerated, preset(name))) for name, text in texts.items()),
        Method("safe_sw", texts[DEFAULT_PRESET], partial(accelerated, guided)),
    ]


# Peers


def caches() -> list[Method]:
    """Every library at its default and at the settings that were near its Pareto curve, by rows and PSNR, in a sweep on two tuning prompts.

    What MagCache learns is shared by its settings in this list.
    """
    settings = itertools.chain(_cache_dits(), _block_caches(), _mag_caches())
    return [Method(*setting, default=setting[1].startswith(DEFAULT)) for setting in settings]


def defaults() -> list[Method]:
    """Every library at its default."""
    return [peer for peer in caches() if peer.default]


def _cache_dits() -> Iterator[Setting]:
    for name, order in CACHE_DITS.items():
        yield name, "default: 8 blocks first, warm-up 8, threshold 0.08", partial(cache_dit, {}, order)
        for first, warmup, threshold in ((1, 3, 0.24), (1, 4, 0.16), (4, 4, 0.16), (1, 3, 0.08)):
            values = {"Fn_compute_blocks": first, "max_warmup_steps": warmup, "residual_diff_threshold": threshold}
            text = f"{first} block{'s' * (first > 1)} first, warm-up {warmup}, threshold {threshold}"
            yield name, text, partial(cache_dit, values, order)


def _block_caches() -> Iterator[Setting]:
    name = "first_block_cache"
    yield name, "default: threshold 0.05", hooked(first_block)
    for threshold in (0.08, 0.12, 0.16, 0.25):
        yield name, f"threshold {threshold}", hooked(partial(first_block, threshold=threshold))
    name = "taylorseer_cache"
    yield name, "default: attention, interval 5, from step 3, order 1", hooked(taylor_seer)
    for interval, first in ((2, 4), (2, 3), (3, 3), (4, 4)):
        change = partial(taylor_seer, lite=True, cache_interval=interval, disable_cache_before_step=first)
        yield name, f"head alone, interval {interval}, from step {first}, order 1, float32", hooked(change)


def _mag_caches() -> Iterator[Setting]:
    name, known = "mag_cache", Ratios()
    text = "default: threshold 0.06, at most 3 in a row, first 20% dense; own calibration (Flux: the library's)"
    yield name, text, magnitudes(known)
    for most in (1, 2, 3):
        yield name, f"threshold 0.5, at most {most} in a row, first 20% dense", magnitudes(known, threshold=0.5, max_skip_steps=most)


# Of what every host has, chosen in the same way.
CHOSEN: dict[str, tuple[str, ...]] = {
    "fewer_steps": tuple(f"{share}% of the steps" for share in (30, 40, 50, 60)),
    "whole_steps_hold": ("30% early", "40% early", "50% early", "60% early"),
    "whole_steps_linear": (
        "30% even, x0.6", "40% even, x0.6", "warm-up 4, 1 of 3, x0.6", "50% early, x0.6", "warm-up 3, 1 of 2, x1.0",
        "warm-up 4, 1 of 2, x1.0", "60% early, x0.6", "60% early, last, x0.6",
    ),
    "whole_steps_taylor": (),
    AT_OUR_STEPS: tuple(f"{name}'s steps, x0.6" for name, values in PRESETS.items() if values.schedule.skipped_steps),
}  # fmt: skip


def methods() -> list[Method]:
    """Everybody but dense, which is the reference and goes without saying."""
    borrowed = [*fewer_steps(unchanged), *whole_steps_of(whole_steps), *at_our_steps(whole_steps)]
    return [*ours(), *caches(), *picked(borrowed, CHOSEN)]


# The measurement


def main(argv: Sequence[str]) -> int:
    """Measure, log the comparison, write JSON, Markdown and plot."""
    arguments = read(options("diffusers-fidelity", __doc__, CAPTION), argv)
    chosen = named(methods(), arguments.methods)
    run(arguments, Bench(arguments.device).sample, [DENSE, *chosen])
    return 0


class Bench:
    """The demo pipeline on a device."""

    def __init__(self, device: str) -> None:
        from safe_dit_engine.hosts.diffusers.demo import load_demo_pipeline

        self.device = device
        self.pipe = load_demo_pipeline(device=device)

    def sample(self, method: Method, cell: Cell, shot: Shot) -> Sample:
        """One picture by one method; Unsupported where it does not run. Rows are counted within a block: caches stand before the blocks."""
        steps, generator = method.steps(cell.steps), torch.Generator().manual_seed(shot.seeds[0])
        call: dict[str, Any] = {"height": cell.size, "width": cell.size, "num_inference_steps": steps, "output_type": "latent"}
        layers = self.pipe.transformer.layers
        with method.change(self.pipe), rows_through(layers[len(layers) // 2].feed_forward) as rows:
            made, seconds, peak = timed(lambda: self.pipe(shot.captions, generator=generator, **call), self.device)
        return Sample(self.pipe.decode(made.images, "np"), seconds, sum(rows), peak)
