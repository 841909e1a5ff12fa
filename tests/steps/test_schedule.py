"""Which step does what."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safe_dit_engine.presets import PRESETS
from safe_dit_engine.steps.budget import plan_run
from safe_dit_engine.steps.clock import StepClock
from safe_dit_engine.steps.levels import even_progress, flow_progress, plain_progress
from safe_dit_engine.steps.plan import (
    WIDEST_PAIR,
    ScheduleConfig,
    StepCosts,
    StepKind,
    long_late,
    plan_steps,
    predicted_share,
    reaches,
    trust,
    why_full,
    window_of_sigmas,
)
from safe_dit_engine.steps.samplers import EULER, SAMPLERS, Sampler
from tests.support.noise_levels import slow_at_both_ends, with_tiny_last_step


def kinds(plan: tuple[StepKind, ...]) -> str:
    return "".join(kind.letter for kind in plan)


def plan(total: int, warmup: int, interval: int, window: tuple[int, int] | None = None, **values: Any) -> str:
    """A plan over so many even steps."""
    return kinds(plan_steps(even_progress(total), warmup, ScheduleConfig(interval, **values), window))


def test_plan_as_drawn() -> None:
    assert plan(12, 3, 4) == "wwwsssrsssrr"
    assert plan(10, 2, 3, (4, 8)) == "wwwwssrsrr"
    assert plan(4, 2, 1) == "wwrr"
    assert plan(2, 5, 4) == "ww"
    assert plan(12, 3, 4, skipped_steps=1) == "wwwss-rss-rr"
    assert plan(12, 3, 4, skipped_steps=9) == "www---r---rr"


def test_spaced_plan_as_drawn() -> None:
    assert plan(24, 3, 4, spaced=True) == "wwwsrssrsssrsssrsssrsssr"
    assert plan(20, 2, 3, (8, 13), spaced=True) == "wwwwwwwwssrssrrrrrrr"
    assert plan(20, 2, 1, spaced=True) == "w" * 2 + "r" * 18
    assert plan(20, 3, 4, skipped_steps=1, spaced=True) == "www-rs-rss-rss-rss-r"
    assert plan(20, 3, 4, skipped_steps=9, spaced=True) == "www-r--r---r---r---r"
    assert plan(4, 2, 4, spaced=True) == "wrrr" and plan(1, 4, 2, spaced=True) == "w"
    # Two full steps at the end with a long gap before them: the gap is divided.
    assert plan(16, 2, 3, skipped_steps=2, spaced=True) == "wwrr-r--r--r-r-r"
    assert plan(16, 2, 3, (0, 14), skipped_steps=2, spaced=True) == "wwrr-r--r--r--rr"
    # A part of one step is less than a step fewer.
    assert plan(20, 2, 3, (12, 13), spaced=True) == "w" * 12 + "r" * 8
    assert plan(20, 2, 3, (12, 13), skipped_steps=1, spaced=True) == "w" * 12 + "-" + "r" * 7
    assert plan(20, 2, 3, (12, 13)) == "w" * 12 + "s" + "r" * 7


@pytest.mark.parametrize(
    ("interval", "expected"),
    [(1, "wwwwrrrrrrrrrrrrrrrr"), (2, "wwwwsrsrsrsrsrsrsrsr"), (3, "wwwwsrsrssrssrssrssr"), (4, "wwwwsrssrsssrsssrssr")],
)
def test_early_refreshes_are_closer_together(interval: int, expected: str) -> None:
    assert plan(20, 4, interval, early_refresh=True, spaced=True) == expected


def progresses() -> st.SearchStrategy[list[float]]:
    """Noise levels in any order."""
    return st.lists(st.floats(0.0, 1.0), min_size=1, max_size=40)


ANY = st.integers(0, 60)


@given(progresses(), st.integers(1, 40), st.integers(1, 20), ANY, ANY, st.booleans(), st.integers(0, 20), st.booleans())
def test_plan_laws(
    progress: list[float], warmup: int, interval: int, first: int, last: int, early_refresh: bool, skipped: int, spaced: bool
) -> None:
    schedule = ScheduleConfig(interval, early_refresh=early_refresh, skipped_steps=skipped, spaced=spaced)
    found = kinds(plan_steps(progress, warmup, schedule, (first, last)))
    total = len(progress) - 1
    assert len(found) == total and found[-1:] in ("", "w", "r") and found[:1] != "s" and found[:1] != "-"
    left_out = [i for i, kind in enumerate(found) if kind in "s-"]
    assert all(first <= i < last and progress[i - 1] < progress[i] < progress[i + 1] for i in left_out)
    assert all(len(cycle) < interval and cycle.count("-") <= skipped and "hs" not in cycle for cycle in re.findall("[sh]+", found))
    full = [i for i, kind in enumerate(found) if kind in "wr" and spaced]
    wide = [(one, other) for one, other in itertools.pairwise(full) if other > one + 1]
    assert all(progress[other] - progress[one] <= 0.25 + 1e-5 for one, other in wide)
    pairs = [(a, c) for a, b, c in zip(full, full[1:], full[2:], strict=False) if c > b + 1]
    assert all(progress[c] - progress[a] <= WIDEST_PAIR + 1e-5 for a, c in pairs)


def plan_of(preset: str, progress: tuple[float, ...], coarse: bool = True) -> tuple[StepKind, ...]:
    """As a run with Euler's method has it."""
    values, total = PRESETS[preset], len(progress) - 1
    return plan_run(progress, values.partition.warmup_steps, EULER.limit(values.schedule), EULER, (0, total), coarse)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("shift", [1.0, 2.0, 3.0, 6.0, 12.0])
def test_few_steps_are_all_computed_and_many_are_not(preset: str, shift: float) -> None:
    plans = [plan_of(preset, even_progress(total, shift)) for total in range(1, 51)]
    few, enough = (5, 14) if shift < 3.0 else (19, 21 if preset == "paper" else 19)  # long later steps: all of up to 19 are computed
    assert preset == "express" or all(kind.full for plan in plans[:few] for kind in plan)
    assert all(any(not kind.full for kind in plan) for plan in plans[enough:])


def test_the_second_part_of_a_split_run_does_not_warm_up_again() -> None:
    whole, schedule = even_progress(20), PRESETS["balanced"].schedule
    assert kinds(plan_steps(whole[10:], 4, schedule)) == "w-r--r-r-r"
    assert kinds(plan_steps(whole[:11], 4, schedule)) == "wwww-r-r-r"


@pytest.mark.parametrize("shift", [3.0, 6.0, 8.0])
@pytest.mark.parametrize("preset", ["quality", "balanced", "fast", "draft"])
def test_both_parts_of_a_split_run_leave_something_out_at_any_shift(preset: str, shift: float) -> None:
    """Of 20 steps as of Wan's two models: the second part alone has long steps for its length."""
    whole = even_progress(20, shift)
    split = [kinds(plan_of(preset, part)) for part in (whole[:11], whole[10:])]
    assert all("-" in part and part[-1] == "r" for part in split), split
    assert sum(part.count("-") for part in split) >= kinds(plan_of(preset, whole)).count("-") - 2, split


def test_warm_up_is_no_longer_than_in_a_run_of_twenty_steps() -> None:
    steps = [kinds(plan_steps(even_progress(total), 4, ScheduleConfig(2, spaced=True))).count("w") for total in (8, 10, 12, 20, 30, 50)]
    assert steps == [2, 2, 3, 4, 4, 4]


def test_predicted_share() -> None:
    costs = StepCosts(fixed=0.05, kept=0.8)
    selective, skipped, full = StepKind.SELECTIVE, StepKind.SKIPPED, StepKind.REFRESH
    assert predicted_share([full] * 4 + [selective] * 6, 0.25, costs) == pytest.approx((4 + 6 * 0.25) / 10)
    assert predicted_share([full] * 4 + [selective] * 4 + [skipped] * 2, 0.25, costs) == pytest.approx((4 + 4 * 0.25) / 10)
    assert predicted_share([full, selective], 1.0, StepCosts(0.5, 1.0)) == 1.0


def test_progress_is_one_scale_for_all_models() -> None:
    levels = even_progress(10)
    assert levels == pytest.approx([i / 10 for i in range(11)]) and levels[0] == 0.0 and levels[-1] == 1.0
    flow = [0.9, 0.5, 0.1]
    # The same signal-to-noise ratio, counted as a variance-exploding model does.
    assert flow_progress(flow) == pytest.approx(plain_progress([sigma / (1 - sigma) for sigma in flow]))
    assert even_progress(20, 6.0)[10] == pytest.approx(flow_progress([6 * 0.5 / (1 + 5 * 0.5)])[0])


def test_lines_are_believed_where_steps_are_close() -> None:
    found = [[trust(even_progress(steps), steps // 2, steps // 2 + after) for after in (1, 2, 3)] for steps in (20, 12, 8)]
    assert found == [pytest.approx(row) for row in ([1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0])]
    assert 0.0 < trust(even_progress(100), 20, 32) < 1.0


def test_what_can_be_reached() -> None:
    progress = even_progress(10)
    assert not reaches(progress, 0, 1) and reaches(progress, 4, 5) and not reaches(progress, 4, 9)
    assert not reaches([0.5, 0.5, 0.55, 0.6], 0, 1) and not reaches([0.6, 0.55, 0.5], 0, 1)


@pytest.mark.parametrize(
    ("progress", "sampler", "said"),
    [
        (even_progress(20), "does so and so", "this sampler does so and so"),
        (even_progress(20)[::-1], "", "does not fall"),
        (even_progress(4), "", "with 4 steps"),
        (even_progress(1), "", "a run of one step"),
        (even_progress(20), "", "the settings leave no step"),
    ],
)
def test_why_full(progress: tuple[float, ...], sampler: str, said: str) -> None:
    assert said in why_full(progress, sampler, spaced="settings" not in said)


SIGMAS = [1.0, 0.8, 0.6, 0.4, 0.2, 0.0]


@pytest.mark.parametrize(("sigma", "step"), [(1.0, 0), (0.9999, 0), (0.8, 1), (0.7, 1), (0.2, 4), (0.05, 4), (5.0, 0)])
def test_the_clock_on_falling_levels(sigma: float, step: int) -> None:
    assert StepClock(SIGMAS).at(sigma) == step


@pytest.mark.parametrize(
    ("sigmas", "asked", "steps"),
    [
        (SIGMAS, [1.0, 0.9, 0.8, 0.8, 0.6, 0.5], [0, 0, 1, 1, 2, 2]),
        ([0.0, 0.2, 0.4, 0.6], [0.0, 0.2, 0.4], [0, 1, 2]),  # turned back into noise
        ([1.0, 0.5, 0.8, 0.5, 0.0], [1.0, 0.5, 0.8, 0.5], [0, 1, 2, 3]),  # restarts
        ([1.0, 0.5, 0.5, 0.2], [1.0, 0.5, 0.5, 0.2 + 1e-9], [0, 1, 1, 2]),
        ([1.0, 0.9, 0.5, 0.0], [1.0, 0.5], [0, 2]),  # one never arrived
        (SIGMAS, [0.6, 0.9], [2, 0]),  # back behind where the run is
    ],
)
def test_the_clock_follows_the_run(sigmas: list[float], asked: list[float], steps: list[int]) -> None:
    clock = StepClock(sigmas)
    assert [clock.at(sigma) for sigma in asked] == steps


def test_the_clock_tells_levels_of_the_run_from_a_samplers_own() -> None:
    clock = StepClock(SIGMAS)
    assert [(clock.at(sigma), clock.on_level) for sigma in (1.0, 0.9, 0.8)] == [(0, True), (0, False), (1, True)]


def test_window_of_sigmas() -> None:
    assert window_of_sigmas(SIGMAS, 1.0, 0.0) == (0, 5)
    assert window_of_sigmas(SIGMAS, 0.8, 0.3) == (1, 4)
    assert window_of_sigmas(SIGMAS, 0.15, 0.1) == (5, 5)


BAD = [{"refresh_interval": 0}, {"refresh_interval": 65}, {"skipped_steps": -1}, {"start_percent": 0.6, "end_percent": 0.5}]


@pytest.mark.parametrize("values", BAD)
def test_bad_values_are_named(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        ScheduleConfig(**values)  # type: ignore[arg-type]


def limited(name: str, **sampler: Any) -> str:
    """The plan of a preset at 20 steps with such a sampler."""
    schedule = Sampler(**sampler).limit(PRESETS[name].schedule)
    return kinds(plan_steps(even_progress(20), 4, schedule))


def begun_late(schedule: ScheduleConfig, shift: float) -> tuple[StepKind, ...]:
    """The plan of 30 steps with a sampler that leaves nothing out in the first quarter."""
    return plan_run(even_progress(30, shift), 4, schedule, Sampler(begins=0.25), (0, 30), False)


def test_a_sampler_bounds_what_presets_leave_out() -> None:
    assert "--" not in limited("draft", skipped=1) and "--" in limited("draft", skipped=2) and "s" not in limited("draft", skipped=1)
    assert limited("quality", skipped=1) == limited("quality") != limited("paper")
    assert set(limited("paper", selective=0)) == set(limited("balanced", skipped=0)) == {"w", "r"}
    assert "ss" not in limited("paper", selective=1) and "ss" in limited("paper", selective=2)
    assert limited("balanced", reach=0.5).count("-") < limited("balanced").count("-")
    for preset in ("quality", "balanced", "draft", "paper"):
        plan, shifted = (begun_late(PRESETS[preset].schedule, shift) for shift in (2.0, 8.0))
        assert set(plan[:8]) == set(shifted[:8]) == {StepKind.WARMUP} and not all(kind.full for kind in plan)
        assert not all(kind.full for kind in shifted[8:10]), "levels that fall slowly at first do not keep it from beginning"
    assert begun_late(ScheduleConfig(4, skipped_steps=2), 2.0)[4] is StepKind.SELECTIVE


@pytest.mark.parametrize("sampler", ["sample_dpmpp_2m", "sample_res_multistep"])
@pytest.mark.parametrize("preset", ["quality", "balanced", "fast", "draft"])
def test_samplers_of_second_order_leave_something_out_of_short_steps_only(sampler: str, preset: str) -> None:
    row, warmup = SAMPLERS[sampler], PRESETS[preset].partition.warmup_steps

    def plan(progress: Sequence[float]) -> str:
        total = len(progress) - 1
        return kinds(plan_run(progress, warmup, row.limit(PRESETS[preset].schedule), row, (0, total), False))

    for shift in (1.0, 1.73, 2.0):
        assert not any("-" in plan(even_progress(steps, shift)) for steps in range(1, 20))
        assert all("-" in plan(even_progress(steps, shift)) for steps in (20, 30, 60))
    assert not any("-" in plan(plain_progress([14.6 * (1 - i / steps) for i in range(steps + 1)])) for steps in range(1, 17)), "SDXL"
    assert plan(even_progress(20, 2.0)).endswith("-r-r")
    assert "-" in plan(even_progress(24, 2.0)[12:]), "an image to image run of 12 short steps"


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "res_multistep", "gradient_estimation"])
@pytest.mark.parametrize("preset", ["quality", "balanced", "fast", "draft", "paper"])
def test_samplers_that_want_even_steps_leave_nothing_out_where_later_ones_are_long(sampler: str, preset: str) -> None:
    row, schedule, warmup = SAMPLERS[f"sample_{sampler}"], PRESETS[preset].schedule, PRESETS[preset].partition.warmup_steps
    for shift, steps in itertools.product((2.5, 3.0, 3.16, 6.0, 12.0), (4, 8, 20, 30, 60)):
        levels = even_progress(steps, shift)
        ends = (with_tiny_last_step(levels), slow_at_both_ends(steps))
        for progress in (levels, *ends, levels[steps // 2 :]) if shift > 2.5 else (levels,):
            assert {kind.full for kind in plan_run(progress, warmup, row.limit(schedule), row, (0, len(progress) - 1), False)} == {True}
        assert preset == "paper" or "high shift" in why_full(levels, row.why_full(schedule, levels), 1.0)
        by_hand = ScheduleConfig(2, skipped_steps=1)
        assert "-" in kinds(plan_run(levels, 1, row.limit(by_hand), row, (0, steps), False)) and not row.why_full(by_hand, levels)
    assert not any(long_late(even_progress(steps, shift)) for steps in range(2, 61) for shift in (1.0, 1.73, 2.0))
    assert not long_late(tuple(reversed(even_progress(20, 6.0)))), "a run that rises has its own reason"


@pytest.mark.parametrize("preset", ["quality", "balanced", "fast", "draft", "paper"])
def test_a_run_that_is_slow_at_both_ends_is_left_alone_there(preset: str) -> None:
    """The noise schedule `beta`, euler: at 12 and 16 steps presets were 2.6 to 5.8 dB below fewer steps, `draft` and `paper` at 20 too."""
    runs = {steps: slow_at_both_ends(steps) for steps in range(1, 51)}
    plans = {steps: kinds(plan_of(preset, run)) for steps, run in runs.items()}
    assert all(set(plan) <= {"w", "r"} for steps, plan in plans.items() if steps < 20)
    for steps in range(20, 51):
        left_out = [step for step, kind in enumerate(plans[steps]) if kind in "-s"]
        assert left_out or (preset, steps) == ("paper", 20)
        assert min(left_out, default=steps) >= 0.2 * steps - 1e-9, plans[steps]
        assert all(after > before + 1 for before, after in itertools.pairwise(left_out)), plans[steps]
    assert preset == "paper" or plans[20] == "wwww-r-r-r-r-r-r-r-r"


@pytest.mark.parametrize("shift", [3.0, 6.0])
@pytest.mark.parametrize("scheduler", ["simple", "normal", "beta", "linear_quadratic"])
@pytest.mark.parametrize("steps", [20, 30, 50])
def test_selective_steps_are_not_among_the_long_ones(shift: float, scheduler: str, steps: int) -> None:
    """`paper`, euler, normal, shift 3: 0.8 and 0.4 dB below fewer steps with 20 and 30, 5.4 and 7.4 ahead without those; linear_quadratic,
    30 steps: 5.6 below, 21.9 ahead. simple, shift 6, 20 steps: with a fourth selective step one picture was 6.5 below."""
    even, quadratic = even_progress(steps, shift), tuple((step / steps) ** 2 for step in range(steps + 1))
    runs = {"simple": even, "normal": with_tiny_last_step(even), "beta": slow_at_both_ends(steps), "linear_quadratic": quadratic}
    run = runs[scheduler]
    plan = kinds(plan_of("paper", run))
    selective = [step for step, kind in enumerate(plan) if kind == "s"]
    assert all(run[step + 1] - run[step - 1] <= 1.8 / (len(run) - 1) + 1e-5 for step in selective), plan
    assert not selective or selective[0] >= 0.3 * steps or run[selective[0]] > 0.3, plan


@pytest.mark.parametrize("preset", ["quality", "balanced", "fast", "draft", "paper"])
def test_a_tiny_last_step_does_not_hide_that_the_others_are_long(preset: str) -> None:
    """At a shift of 3 presets left out a third of 12 steps with the scheduler `normal`, and none with `simple`."""
    for shift, steps in itertools.product((3.0, 6.0), range(2, 19)):
        assert set(kinds(plan_of(preset, with_tiny_last_step(even_progress(steps, shift))))) <= {"w", "r"}
    assert "s" in kinds(plan_of("paper", with_tiny_last_step(even_progress(14)))) and not long_late(with_tiny_last_step(even_progress(8)))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_run_from_almost_noise_is_planned_as_one_from_noise(preset: str) -> None:
    """ddim_uniform, 20 steps, begins at a progress of 0.048 with a latent that is noise alone: `draft` was 7.9 dB below fewer steps."""
    for steps in (12, 20, 30):
        whole = even_progress(steps)
        almost = tuple(0.048 + 0.952 * level for level in whole)
        assert plan_of(preset, almost) == plan_of(preset, whole)


@pytest.mark.parametrize("preset", ["balanced", "fast", "draft"])
def test_several_steps_in_a_row_are_left_out_only_where_these_are_short(preset: str) -> None:
    """Euler, shift 3, 20 steps: `balanced` was 6.8 dB below fewer steps on one picture."""
    values = PRESETS[preset]

    def plan(progress: Sequence[float]) -> str:
        return kinds(plan_run(progress, values.partition.warmup_steps, values.schedule, EULER, (0, len(progress) - 1), False))

    for steps, shift in itertools.product((12, 15, 20, 25, 30, 60), (1.0, 2.0, 3.0, 6.0)):
        progress = even_progress(steps, shift)
        for row in re.finditer("--+", plan(progress)):
            assert progress[row.end()] - progress[row.start() - 1] <= 1.15 * (len(row[0]) + 1) / steps + 1e-5, plan(progress)
    assert preset != "balanced" or plan(even_progress(20, 3.0)) == "wwww-r-r--r--r-r-r-r"


@pytest.mark.parametrize("sampler", ["sample_dpmpp_2m", "sample_res_multistep"])
def test_presets_that_compute_the_same_follow_the_line_alike(sampler: str) -> None:
    row = SAMPLERS[sampler]
    for steps, shift in itertools.product((13, 14, 20, 30, 60), (1.0, 2.0, 6.0, 8.0)):
        schedules = {name: row.limit(PRESETS[name].schedule) for name in ("balanced", "fast", "draft")}
        warmups = {name: PRESETS[name].partition.warmup_steps for name in schedules}
        plans = [plan_run(even_progress(steps, shift), warmups[name], schedules[name], row, (0, steps), False) for name in schedules]
        assert plans[0] == plans[1] == plans[2] and {schedule.forecast for schedule in schedules.values()} == {0.3}
    assert row.limit(PRESETS["quality"].schedule).forecast == PRESETS["quality"].schedule.forecast


def test_values_given_by_hand_stay_with_any_sampler() -> None:
    by_hand = ScheduleConfig(4, skipped_steps=2)
    assert Sampler(skipped=0, selective=0).limit(by_hand) is by_hand
    for sampler, preset in ((Sampler(skipped=0), "fast"), (Sampler(selective=0), "paper")):
        assert "fewer steps" in sampler.why_full(PRESETS[preset].schedule, even_progress(20))
    for sampler, preset in ((Sampler(selective=0), "fast"), (Sampler(), "paper"), (Sampler(even=True), "fast")):
        assert sampler.why_full(PRESETS[preset].schedule, even_progress(20)) == ""
