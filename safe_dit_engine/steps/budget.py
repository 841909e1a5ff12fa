"""The plan that comes closest to a share of the work: full steps with skipped ones between them, and coarse steps first where these alone
do not get there."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from .levels import BEGIN, from_noise
from .plan import ScheduleConfig, StepKind, ends_slowly, falls_through, long_late, plan_steps, predicted_share
from .samplers import Sampler

# Refresh interval, warm-up and early refresh of the plans that keep the picture, from the most work to the least.
KEEPING = ((1, 1, False), (2, 8, False), (2, 4, False), (3, 6, True), (3, 4, True), (3, 2, True), (4, 2, True))
# Up to this speed-up plans keep the picture with Euler's method, where steps are many.
SAME_PICTURE = 2.5
# A plan that keeps the picture is good enough where it computes at most so much more than was asked for: a share of all steps, at most one.
SLACK = 0.05
# Before this progress the picture is laid out: coarse steps, so far apart in progress but for the first two; thinner where little is to be
# computed (docs/experiments.md, part 27). Longer with samplers that may skip little, which save by coarse steps alone.
LAYOUT, LONG_LAYOUT, COARSE_GAP, THIN_GAP = 0.35, 0.55, 0.08, 0.15
# Later ones divide gaps between full steps that are wider: over these a prediction that is held tints grey things.
HELD = 0.17
# In runs of fewer steps than this they are at most this share of the steps, all at the start.
FEW_STEPS, FEW_COARSE = 10, 0.35
# How far apart in progress full steps may lie, however little is to be computed; in runs of few steps, where no coarse ones lie between.
WIDEST, FEW_WIDEST = 0.65, 0.4
# Samplers that skip as many steps one after another may skip any number after coarse ones.
FREELY = 2
# Above 1: gaps between full steps grow.
GROWTH = 1.15
# Where a run from noise has long steps late, and with samplers that begin late, which are of second order, fewer steps come so close that
# presets leave something out only where steps are short: on the average of a run, and with these samplers the two around a step that is
# left out (docs/experiments.md, part 26). The second part of a split run has long steps for its length, but its picture is laid out.
SHORT_STEP, SHORT_PAIR = 0.0525, 0.125
# Where steps are long in the middle, and the run is slow at both ends, presets begin late and leave out one step at a time.
MIDDLE_BEGINS = 0.2
# Presets leave out several steps in a row only where these are at most so many times as long as the mean one.
EVEN = 1.15
# Where a run has long steps late, selective steps begin late and are, with the one before, at most so many times as long as the mean one.
SELECTIVE_BEGINS, SELECTIVE_SHORT = 0.3, 0.9


def plan_run(
    progress: Sequence[float], warmup: int, schedule: ScheduleConfig, sampler: Sampler, window: tuple[int, int], coarse: bool
) -> tuple[StepKind, ...]:
    """The plan of a run, by budget or by the values of `schedule`; `coarse`: whether the latent is large enough for coarse steps."""
    progress = from_noise(progress)
    if schedule.speedup:
        return plan_budget(progress, schedule.speedup, sampler, coarse, window)
    schedule = schedule if coarse else replace(schedule, coarse_steps=0)
    if not schedule.spaced:
        return plan_steps(progress, warmup, schedule, window)
    mean = (progress[-1] - progress[0]) / max(len(progress) - 1, 1)
    long, late = mean > SHORT_STEP, long_late(progress) and progress[0] <= BEGIN
    middle = late and ends_slowly(progress)
    if ((sampler.begins or late) and long) or (sampler.even and long_late(progress)):
        schedule = replace(schedule, refresh_interval=1)
    begins, even = (max(sampler.begins, MIDDLE_BEGINS), 0.0) if middle else (sampler.begins, EVEN)
    pair = SHORT_PAIR if sampler.begins else math.inf
    if late and not schedule.skipped_steps:
        begins, pair = max(begins, SELECTIVE_BEGINS), min(pair, 2.0 * SELECTIVE_SHORT * mean)
    return plan_steps(progress, warmup, schedule, window, begins, pair, even)


def what_is_missed(plan: Sequence[StepKind], schedule: ScheduleConfig, why_full: str, no_coarse: str | None) -> Iterator[str]:
    """Sentences on what `schedule` asks for and `plan` cannot do. `why_full`, `no_coarse`: why nothing is left out, and no step is coarse,
    should that be so."""
    if no_coarse is not None and (schedule.coarse_steps or schedule.speedup > SAME_PICTURE):
        yield f"No step is coarse, because {no_coarse}."
    reached = 1.0 / max(predicted_share(plan, 1.0), 1e-9)
    if all(kind.full for kind in plan):
        yield f"Every step is computed, so nothing is saved: {why_full}."
    elif reached < 0.85 * schedule.speedup:
        yield f"{schedule.speedup:g} times less was asked for; with this sampler and {len(plan)} steps it is {reached:.1f} times."


def plan_budget(
    progress: Sequence[float], speedup: float, sampler: Sampler, coarse: bool, window: tuple[int, int] | None = None
) -> tuple[StepKind, ...]:
    """The plan of a run between the noise levels `progress` that computes 1 / `speedup` of a full run.

    `coarse`: whether steps may run on a smaller picture. `window`: half-open range of steps that need not be computed in full.
    """
    total = len(progress) - 1
    window = window if window is not None else (0, total)
    budget = total / speedup
    plans = list(_keeping(progress, sampler, window))
    fitting = [plan for plan in plans if _cost(plan) <= budget + min(1.0, SLACK * total)]
    if fitting:
        return min(fitting, key=lambda plan: abs(_cost(plan) - budget))
    if coarse and total > 1 and window == (0, total) and all(falls_through(progress, step) for step in range(1, total)):
        plans.append(_coarse(progress, budget, sampler.skipped))
    return min(plans, key=lambda plan: max(_cost(plan) - budget, 0.0))


def _cost(plan: Sequence[StepKind]) -> float:
    """In full steps; plans here have no selective ones."""
    return predicted_share(plan, 1.0) * len(plan)


def _keeping(progress: Sequence[float], sampler: Sampler, window: tuple[int, int]) -> Iterator[tuple[StepKind, ...]]:
    for interval, warmup, early in KEEPING:
        skipped = min(interval - 1, sampler.skipped)
        config = ScheduleConfig(skipped + 1, early_refresh=early, skipped_steps=skipped, spaced=sampler.reach)
        yield plan_steps(progress, warmup, config, window, sampler.begins)


def _coarse(progress: Sequence[float], budget: float, most_skipped: int) -> tuple[StepKind, ...]:
    """Coarse steps, then full ones with gaps that grow from the start and a coarse step within the wide ones; the last step is full."""
    total = len(progress) - 1
    most = int(FEW_COARSE * total) if total < FEW_STEPS else total - 1
    end = (LAYOUT if most_skipped >= FREELY else LONG_LAYOUT) - 1e-6
    layout = max(1, min(sum(level < end for level in progress[:total]), most))
    fewest = 1 + math.ceil((progress[total - 1] - progress[layout]) / (WIDEST if total >= FEW_STEPS else FEW_WIDEST) - 1e-6)
    gaps = (COARSE_GAP, THIN_GAP) if total >= FEW_STEPS else (COARSE_GAP,)
    if most_skipped < FREELY:  # a sampler that was only measured with fewer
        fewest, gaps = max(fewest, 1 + math.ceil((total - layout - 1) / (most_skipped + 1))), (COARSE_GAP if most_skipped else 0.0,)
    counts = range(total - layout, min(fewest, total - layout) - 1, -1)
    plans = [_with_full(progress, layout, count, gap) for gap in gaps for count in counts]
    return next((plan for plan in plans if _cost(plan) <= budget + 0.5), plans[-1])


def _with_full(progress: Sequence[float], layout: int, count: int, gap: float) -> tuple[StepKind, ...]:
    """`count` full steps from the step `layout` on; the coarse ones before it lie `gap` apart."""
    total = len(progress) - 1
    full = [layout + place for place in _growing(total - layout, count)]
    coarse = _apart(progress, layout, gap)
    if total >= FEW_STEPS:
        coarse.update(step for pair in itertools.pairwise(full) for step in _within(progress, *pair))
    kinds = [StepKind.COARSE if step in coarse else StepKind.SKIPPED for step in range(total)]
    for number, place in enumerate(full):
        kinds[place] = StepKind.REFRESH if number else StepKind.WARMUP
    return tuple(kinds)


def _apart(progress: Sequence[float], steps: int, gap: float) -> set[int]:
    """The first two of `steps`, and those that lie far enough from the one before."""
    chosen = list(range(min(steps, 2)))
    for step in range(2, steps):
        if progress[step] - progress[chosen[-1]] >= gap - 1e-6:
            chosen.append(step)
    return set(chosen)


def _within(progress: Sequence[float], before: int, after: int) -> Iterator[int]:
    """Steps that divide the gap between two others evenly, if it is wide."""
    parts = math.ceil((progress[after] - progress[before]) / HELD - 1e-6)
    for part in range(1, parts):
        level = progress[before] + (progress[after] - progress[before]) * part / parts
        yield min(range(before, after), key=lambda step: round(abs(progress[step] - level), 6))


def _growing(steps: int, count: int) -> Iterator[int]:
    """`count` of `steps`, the first and the last among them unless it is the last alone, with gaps that grow."""
    before = -1
    for number in range(count):
        place = math.floor((steps - 1) * (number / max(count - 1, 1)) ** GROWTH + 0.5) if count > 1 else steps - 1
        before = min(max(place, before + 1), steps - count + number)
        yield before
