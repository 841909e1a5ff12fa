"""Who stays closer to dense at the same cost: `python -m benchmarks fidelity --out DIR`.

Runs every method side by side in one process, through ComfyUI's own sampler, on the same prompts, seeds and sizes, and compares `ours` with
the best peer at the same measured time. Writes `fidelity.json`, `fidelity.md` and a Pareto plot, `fidelity.png`.

`sweep` lists every setting of every method, `chosen` the few worth measuring again. A method is patched afresh for each sampling run.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from safe_dit_engine.guidance import GuidanceConfig
from safe_dit_engine.presets import DEFAULT_PRESET, PRESETS, Preset
from safe_dit_engine.steps.plan import ScheduleConfig
from safe_dit_engine.tokens.partition import PartitionConfig, Signal

from ..measure.fidelity import options, read, run
from ..measure.methods import Change, Method, Place, at_our_steps, fewer_steps, named, picked, preset_text, schedule_of, whole_steps
from ..measure.pareto import AT_OUR_STEPS
from ..measure.whole_steps import reuse_whole_steps
from .bench import Bench
from .in_process import import_comfyui, known_names

CAPTION = """\
`seconds` is the median time of the sampler, `seconds_over_dense` the median ratio to the dense run of the same prompt and seed.
`rows_computed_share` counts the rows that pass the middle block. No mask reaches attention in this model, so `dense_fast_path` is `dense`
and is not run twice. An empty PSNR: the picture is the dense one bit for bit, or (`safe_sw`) differs from it on purpose."""


def unchanged(model: Any) -> Any:
    """The model as it is."""
    return model


DENSE = Method("dense", "all steps", unchanged)


def configured(**parts: Any) -> Change:
    """A model with these parts of the pack's configuration."""

    def patch(model: Any) -> Any:
        from safe_dit_engine.hosts.comfy.wrappers import configure

        return configure(model, **parts)

    return patch


# Peers


# ComfyUI's own, by their nodes: thresholds, each from several shares of the run on.
CACHES = {
    "EasyCache": (0.03, 0.05, 0.08, 0.12, 0.2, 0.3, 0.45, 0.7),
    "LazyCache": (0.12, 0.2, 0.3, 0.45, 0.6, 0.8, 1.2, 2.0),
}


def caches() -> list[Method]:
    """Every setting of both."""
    found = []
    for node, start in itertools.product(CACHES, (0.15, 0.3, 0.45)):
        for threshold in CACHES[node]:
            change = partial(cached, node, threshold, start, 0.95)
            found.append(Method(node.lower(), f"threshold {threshold}, {start} to 0.95", change))
    return found


def cached(node: str, threshold: float, start: float, end: float, model: Any) -> Any:
    """The model behind one of the two nodes. EasyCache adds to the model's input in place, which with fp32 is the sampler's own latent."""
    from comfy.patcher_extension import WrappersMP
    from comfy_extras import nodes_easycache

    guarded = model.clone()
    guarded.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "safe_dit_bench_clone", _with_cloned_input)
    return getattr(nodes_easycache, f"{node}Node").execute(guarded, threshold, start, end, False).result[0]


def _with_cloned_input(executor: Callable[..., Any], x: Any, *args: Any, **kwargs: Any) -> Any:
    return executor(x.clone(), *args, **kwargs)


def reused(place: Place, order: int, damping: float) -> Change:
    """A model that computes only some steps."""
    return partial(reuse_whole_steps, place=place, order=order, damping=damping)


def paper() -> list[Method]:
    """The method as the paper gives it, and around it: evenly spaced refreshes, nothing forecast."""
    found = []
    for keep, interval, warmup in [*((0.25, i, w) for i in (2, 3, 4, 8) for w in (3, 4)), (0.5, 4, 4), (0.5, 8, 4)]:
        partition = PartitionConfig(keep_ratio=keep, warmup_steps=warmup, signal=Signal.ATTENTION)
        change = configured(partition=partition, schedule=ScheduleConfig(refresh_interval=interval))
        found.append(Method("paper", f"keep {keep}, interval {interval}, warm-up {warmup}", change))
    return found


# Ours


# Below our cheapest preset, so that the curve goes on to 30 % of dense.
SOON = Preset(PartitionConfig(warmup_steps=1), PRESETS["draft"].schedule)
CUSTOM = {
    "custom, draft with one warm-up step": SOON,
    "custom, draft with one warm-up step, 1 of 5": replace(SOON, schedule=replace(SOON.schedule, refresh_interval=5, skipped_steps=4)),
}
# By the text of the setting; the preset that is the paper's method is measured as `paper`, and `express` draws other pictures.
SETTINGS = {
    preset_text(name, preset): preset
    for name, preset in {**PRESETS, **CUSTOM}.items()
    if name != "paper" and not preset.schedule.speedup
}


def ours() -> list[Method]:
    """The presets of the Accelerate node, and what a custom setting reaches below them."""
    parts = {text: {"partition": preset.partition, "schedule": schedule_of(preset)} for text, preset in SETTINGS.items()}
    return [Method("ours", text, configured(**found)) for text, found in parts.items()]


def guided() -> list[Method]:
    """The presets with Sensitivity-Weighted CFG: other pictures on purpose, so only the oracle judges them."""
    found = []
    for text, preset in SETTINGS.items():
        if preset not in CUSTOM.values():
            change = configured(partition=preset.partition, schedule=preset.schedule, guidance=GuidanceConfig())
            found.append(Method("safe_sw", text, change))
    return found


def sweep() -> list[Method]:
    """Every setting of every method; dense is the reference and goes without saying."""
    return [*fewer_steps(unchanged), *caches(), *whole_steps(reused), *at_our_steps(reused), *paper(), *ours(), *guided()]


# Settings on or near the Pareto curve of their family between 30 and 60 % of dense: from a sweep of all settings of the caches and of whole
# steps on two tuning prompts at 256 px, 20 euler steps, by rows and by distance of the latents; and the placements our presets use: what we
# found to be good, the peers get as well.
CHOSEN: dict[str, tuple[str, ...]] = {
    "fewer_steps": tuple(f"{share}% of the steps" for share in (30, 40, 50, 60)),
    "easycache": ("threshold 0.7, 0.15 to 0.95", "threshold 0.3, 0.15 to 0.95", "threshold 0.3, 0.3 to 0.95"),
    "lazycache": ("threshold 2.0, 0.15 to 0.95", "threshold 0.45, 0.15 to 0.95"),
    "whole_steps_hold": ("30% rather early", "30% early", "40% early", "60% very early"),
    "whole_steps_linear": (
        "30% even, x0.6", "30% rather early, x0.6", "40% even, x0.6", "warm-up 4, 1 of 3, x0.6", "50% early, x0.6",
        "warm-up 4, 1 of 2, x0.6", "60% early, last, x0.6",
    ),
    AT_OUR_STEPS: tuple(f"{name}'s steps, x0.6" for name in ("quality", "balanced", "fast")),
    "whole_steps_taylor": ("40% even, x0.5", "warm-up 4, 1 of 2, x0.5"),
    "paper": ("keep 0.25, interval 4, warm-up 4", "keep 0.25, interval 2, warm-up 4"),
    "safe_sw": (preset_text(DEFAULT_PRESET, PRESETS[DEFAULT_PRESET]),),
}  # fmt: skip


def chosen() -> list[Method]:
    """`ours`, and of the peers in `CHOSEN` only the settings named there."""
    return picked(sweep(), CHOSEN)


# The measurement


def main(argv: Sequence[str]) -> int:
    """Measure, log the comparison, write JSON, Markdown and plot."""
    arguments = parse(argv)
    methods = named(sweep() if arguments.sweep else chosen(), arguments.methods)
    import_comfyui(arguments.device)
    known_names("sampler", arguments.samplers)
    run(arguments, Bench(arguments.device).sample, [DENSE, *methods])
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = options("fidelity", __doc__, CAPTION)
    parser.add_argument("--samplers", nargs="+", default=["euler", "dpmpp_2m"], help="ComfyUI's names")
    parser.add_argument("--sweep", action="store_true", help="every setting of every method, not only the chosen ones")
    return read(parser, argv)
