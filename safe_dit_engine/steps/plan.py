"""Which step does what: warm-up, anchor or selective (DESIGN: Words; paper section "CAR")."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

MAX_REFRESH_INTERVAL = 64


class StepKind(str, Enum):
    """What a sampling step computes."""

    WARMUP = "warmup"
    ANCHOR = "anchor"
    SELECTIVE = "selective"
    HELD = "held"

    @property
    def dense(self) -> bool:
        """Whether every row runs."""
        return self in (StepKind.WARMUP, StepKind.ANCHOR)


class CacheMode(str, Enum):
    """How keys and values are kept between anchors."""

    AUTO = "auto"
    EXACT = "model precision"
    EIGHT_BIT = "8 bit"
    SYSTEM = "system memory"


@dataclass(frozen=True)
class ScheduleConfig:
    """Every `refresh_interval`-th step is an anchor; outside `start_percent`..`end_percent` of the run all steps are dense.

    `forecast`: how far what is not computed follows the line through its last two values: 0 holds the last (the paper), 1 follows it.
    `widen`: the first third of the cycles, where the picture still changes fast, are shorter: they grow from 2 steps to the interval.
    `held_steps`: how many steps of a cycle compute nothing at all, the last ones before the anchor; the others are selective.
    `settle`: whether an anchor makes up for what the steps before it got wrong (forecast.py).
    `cache`: how keys and values are kept in between; auto goes by the memory that is free.
    """

    refresh_interval: int = 4
    start_percent: float = 0.0
    end_percent: float = 1.0
    forecast: float = 0.0
    widen: bool = False
    held_steps: int = 0
    settle: bool = False
    cache: CacheMode = CacheMode.AUTO

    def __post_init__(self) -> None:
        if not 1 <= self.refresh_interval <= MAX_REFRESH_INTERVAL:
            allowed = f"a whole number from 1 (dense) to {MAX_REFRESH_INTERVAL}"
            raise ValueError(f"`refresh_interval` is {self.refresh_interval}; give {allowed}.")
        if not 0.0 <= self.forecast <= 1.0:
            raise ValueError(f"`forecast` is {self.forecast}; give a number from 0 (hold) to 1 (follow the line).")
        if self.held_steps < 0:
            raise ValueError(f"`held_steps` is {self.held_steps}; give 0 (none) or more; the anchor of a cycle always stays.")
        if not 0.0 <= self.start_percent <= self.end_percent <= 1.0:
            raise ValueError(
                f"`start_percent` {self.start_percent} and `end_percent` {self.end_percent} must lie in 0..1, the start not after the end."
            )


def plan_steps(total: int, warmup: int, schedule: ScheduleConfig, window: tuple[int, int] | None = None) -> tuple[StepKind, ...]:
    """Kinds of the `total` steps of a run.

    `window` is the half-open range of step indices that may be skipped (default: all). Warm-up lasts `warmup` steps, or until the window
    opens if that is later; its last step serves as the first anchor.
    """
    first, last = window if window is not None else (0, total)
    opens, closes = min(max(first, warmup), total), min(last, total)
    kinds = [StepKind.WARMUP] * opens
    interval = schedule.refresh_interval
    short = math.ceil((closes - opens) / interval / 3) if schedule.widen else 0
    growing = [2 + index * (interval - 2) // short for index in range(short)]
    for length in itertools.chain(growing, itertools.repeat(interval)):
        if len(kinds) >= closes:
            break
        kinds += _cycle(schedule, length)
    kinds = kinds[: max(opens, closes)]
    return tuple(kinds + [StepKind.ANCHOR] * (total - len(kinds)))


def _cycle(schedule: ScheduleConfig, length: int) -> list[StepKind]:
    between = min(length, schedule.refresh_interval) - 1
    held = min(schedule.held_steps, between)
    return [StepKind.SELECTIVE] * (between - held) + [StepKind.HELD] * held + [StepKind.ANCHOR]


@dataclass(frozen=True)
class StepCosts:
    """What a step costs, in dense steps: a selective one `fixed` + `kept` x keep ratio, a line through docs/benchmarks/cost.json."""

    fixed: float = 0.059
    kept: float = 0.90

    def selective(self, keep_ratio: float) -> float:
        """Cost of a selective step."""
        return min(1.0, self.fixed + self.kept * keep_ratio)


def predicted_share(plan: Sequence[StepKind], keep_ratio: float, costs: StepCosts | None = None) -> float:
    """Predicted time of a run relative to dense."""
    share = {StepKind.SELECTIVE: (costs or StepCosts()).selective(keep_ratio), StepKind.HELD: 0.0}
    return sum(share.get(kind, 1.0) for kind in plan) / max(len(plan), 1)


def step_of_sigma(sigmas: Sequence[float], sigma: float) -> int:
    """Step a model evaluation at noise level `sigma` belongs to.

    The largest index whose sigma is not below the given one, so that in-between evaluations of second-order and SDE samplers count to
    the step they refine. `sigmas` falls over the run; its last entry is the end of the run, not a step.
    """
    steps = len(sigmas) - 1
    reached = [i for i in range(steps) if sigmas[i] >= sigma * (1.0 - 1e-4)]
    return reached[-1] if reached else 0


def window_of_sigmas(sigmas: Sequence[float], start_sigma: float, end_sigma: float) -> tuple[int, int]:
    """Half-open range of steps whose sigma lies in `end_sigma` < sigma <= `start_sigma`."""
    inside = [i for i, sigma in enumerate(sigmas[:-1]) if end_sigma < sigma <= start_sigma * (1.0 + 1e-4)]
    return (inside[0], inside[-1] + 1) if inside else (len(sigmas) - 1, len(sigmas) - 1)
