"""The methods a fidelity measurement compares, as data: `ours`, and everything simple or known that is meant to do the same.

`sweep` lists every setting of every method, `chosen` the few worth measuring again. A method is patched afresh for each sampling run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from safe_dit_engine.guidance import GuidanceConfig
from safe_dit_engine.presets import DEFAULT_PRESET, PRESETS, Preset
from safe_dit_engine.steps.levels import even_progress
from safe_dit_engine.steps.plan import ScheduleConfig, plan_steps
from safe_dit_engine.tokens.partition import PartitionConfig, Signal

from ..measure.pareto import AT_OUR_STEPS
from ..measure.whole_steps import after_warmup, reuse_whole_steps, spread_out

Patch = Callable[[Any], Any]
# RAS's rule, by its name in the engine: tokens by the spread of their last prediction.
RAS_SIGNAL = "SPREAD"


def unchanged(model: Any) -> Any:
    """The model as it is."""
    return model


@dataclass(frozen=True)
class Method:
    """One setting of one method: makes the patched model, and takes `step_share` of the steps asked for."""

    name: str
    setting: str
    patch: Patch = unchanged
    step_share: float = 1.0

    def steps(self, nominal: int) -> int:
        """Steps it samples with where dense takes `nominal`."""
        return max(1, round(self.step_share * nominal))


DENSE = Method("dense", "all steps")


def configured(**parts: Any) -> Patch:
    """A model with these parts of the pack's configuration."""

    def patch(model: Any) -> Any:
        from safe_dit_engine.hosts.comfy.wrappers import configure

        return configure(model, **parts)

    return patch


# Peers


def fewer_steps() -> list[Method]:
    """Dense, sooner done."""
    return [Method("fewer_steps", f"{share}% of the steps", step_share=share / 100) for share in range(25, 91, 5)]


def caches() -> list[Method]:
    """ComfyUI's own EasyCache and LazyCache."""
    windows = [(0.15, 0.95), (0.3, 0.95), (0.45, 0.95)]
    easy = (0.03, 0.05, 0.08, 0.12, 0.2, 0.3, 0.45, 0.7)
    lazy = (0.12, 0.2, 0.3, 0.45, 0.6, 0.8, 1.2, 2.0)
    thresholds = {"EasyCache": easy, "LazyCache": lazy}
    return [
        Method(node.lower(), f"threshold {threshold}, {start} to {end}", partial(cached, node, threshold, start, end))
        for node, values in thresholds.items()
        for start, end in windows
        for threshold in values
    ]


def cached(node: str, threshold: float, start: float, end: float, model: Any) -> Any:
    """The model behind one of the two nodes. EasyCache adds to the model's input in place, which with fp32 is the sampler's own latent."""
    from comfy.patcher_extension import WrappersMP
    from comfy_extras import nodes_easycache

    guarded = model.clone()
    guarded.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "safe_dit_bench_clone", _with_cloned_input)
    return getattr(nodes_easycache, f"{node}Node").execute(guarded, threshold, start, end, False).result[0]


def _with_cloned_input(executor: Callable[..., Any], x: Any, *args: Any, **kwargs: Any) -> Any:
    return executor(x.clone(), *args, **kwargs)


# Order of the extrapolation, and how far it is followed.
REUSES = {"whole_steps_hold": (0, (1.0,)), "whole_steps_linear": (1, (1.0, 0.6, 0.3)), "whole_steps_taylor": (2, (1.0, 0.5))}


def placements() -> dict[str, Callable[[int], frozenset[int]]]:
    """Which steps are computed, by the text of the setting: a warm-up, then one of n; or a share of the steps, spread out."""
    found: dict[str, Callable[[int], frozenset[int]]] = {}
    for last, suffix in ((False, ""), (True, ", last")):
        for warmup in (3, 4, 5):
            for interval in (2, 3, 4, 6):
                name = f"warm-up {warmup}, 1 of {interval}{suffix}"
                found[name] = partial(after_warmup, warmup=warmup, interval=interval, last=last)
        for share in (25, 30, 40, 50, 60):
            for power, kind in ((1.0, "even"), (1.2, "rather early"), (1.4, "early"), (1.8, "very early")):
                found[f"{share}% {kind}{suffix}"] = partial(share_of_steps, share=share / 100, power=power, last=last)
    return found


def share_of_steps(total: int, share: float, power: float, last: bool) -> frozenset[int]:
    """So many of `total` steps, at least one, spread out."""
    return spread_out(total, max(1, round(share * total)), power, last)


def whole_steps() -> list[Method]:
    """Every placement with every way to bridge the steps that are not computed."""
    return [
        reused(name, f"{place}{f', x{damping}' if order else ''}", steps, order, damping)
        for name, (order, dampings) in REUSES.items()
        for place, steps in placements().items()
        for damping in dampings
    ]


def reused(name: str, setting: str, steps: Callable[[int], frozenset[int]], order: int, damping: float) -> Method:
    """One way to reuse whole steps."""
    return Method(name, setting, partial(reuse_whole_steps, place=steps, order=order, damping=damping))


def at_our_steps() -> list[Method]:
    """The strongest peer with the steps of our presets: what is left of our lead when the peer computes the very same ones."""
    return [
        reused(AT_OUR_STEPS, f"{name}'s steps, x{damping}", partial(steps_computed, preset), 1, damping)
        for name, preset in PRESETS.items()
        if preset.skipped_steps
        for damping in REUSES["whole_steps_linear"][1]
    ]


def steps_computed(preset: Preset, total: int) -> frozenset[int]:
    """The steps a preset computes whole."""
    plan = plan_steps(even_progress(total), preset.warmup_steps, schedule_of(preset))
    return frozenset(step for step, kind in enumerate(plan) if kind.full)


def selective(name: str, keep: float, interval: int, warmup: int, signal: Signal) -> Method:
    """Selected tokens, the rest held, as published: evenly spaced refreshes, nothing forecast."""
    partition = PartitionConfig(keep_ratio=keep, warmup_steps=warmup, signal=signal)
    setting = f"keep {keep}, interval {interval}, warm-up {warmup}"
    return Method(name, setting, configured(partition=partition, schedule=ScheduleConfig(refresh_interval=interval)))


def paper() -> list[Method]:
    """The method as the paper gives it, and around it."""
    kept = [(0.25, interval, warmup) for interval in (2, 3, 4, 8) for warmup in (3, 4)] + [(0.5, 4, 4), (0.5, 8, 4)]
    return [selective("paper", *setting, Signal.ATTENTION) for setting in kept]


def ras() -> list[Method]:
    """RAS's rule as a partition policy; nothing while the engine lacks its signal."""
    signal = next((signal for signal in Signal if signal.name == RAS_SIGNAL), None)
    kept = [(keep, interval, 4) for keep in (0.125, 0.25, 0.5) for interval in (2, 3, 4, 6, 8)]
    return [selective("ras", *setting, signal) for setting in kept] if signal is not None else []


# Ours


def preset_text(name: str, preset: Preset) -> str:
    """A preset with its values: a changed preset is another setting, so that old results are not taken for its own."""
    values = ", ".join(f"{field.name} {getattr(preset, field.name)}" for field in dataclasses.fields(preset))
    return f"{name}: {values}"


def presets() -> dict[str, Preset]:
    """Our presets by the text of their setting; the one that is the paper's method is measured as `paper`."""
    return {preset_text(name, preset): preset for name, preset in PRESETS.items() if name != "paper"}


# Below our cheapest preset, so that the curve goes on to 30 % of dense.
CUSTOM = {
    "custom, draft with one warm-up step": dataclasses.replace(PRESETS["draft"], warmup_steps=1),
    "custom, draft with one warm-up step, 1 of 5": dataclasses.replace(
        PRESETS["draft"], warmup_steps=1, refresh_interval=5, skipped_steps=4
    ),
}


def schedule_of(preset: Preset) -> ScheduleConfig:
    """Which steps are anchors. Custom values are taken as they are, as in the Accelerate node."""
    return dataclasses.replace(preset.schedule(), spaced=preset in PRESETS.values())


def settings_of_ours() -> dict[str, Preset]:
    """Presets and custom settings, by the text of their setting."""
    return presets() | {preset_text(name, preset): preset for name, preset in CUSTOM.items()}


def is_outdated(method: str, setting: str) -> bool:
    """Whether a setting of ours, or a peer's that borrows our steps, is of presets as they were once."""
    if method == AT_OUR_STEPS:
        return setting not in CHOSEN[AT_OUR_STEPS]
    return method in ("ours", "safe_sw") and setting not in settings_of_ours()


def ours() -> list[Method]:
    """The presets of the Accelerate node, and what a custom setting reaches below them."""
    found = {text: configured(partition=preset.partition(), schedule=schedule_of(preset)) for text, preset in settings_of_ours().items()}
    return [Method("ours", text, patch) for text, patch in found.items()]


def guided() -> list[Method]:
    """The presets with Sensitivity-Weighted CFG: other pictures on purpose, so only the oracle judges them."""
    found = []
    for text, preset in presets().items():
        parts = {"partition": preset.partition(), "schedule": preset.schedule(), "guidance": GuidanceConfig()}
        found.append(Method("safe_sw", text, configured(**parts)))
    return found


def sweep() -> list[Method]:
    """Every setting of every method; dense is the reference and goes without saying."""
    return [*fewer_steps(), *caches(), *whole_steps(), *at_our_steps(), *ras(), *paper(), *ours(), *guided()]


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
    return [method for method in sweep() if method.name not in CHOSEN or method.setting in CHOSEN[method.name]]


def named(methods: Iterable[Method], names: Iterable[str]) -> list[Method]:
    """The methods with one of these names; an unknown name is an error."""
    found, wanted = list(methods), set(names)
    missing = wanted - {method.name for method in found} - {DENSE.name}
    if missing:
        known = ", ".join(sorted({method.name for method in found}))
        raise ValueError(f"`{sorted(missing)[0]}` is no method; use {known}.")
    return [method for method in found if method.name in wanted]
