"""Who stays closer to dense at the same cost, in `diffusers`: `python -m benchmarks diffusers-fidelity --out DIR`.

The demo model as a `diffusers` pipeline; dense, ours, the paper's method and every peer in one process and in turn, on the same prompts and
seeds. Writes `diffusers-fidelity.json`, `diffusers-fidelity.md` and a Pareto plot, `diffusers-fidelity.png`.
"""

from __future__ import annotations

import argparse
import itertools
import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from safe_dit_engine.cli.clock import now, peak_bytes_of, reset_peak
from safe_dit_engine.cli.results import environment, markdown_table, save
from safe_dit_engine.guidance import GuidanceConfig
from safe_dit_engine.hosts.diffusers.pipeline import apply, preset
from safe_dit_engine.masks.ledger import MaskMode
from safe_dit_engine.presets import DEFAULT_PRESET, PRESETS, SafeConfig

from ..comfy.fidelity import COLUMNS, COMPARISON_CAPTION, add_shots, asked_of, comparison_table, finite, identity, kept_rows, shots_of
from ..comfy.peers import preset_text, steps_computed
from ..measure.in_turn import NOT_COMPARED, make_in_turn
from ..measure.journal import Cell, Journal, Sample, Shot
from ..measure.pareto import AT_OUR_STEPS, compare, plot
from .caches import around_calls, cache_dit, whole_steps
from .peers import Peer, named, sweep

log = logging.getLogger("safe_dit.bench")

NAME = "diffusers-fidelity"
SAMPLER = "euler"
CAPTION = """\
`seconds` is the median time of a call of the pipeline without its autoencoder, `seconds_over_dense` the median ratio to the dense run of
the same prompt and seed. `rows_computed_share` counts the rows that pass the feed-forward layer of the middle block; PAB and TaylorSeer on
attention leave out attention alone, and compute them all. `default`: the setting that a user gets who asks for nothing else.
FirstBlockCache's is hardly ever met on this model, and DBCache's first 8 blocks are all it has, so there is that default in proportion as
well. `skipped`: why a method did not run. An empty PSNR: the picture is the dense one bit for bit, or (`safe_sw`) differs from it on
purpose."""


def main(argv: Sequence[str]) -> int:
    """Measure, log the comparison, write JSON, Markdown and plot."""
    arguments = parse(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    methods = everything() if arguments.sweep else chosen()
    rows = run(arguments, named(methods, arguments.methods) if arguments.methods else methods)
    log.info(comparison_table(measured(rows), arguments.cost))
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks {NAME}", description=__doc__)
    add_shots(parser, NAME)
    parser.add_argument("--methods", nargs="+", default=[], help="only these, beside dense")
    parser.add_argument("--sweep", action="store_true", help="every setting of every peer, not only the chosen ones")
    parser.add_argument("--cost", choices=["seconds_over_dense", "rows_computed_share"], default="seconds_over_dense")
    arguments = parser.parse_args(argv)
    if arguments.small:
        arguments.sizes, arguments.steps, arguments.prompts, arguments.seeds = [256], [20], min(arguments.prompts, 8), 1
    return arguments


# Methods


def _unchanged(pipe: Any) -> AbstractContextManager[None]:
    return nullcontext()


DENSE = Peer("dense", "all steps", _unchanged)


@contextmanager
def accelerated(config: SafeConfig, pipe: Any) -> Iterator[None]:
    """The pipeline with a configuration of ours."""
    with apply(pipe, config):
        yield


def ours() -> list[Peer]:
    """Masks alone, our presets, and the default one with sensitivity-weighted guidance; the preset of the paper goes by that name."""
    texts = {name: preset_text(name, values) for name, values in PRESETS.items()}
    guided = replace(preset(DEFAULT_PRESET), guidance=GuidanceConfig())
    return [
        Peer("dense_fast_path", "without masks that change nothing", partial(accelerated, SafeConfig(masks=MaskMode.ELIDE))),
        *(Peer("paper" if name == "paper" else "ours", text, partial(accelerated, preset(name))) for name, text in texts.items()),
        Peer("safe_sw", texts[DEFAULT_PRESET], partial(accelerated, guided)),
    ]


# On or near the Pareto curve of their family, by rows and PSNR, from a sweep of all settings on two tuning prompts at 256 px, 20 steps.
CHOSEN: dict[str, tuple[str, ...]] = {
    "cache_dit": (
        "1 block first, warm-up 3, threshold 0.24", "1 block first, warm-up 4, threshold 0.16", "4 blocks first, warm-up 4, threshold 0.16",
    ),
    "cache_dit_taylorseer": (
        "1 block first, warm-up 3, threshold 0.24", "1 block first, warm-up 4, threshold 0.16", "1 block first, warm-up 3, threshold 0.08",
    ),
    "first_block_cache": ("threshold 0.25", "threshold 0.16", "threshold 0.12", "threshold 0.08"),
    "taylorseer_cache": tuple(
        f"head alone, interval {interval}, from step {first}, order 1, float32" for interval, first in ((2, 4), (2, 3), (3, 3), (4, 4))
    ),
    "mag_cache": tuple(f"threshold 0.5, at most {most} in a row, first 20% dense" for most in (1, 2, 3)),
    "pyramid_attention_broadcast": ("every 3, timesteps 100 to 800", "every 4, timesteps 100 to 800"),
    "faster_cache": tuple(f"uncond every {every} below 800, weight {weight}" for every, weight in ((2, 1.0), (3, 1.1), (5, 1.1))),
    "fewer_steps": tuple(f"{share}% of the steps" for share in (30, 40, 50, 60)),
    "whole_steps_hold": ("30% early", "40% early", "50% early", "60% early"),
    "whole_steps_linear": (
        "30% even, x0.6", "40% even, x0.6", "warm-up 4, 1 of 3, x0.6", "50% early, x0.6", "warm-up 3, 1 of 2, x1.0",
        "warm-up 4, 1 of 2, x1.0", "60% early, x0.6", "60% early, last, x0.6",
    ),
}  # fmt: skip
# DBCache's default computes 8 blocks first, which the demo model has in all; of the 24 and more of a true model they are a third.
THIRD = 3
# How far the line is followed, as in the measurement in ComfyUI.
DAMPING = 0.6


def in_proportion() -> list[Peer]:
    """DBCache's default as it would be on a model that is deeper."""
    setting = f"default, in proportion: {THIRD} of 8 blocks first, warm-up 8, threshold 0.08"
    orders = {"cache_dit": 0, "cache_dit_taylorseer": 1}
    return [Peer(name, setting, partial(cache_dit, {"Fn_compute_blocks": THIRD}, order)) for name, order in orders.items()]


def at_our_steps() -> list[Peer]:
    """The strongest simple peer with the steps of our presets: how much of our lead is their choice."""
    found = []
    for name, values in PRESETS.items():
        if values.skipped_steps:
            install = partial(whole_steps, partial(steps_computed, values), 1, DAMPING)
            found.append(Peer(AT_OUR_STEPS, f"{name}'s steps, x{DAMPING}", partial(around_calls, install)))
    return found


def everything() -> list[Peer]:
    """Every setting of everybody."""
    return [*ours(), *in_proportion(), *at_our_steps(), *sweep()]


def chosen() -> list[Peer]:
    """Ours, every library at its default, and the settings in `CHOSEN`."""
    peers = [peer for peer in sweep() if peer.default or peer.setting in CHOSEN.get(peer.name, ())]
    return [*ours(), *in_proportion(), *at_our_steps(), *peers]


# Measurement


class Bench:
    """The demo pipeline on a device."""

    def __init__(self, device: str) -> None:
        from safe_dit_engine.hosts.diffusers.demo import load_demo_pipeline

        self.device = device
        self.pipe = load_demo_pipeline(device=device)

    def sample(self, peer: Peer, cell: Cell, shot: Shot) -> Sample:
        """One picture by one method; Unsupported where it does not run."""
        call: dict[str, Any] = {"height": cell.size, "width": cell.size, "num_inference_steps": cell.steps, "output_type": "latent"}
        generator = torch.Generator().manual_seed(shot.seed)
        peak_is_known = reset_peak(self.device)
        with peer.enable(self.pipe), self._counted_rows() as rows:
            started = now(self.device)
            latents = self.pipe(shot.scene.caption, generator=generator, **call).images
            seconds, peak = now(self.device) - started, peak_bytes_of(self.device) if peak_is_known else None
        return Sample(self.pipe.decode(latents, "np")[0], seconds, sum(rows), peak)

    @contextmanager
    def _counted_rows(self) -> Iterator[list[int]]:
        """Within a block, as caches stand before the blocks themselves."""
        rows: list[int] = []
        layers = self.pipe.transformer.layers
        inner = layers[len(layers) // 2].feed_forward
        handle = inner.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].shape[0] * inputs[0].shape[1]))
        try:
            yield rows
        finally:
            handle.remove()

    def measure(self, cell: Cell, peers: Sequence[Peer], shots: Sequence[Shot], journal: Journal | None = None) -> list[dict[str, Any]]:
        """One row a method, dense first; of one that does not run, why. Pictures that the journal has are not made again."""
        journal, everything = journal or Journal(), [DENSE, *peers]
        skipped = make_in_turn(self.sample, everything, cell, shots, journal)
        ran = {peer: journal.row(peer, cell, shots, peer.name not in NOT_COMPARED) for peer in everything if peer not in skipped}
        return [{**names_of(peer, cell), **ran.get(peer, {"skipped": skipped.get(peer)})} for peer in everything]


def names_of(peer: Peer, cell: Cell) -> dict[str, Any]:
    """What tells a row from others of a measurement."""
    names = {"method": peer.name, "setting": peer.setting, "default": peer.default, "model": "demo"}
    return {**names, "resolution": f"{cell.size}x{cell.size}", "steps": cell.steps, "sampler": SAMPLER}


def run(arguments: argparse.Namespace, peers: Sequence[Peer]) -> list[dict[str, Any]]:
    """Every cell in turn; what is there so far is published after each."""
    bench, machine = Bench(arguments.device), environment(arguments.device)
    journal = Journal(arguments.out / f"{NAME}.jsonl", machine, arguments.resume)
    rows = kept_rows(arguments.out / f"{NAME}.json", machine) if arguments.resume else []
    shots, asked = shots_of(arguments), asked_of(arguments)
    for size, steps in itertools.product(arguments.sizes, arguments.steps):
        cell, known = Cell(size, steps, SAMPLER), {identity(row) for row in rows}
        missing = [peer for peer in peers if identity({**names_of(peer, cell), **asked}) not in known]
        if missing:
            fresh = [{**row, **asked} for row in bench.measure(cell, missing, shots, journal)]
            rows += [row for row in fresh if identity(row) not in known]
        publish(arguments, machine, [finite(row) for row in rows])
    return rows


def measured(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows to compare: of methods that ran, and that leave out more than masks."""
    return [row for row in rows if "skipped" not in row and row["method"] != "dense_fast_path"]


def publish(arguments: argparse.Namespace, machine: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write JSON, both tables and the plot of the rows so far."""
    ran, cost = measured(rows), arguments.cost
    tables = [markdown_table(rows, (*COLUMNS, "default", "skipped")), COMPARISON_CAPTION.format(cost=cost), comparison_table(ran, cost)]
    save(arguments.out, NAME, {"environment": machine, "rows": rows, "comparison": compare(ran, cost)}, "\n\n".join([CAPTION, *tables]))
    plot(arguments.out / f"{NAME}.png", ran, cost)
