"""Plans by budget: never far over it, the last step always computed, coarse steps where nothing is known yet and in wide gaps."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safe_dit_engine.presets import at_speedup
from safe_dit_engine.steps.budget import FEW_STEPS, HELD, SAME_PICTURE, plan_budget, what_is_missed
from safe_dit_engine.steps.levels import even_progress
from safe_dit_engine.steps.plan import ScheduleConfig, StepKind, predicted_share
from safe_dit_engine.steps.samplers import SAMPLERS, Sampler

EXPRESS = 5.0


def letters(steps: int, speedup: float, shift: float = 2.0, skipped: int = 3, coarse: bool = True) -> str:
    plan = plan_budget(even_progress(steps, shift), speedup, Sampler(skipped=skipped), coarse)
    return "".join(kind.letter for kind in plan)


@given(st.integers(1, 60), st.floats(1.0, 6.0), st.floats(1.0, 12.0), st.integers(0, 3), st.booleans())
def test_laws(steps: int, speedup: float, shift: float, skipped: int, coarse: bool) -> None:
    plan = letters(steps, speedup, shift, skipped, coarse)
    assert len(plan) == steps and plan[-1] in "wr" and plan[0] in "wc", "the last step is computed, and so is the first"
    assert "c" not in plan or coarse
    assert "-" not in plan or skipped
    assert steps >= FEW_STEPS or "c" not in plan.lstrip("c-"), "in runs of few steps coarse ones come first"
    first = next(index for index, letter in enumerate(plan) if letter in "wr")
    assert plan[first] == "w"


@given(st.integers(1, 60), st.floats(1.0, 6.0))
def test_less_work_where_it_can_be(steps: int, speedup: float) -> None:
    """Over budget by at most a step, unless no plan of the rule is as cheap; and more speed is never more work."""
    cost, least, most = (predicted_share(plan_budget(even_progress(steps), asked, Sampler(), True), 1.0) for asked in (speedup, 6.0, 1.0))
    assert cost * steps <= max(steps / speedup, least * steps) + 1.0
    assert least <= cost <= most == 1.0


@pytest.mark.parametrize("shift", [3.0, 6.0])
def test_the_dial_leaves_steps_out_where_presets_do_not(shift: float) -> None:
    """Where a run ends on long steps; without a coarse step, so the picture is kept (docs/limits.md)."""
    dpmpp_2m = plan_budget(even_progress(20, shift), 1.5, SAMPLERS["sample_dpmpp_2m"], True)
    twelve, sixteen = (letters(steps, 1.5, shift) for steps in (12, 16))
    counts = [plan.count("-") for plan in (twelve, sixteen, "".join(kind.letter for kind in dpmpp_2m))]
    assert "c" not in twelve + sixteen and StepKind.COARSE not in dpmpp_2m
    assert counts == ([4, 5, 7] if shift == 3.0 else [4, 5, 6])


@pytest.mark.parametrize(("steps", "shift"), [(16, 2.0), (20, 2.0), (20, 3.0), (25, 2.0), (40, 3.0)])
def test_no_prediction_is_held_for_long(steps: int, shift: float) -> None:
    """Grey things took on a tint where a guided prediction was held from the layout to the last step (docs/experiments.md, part 27)."""
    progress = even_progress(steps, shift)
    computed = [step for step, letter in enumerate(letters(steps, EXPRESS, shift)) if letter != "-"]
    assert all(progress[after] - progress[before] < HELD + 0.05 for before, after in itertools.pairwise(computed))
    assert steps != 20 or letters(steps, EXPRESS) == "cc-c-c-w--c--c--c--r"


def test_the_dial_goes_beyond_express() -> None:
    shares = [predicted_share(plan_budget(even_progress(20), speedup, Sampler(), True), 1.0) for speedup in (3.0, 4.0, EXPRESS, 6.0)]
    assert shares == sorted(shares, reverse=True) and len(set(shares)) == 4 and shares[2] <= 0.2


def test_the_picture_is_kept_up_to_a_speedup() -> None:
    for steps in (20, 30, 50):
        assert "c" not in letters(steps, SAME_PICTURE) and "c" in letters(steps, EXPRESS)
        dpmpp_2m = [plan_budget(even_progress(steps), speedup, SAMPLERS["sample_dpmpp_2m"], True) for speedup in (1.8, 2.1)]
        assert [StepKind.COARSE in plan for plan in dpmpp_2m] == [False, True]


@pytest.mark.parametrize("speedup", [0.0, 0.9, 6.1, float("nan")])
def test_a_speedup_that_is_none(speedup: float) -> None:
    with pytest.raises(ValueError, match="`speedup` is"):
        at_speedup(speedup)


def test_few_steps() -> None:
    assert letters(1, 6.0) == "w"
    assert letters(4, 1.2) == letters(4, 6.0) == "cwrr", "nothing can be left out; the first step may be coarse"
    assert letters(8, 1.35).count("c") == 2 and letters(8, 1.35).count("-") <= 1
    assert letters(8, 1.35, skipped=0) == "ccwrrrrr"


def test_it_is_said_what_cannot_be() -> None:
    plan = plan_budget(even_progress(4), EXPRESS, Sampler(), True)
    said = list(what_is_missed(plan, ScheduleConfig(speedup=EXPRESS), "", None))
    assert said == ["5 times less was asked for; with this sampler and 4 steps it is 1.2 times."]
    small = plan_budget(even_progress(20), EXPRESS, Sampler(), False)
    assert StepKind.COARSE not in small
    assert list(what_is_missed(small, ScheduleConfig(speedup=EXPRESS), "", "it is small"))[0] == "No step is coarse, because it is small."
