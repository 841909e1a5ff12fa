"""Methods as data: what a bench compares, and the settings that ComfyUI and `diffusers` have in common."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from safe_dit_engine.presets import PRESETS, Preset
from safe_dit_engine.steps.levels import even_progress
from safe_dit_engine.steps.plan import ScheduleConfig, plan_steps

from ..command import Wrong
from .pareto import AT_OUR_STEPS
from .whole_steps import after_warmup, spread_out

# In ComfyUI: model -> patched model. In `diffusers`: pipeline -> a context in which it runs by the method.
Change = Callable[[Any], Any]
# Which steps are computed, of so many.
Place = Callable[[int], frozenset[int]]
# How whole steps are reused in a host: where, the order of the extrapolation, and how far it is followed.
Reuse = Callable[[Place, int, float], Change]
Chosen = Mapping[str, Sequence[str]]

REUSES = {"whole_steps_hold": (0, (1.0,)), "whole_steps_linear": (1, (1.0, 0.6, 0.3)), "whole_steps_taylor": (2, (1.0, 0.5))}


@dataclass(frozen=True)
class Method:
    """One setting of one method, which takes `step_share` of the steps asked for.

    `default`: it is the library's own.
    """

    name: str
    setting: str
    change: Change
    step_share: float = 1.0
    default: bool = False

    def steps(self, nominal: int) -> int:
        """Steps it samples with where dense takes `nominal`."""
        return max(1, round(self.step_share * nominal))

    def described(self) -> dict[str, Any]:
        """What every row says of it."""
        return {"method": self.name, "setting": self.setting, **({"default": True} if self.default else {})}


def named(methods: Iterable[Method], names: Iterable[str]) -> list[Method]:
    """The methods with one of these names, or all where none is given; Wrong where a name is unknown."""
    found, wanted = list(methods), set(names)
    known = {method.name for method in found}
    missing = sorted(wanted - known - {"dense"})
    if missing:
        raise Wrong(f"`{missing[0]}` is no method; use {', '.join(sorted(known))}.")
    return [method for method in found if not wanted or method.name in wanted]


def picked(methods: Iterable[Method], chosen: Chosen) -> list[Method]:
    """The methods that have no entry in `chosen`, and the settings that it names."""
    return [method for method in methods if method.name not in chosen or method.setting in chosen[method.name]]


# Peers that every host has


def fewer_steps(change: Change, shares: Iterable[int] = range(25, 91, 5)) -> list[Method]:
    """Dense, sooner done: at so many percent of its steps."""
    return [Method("fewer_steps", f"{share}% of the steps", change, share / 100) for share in shares]


def placements() -> dict[str, Place]:
    """Which steps are computed, by the text of the setting: a warm-up, then one of n; or a share of the steps, spread out."""
    found: dict[str, Place] = {}
    for last, suffix in ((False, ""), (True, ", last")):
        for warmup, interval in itertools.product((3, 4, 5), (2, 3, 4, 6)):
            place = partial(after_warmup, warmup=warmup, interval=interval, last=last)
            found[f"warm-up {warmup}, 1 of {interval}{suffix}"] = place
        powers = {"even": 1.0, "rather early": 1.2, "early": 1.4, "very early": 1.8}
        for share, kind in itertools.product((25, 30, 40, 50, 60), powers):
            found[f"{share}% {kind}{suffix}"] = partial(spread_out, share=share / 100, power=powers[kind], last=last)
    return found


def whole_steps(reuse: Reuse) -> list[Method]:
    """Every placement with every way to bridge the steps that are not computed."""
    return [
        Method(name, f"{text}{f', x{damping}' if order else ''}", reuse(place, order, damping))
        for name, (order, dampings) in REUSES.items()
        for text, place in placements().items()
        for damping in dampings
    ]


def at_our_steps(reuse: Reuse) -> list[Method]:
    """The strongest peer with the steps of our presets: what is left of our lead when the peer computes the very same ones."""
    return [
        Method(AT_OUR_STEPS, f"{name}'s steps, x{damping}", reuse(partial(steps_computed, preset), 1, damping))
        for name, preset in PRESETS.items()
        if preset.schedule.skipped_steps
        for damping in REUSES["whole_steps_linear"][1]
    ]


# Ours


def preset_text(name: str, preset: Preset) -> str:
    """A preset with its values: a changed preset is another setting, so that old results are not taken for its own."""
    split, steps = preset.partition, preset.schedule
    values = {"keep_ratio": split.keep_ratio, "refresh_interval": steps.refresh_interval, "warmup_steps": split.warmup_steps}
    values |= {field: getattr(steps, field) for field in ("forecast", "early_refresh", "skipped_steps", "corrector")}
    return f"{name}: {', '.join(f'{field} {value}' for field, value in values.items())}"


def schedule_of(preset: Preset) -> ScheduleConfig:
    """Which steps are refreshes. Custom values are taken as they are, as in the Accelerate node."""
    return preset.schedule if preset in PRESETS.values() else dataclasses.replace(preset.schedule, spaced=0.0)


def steps_computed(preset: Preset, total: int) -> frozenset[int]:
    """The steps a preset computes whole."""
    plan = plan_steps(even_progress(total), preset.partition.warmup_steps, schedule_of(preset))
    return frozenset(step for step, kind in enumerate(plan) if kind.full)
