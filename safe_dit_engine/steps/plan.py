"""Which step does what: warm-up, refresh, coarse, selective or skipped (the paper's section "CAR"; coarse.py)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

MAX_REFRESH_INTERVAL = 64
MAX_SPEEDUP = 6.0
# Warm-up is given in steps of a run of so many.
REFERENCE_STEPS = 20
# How far two cycles together may reach in progress: after a wide one, a full step that nothing is skipped behind.
WIDEST_PAIR = 0.4
# How long a later step may be beside the middle one of all before a run has long steps late. Steps are even at a shift of 2; at 3, where
# single pictures were lost, the last is half as long again (docs/experiments.md, part 26).
LONG_LATE = 1.1


class StepKind(str, Enum):
    """What a sampling step computes."""

    WARMUP = "warmup"
    REFRESH = "refresh"
    SELECTIVE = "selective"
    SKIPPED = "skipped"
    COARSE = "coarse"

    @property
    def full(self) -> bool:
        """Whether every row runs."""
        return self in (StepKind.WARMUP, StepKind.REFRESH)

    @property
    def letter(self) -> str:
        """It in a plan written in one line: w, r, s, c, and - where nothing runs."""
        return "-" if self is StepKind.SKIPPED else str(self.value[0])


class CacheMode(str, Enum):
    """How keys and values are kept between refreshes."""

    AUTO = "auto"
    EXACT = "model precision"
    EIGHT_BIT = "8 bit"
    SYSTEM = "system memory"


@dataclass(frozen=True)
class ScheduleConfig:
    """Every `refresh_interval`-th step is a refresh; outside `start_percent`..`end_percent` of the run all steps are full.

    `forecast`: how far what is not computed goes along the line through its last two values: 0 reuses the last (the paper), 1 extrapolates.
    `early_refresh`: in the first third of the run, where the picture still changes fast, refreshes are closer together: first every second
    step, then less and less often.
    `skipped_steps`: how many steps between two refreshes compute nothing at all, the last ones before the next; the others are selective.
    `corrector`: whether a refresh makes up for what the steps before it got wrong (forecast.py).
    `cache`: how keys and values are kept in between; auto goes by the memory that is free.
    `spaced`: how far apart full steps may lie in progress, as a share of what is known to be good (`widest_gap`), however many steps there
    are; then warm-up ends where it would in a run of `REFERENCE_STEPS`. Presets have 1, `paper` 0.75; 0, for values given by hand: they are
    taken as they are.
    `coarse_steps`: how many of the warm-up steps run on a quarter of the tokens, the first ones; a full one follows.
    `speedup`: how many times less is to be computed than in a full run; the plan that comes closest replaces all the above (budget.py). 0:
    the values above are the plan.
    """

    refresh_interval: int = 4
    start_percent: float = 0.0
    end_percent: float = 1.0
    forecast: float = 0.0
    early_refresh: bool = False
    skipped_steps: int = 0
    corrector: bool = False
    cache: CacheMode = CacheMode.AUTO
    spaced: float = 0.0
    coarse_steps: int = 0
    speedup: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.refresh_interval <= MAX_REFRESH_INTERVAL:
            allowed = f"a whole number from 1 (every step is full) to {MAX_REFRESH_INTERVAL}"
            raise ValueError(f"`refresh_interval` is {self.refresh_interval}; give {allowed}.")
        if not 0.0 <= self.forecast <= 1.0:
            raise ValueError(f"`forecast` is {self.forecast}; give a number from 0 (reuse the last) to 1 (extrapolate).")
        if self.skipped_steps < 0:
            raise ValueError(f"`skipped_steps` is {self.skipped_steps}; give 0 (none) or more; refreshes always stay.")
        if self.coarse_steps < 0:
            raise ValueError(f"`coarse_steps` is {self.coarse_steps}; give 0 (none) or more.")
        if self.speedup and not 1.0 <= self.speedup <= MAX_SPEEDUP:
            raise ValueError(f"`speedup` is {self.speedup}; give a number from 1.0 (everything is computed) to {MAX_SPEEDUP}.")
        if not 0.0 <= self.start_percent <= self.end_percent <= 1.0:
            raise ValueError(
                f"`start_percent` {self.start_percent} and `end_percent` {self.end_percent} must lie in 0..1, the start not after the end."
            )


def plan_steps(
    progress: Sequence[float],
    warmup: int,
    schedule: ScheduleConfig,
    window: tuple[int, int] | None = None,
    begins: float = 0.0,
    pair: float = math.inf,
    even: float = math.inf,
) -> tuple[StepKind, ...]:
    """Kinds of the steps of a run between the noise levels `progress` (levels.py), one more than there are steps.

    `window` is the half-open range of step indices that may be skipped or selective (default: all). Warm-up lasts `warmup` steps, or until
    the window opens if that is later; where the plan is spaced, nothing is left out before the share `begins` of the steps or of the
    progress, whichever comes first, nor a step into and out of which the progress is more than `pair`, nor several in a row where these
    steps are more than `even` times as long as the mean one. The last step of a run is a refresh, and so is every step into or out of which
    the noise level does not fall.
    """
    total = len(progress) - 1
    first, last = window if window is not None else (0, total)
    warm = warmup
    if schedule.spaced:
        least = min(math.ceil(begins * total), 1 + _before(progress, begins))
        warm = max(least, min(warmup, 1 + _before(progress, warmup / REFERENCE_STEPS)))
    coarse = max(0, min(schedule.coarse_steps, last, total - 1)) if first == 0 else 0
    opens = min(max(first, warm, coarse + 1), total)
    closes = min(last, total - 1)
    kinds = [StepKind.COARSE] * coarse + [StepKind.WARMUP] * (opens - coarse)
    before, full = opens - 2, opens - 1
    for length in _lengths(schedule, max(0, total - opens)):
        if len(kinds) >= total:
            break
        most = min(length, schedule.refresh_interval) - 1
        steps = range(full + 1, min(full + 1 + most, closes))
        kinds += _cycle(schedule, _room(progress, max(before, 0), max(full, 0), steps, schedule.spaced, pair, even))
        before, full = full, len(kinds) - 1
    return _worthwhile(_evened(tuple(kinds[:total]), progress, closes)) if schedule.spaced else tuple(kinds[:total])


def _evened(kinds: tuple[StepKind, ...], progress: Sequence[float], closes: int) -> tuple[StepKind, ...]:
    """The plan without two full steps at its end behind a long gap: the first of them lies within the gap instead, so that the gap is
    shorter and as much is computed."""
    gap, ends = kinds[-4:-2], kinds[-2:]
    between = len(kinds) - 2
    if len(gap) < 2 or gap[0].full or gap[0] is not gap[1] or not all(kind is StepKind.REFRESH for kind in ends):
        return kinds
    return (*kinds[:-3], StepKind.REFRESH, gap[1], StepKind.REFRESH) if between < closes and falls_through(progress, between) else kinds


def _worthwhile(kinds: tuple[StepKind, ...]) -> tuple[StepKind, ...]:
    """The plan, in full where all it leaves out is a part of one step: asking for one step fewer saves more and comes as close."""
    if sum(not kind.full for kind in kinds) != 1:
        return kinds
    return tuple(StepKind.REFRESH if kind is StepKind.SELECTIVE else kind for kind in kinds)


def widest_gap(progress: float) -> float:
    """How far apart, in progress, two full steps may lie when the first is at `progress`.

    Less at the start, where the picture is laid out: there a guided prediction overshoots what the next one would turn back
    (docs/experiments.md, part 26).
    """
    return min(0.25, 0.07 + 0.435 * progress)


def reaches(progress: Sequence[float], full: int, step: int, spaced: float = 1.0) -> bool:
    """Whether a `step` may be left out after the `full` one: the noise level falls into and out of it, and, where the plan is `spaced`,
    the next is near enough."""
    gap = progress[step + 1] - progress[full]
    return falls_through(progress, step) and (not spaced or gap <= spaced * widest_gap(progress[full]) + 1e-6)


def trust(progress: Sequence[float], full: int, end: int, spaced: float = 1.0) -> float:
    """How far to believe the line through two predictions from the `full` step to the level `end`: not at all over wide gaps, where it
    overshoots; wide by itself, or beside the widest that is borne there."""
    gap = progress[end] - progress[full]
    return min(1.0, max(0.0, min((0.8 - gap / (spaced * widest_gap(progress[full]))) / 0.15, (0.165 - gap) / 0.015)))


def why_full(progress: Sequence[float], sampler: str, spaced: float) -> str:
    """Why no step of a run is left out, as the end of a sentence; `sampler`: the sampler's own reason, if it has one. `spaced`: whether
    full steps are kept close."""
    steps = len(progress) - 1
    if sampler:
        return f"this sampler {sampler}"
    if steps == 1:
        return "a run of one step has nothing to leave out, and a node that samples step by step starts a new run at each"
    if not any(falls_through(progress, step) for step in range(steps)):
        return "the noise level does not fall along this run, as when a picture is turned back into noise"
    if not spaced:
        return "the settings leave no step for it"
    where = "the later ones are so long, as with a high shift," if long_late(progress) else "they lie so far apart"
    return f"with {steps} steps {where} that leaving one out may cost more than asking for fewer"


def long_late(progress: Sequence[float]) -> bool:
    """Whether a step of the later half is long beside the middle one of all, as with a high shift. Not the last one alone is asked: some
    noise schedules end on a tiny step."""
    lengths = [after - before for before, after in itertools.pairwise(progress)] or [0.0]
    half = len(lengths) // 2
    return max(lengths[half:]) > LONG_LATE * sorted(lengths)[half] > 0.0


def ends_slowly(progress: Sequence[float]) -> bool:
    """Whether the last quarter of the steps comes less than a quarter of the way, as with the noise schedule `beta`."""
    steps = len(progress) - 1
    return (progress[-1] - progress[-1 - steps // 4]) * steps < (progress[-1] - progress[0]) * (steps // 4)


def falls_through(progress: Sequence[float], step: int) -> bool:
    """Whether the noise level falls both into and out of a step."""
    return 0 < step < len(progress) - 1 and progress[step - 1] < progress[step] < progress[step + 1]


def _before(progress: Sequence[float], level: float) -> int:
    """Steps of a run, but for its first, that lie before a level."""
    return next((i for i, found in enumerate(progress[1:-1]) if found >= level - 1e-6), len(progress) - 2)


def _lengths(schedule: ScheduleConfig, steps: int) -> Iterator[int]:
    """Lengths of the cycles over the `steps` after warm-up; with `early_refresh` those of the first third grow from 2 to the interval."""
    interval = schedule.refresh_interval
    short = math.ceil(steps / interval / 3) if schedule.early_refresh else 0
    growing = [2 + index * (interval - 2) // short for index in range(short)]
    return itertools.chain(growing, itertools.repeat(interval))


def _room(progress: Sequence[float], before: int, full: int, steps: range, spaced: float, pair: float, even: float) -> int:
    """How many of the `steps` need not be computed in full after the `full` one, which follows the one `before`."""
    furthest = progress[before] + WIDEST_PAIR + 1e-6 if spaced else math.inf
    mean = (progress[-1] - progress[0]) / (len(progress) - 1)

    def fits(step: int) -> bool:
        row = math.inf if step == full + 1 else progress[full] + even * mean * (step + 1 - full)
        near = progress[step + 1] <= min(furthest, progress[step - 1] + pair + 1e-6, row + 1e-6)
        return near and reaches(progress, full, step, spaced)

    return sum(itertools.takewhile(bool, map(fits, steps)))


def _cycle(schedule: ScheduleConfig, between: int) -> list[StepKind]:
    skipped = min(schedule.skipped_steps, between)
    return [StepKind.SELECTIVE] * (between - skipped) + [StepKind.SKIPPED] * skipped + [StepKind.REFRESH]


@dataclass(frozen=True)
class StepCosts:
    """What a step costs, in full steps: a selective one `fixed` + `kept` x keep ratio, a line through docs/benchmarks/cost.json; a coarse
    one its share of the tokens and of the text's rows that run along."""

    fixed: float = 0.059
    kept: float = 0.90
    coarse: float = 0.28

    def selective(self, keep_ratio: float) -> float:
        """Cost of a selective step."""
        return min(1.0, self.fixed + self.kept * keep_ratio)


def predicted_share(plan: Sequence[StepKind], keep_ratio: float, costs: StepCosts | None = None) -> float:
    """Predicted time of a run relative to dense."""
    costs = costs or StepCosts()
    share = {StepKind.SELECTIVE: costs.selective(keep_ratio), StepKind.SKIPPED: 0.0, StepKind.COARSE: costs.coarse}
    return sum(share.get(kind, 1.0) for kind in plan) / max(len(plan), 1)


def window_of_sigmas(sigmas: Sequence[float], start_sigma: float, end_sigma: float) -> tuple[int, int]:
    """Half-open range of steps whose sigma lies in `end_sigma` < sigma <= `start_sigma`."""
    inside = [i for i, sigma in enumerate(sigmas[:-1]) if end_sigma < sigma <= start_sigma * (1.0 + 1e-4)]
    return (inside[0], inside[-1] + 1) if inside else (len(sigmas) - 1, len(sigmas) - 1)
