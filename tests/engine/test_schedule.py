"""Which step does what."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safe_dit_engine.steps.plan import ScheduleConfig, StepCosts, StepKind, plan_steps, predicted_share, step_of_sigma, window_of_sigmas


def kinds(plan: tuple[StepKind, ...]) -> str:
    return "".join(kind.value[0] for kind in plan)


def plan(total: int, warmup: int, interval: int, window: tuple[int, int] | None = None, **values: Any) -> str:
    return kinds(plan_steps(total, warmup, ScheduleConfig(interval, **values), window))


def test_plan_as_drawn() -> None:
    assert plan(12, 3, 4) == "wwwsssasssas"
    assert plan(10, 2, 3, (4, 8)) == "wwwwssasaa"
    assert plan(4, 2, 1) == "wwaa"
    assert plan(2, 5, 4) == "ww"
    assert plan(12, 3, 4, held_steps=1) == "wwwsshasshas"
    assert plan(12, 3, 4, held_steps=9) == "wwwhhhahhhah"


@pytest.mark.parametrize(
    ("interval", "expected"),
    [(1, "wwwwaaaaaaaaaaaaaaaa"), (2, "wwwwsasasasasasasasa"), (3, "wwwwsasassassassassa"), (4, "wwwwsassasssasssasss")],
)
def test_widening_cycles(interval: int, expected: str) -> None:
    assert plan(20, 4, interval, widen=True) == expected


@given(st.integers(1, 60), st.integers(1, 10), st.integers(2, 20))
def test_widening_cycles_grow_from_two_steps_to_the_interval(total: int, warmup: int, interval: int) -> None:
    *cycles, last = [len(cycle) + 1 for cycle in re.split("a", plan(total, warmup, interval, widen=True).lstrip("w"))]
    assert cycles == sorted(cycles) and last <= interval + 1
    third = -(-(total - warmup) // interval // 3) if total > warmup else 0
    assert cycles[:1] in ([], [2]) and all(length == interval for length in cycles[third + 1 :])


@given(
    st.integers(0, 60), st.integers(1, 10), st.integers(1, 20), st.integers(0, 60), st.integers(0, 60), st.booleans(), st.integers(0, 20)
)
def test_plan_laws(total: int, warmup: int, interval: int, first: int, last: int, widen: bool, held: int) -> None:
    found = plan(total, warmup, interval, (first, last), widen=widen, held_steps=held)
    assert len(found) == total
    assert set(found[:warmup]) <= {"w"}
    assert all(max(first, warmup) <= i < last for i, kind in enumerate(found) if kind in "sh")
    between = re.findall("[sh]+", found)
    assert all(len(cycle) < interval and cycle.count("h") <= held and "hs" not in cycle for cycle in between)


def test_predicted_share() -> None:
    costs = StepCosts(fixed=0.05, kept=0.8)
    assert predicted_share(plan_steps(10, 2, ScheduleConfig(4)), 0.25, costs) == pytest.approx((4 + 6 * 0.25) / 10)
    assert predicted_share(plan_steps(10, 2, ScheduleConfig(4, held_steps=1)), 0.25, costs) == pytest.approx((4 + 4 * 0.25) / 10)
    assert predicted_share(plan_steps(10, 2, ScheduleConfig(4)), 1.0, StepCosts(0.5, 1.0)) == 1.0


SIGMAS = [1.0, 0.8, 0.6, 0.4, 0.2, 0.0]


@pytest.mark.parametrize(("sigma", "step"), [(1.0, 0), (0.9999, 0), (0.8, 1), (0.7, 1), (0.2, 4), (0.05, 4), (5.0, 0)])
def test_step_of_sigma(sigma: float, step: int) -> None:
    assert step_of_sigma(SIGMAS, sigma) == step


def test_window_of_sigmas() -> None:
    assert window_of_sigmas(SIGMAS, 1.0, 0.0) == (0, 5)
    assert window_of_sigmas(SIGMAS, 0.8, 0.3) == (1, 4)
    assert window_of_sigmas(SIGMAS, 0.15, 0.1) == (5, 5)


BAD = [{"refresh_interval": 0}, {"refresh_interval": 65}, {"held_steps": -1}, {"start_percent": 0.6, "end_percent": 0.5}]


@pytest.mark.parametrize("values", BAD)
def test_bad_values_are_named(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        ScheduleConfig(**values)  # type: ignore[arg-type]
