"""Which step does what."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safe_dit_engine.schedule import ScheduleConfig, StepKind, plan_steps, predicted_share, step_of_sigma, window_of_sigmas


def kinds(plan: tuple[StepKind, ...]) -> str:
    return "".join(kind.value[0] for kind in plan)


def test_plan_as_drawn() -> None:
    assert kinds(plan_steps(12, warmup=3, refresh_interval=4)) == "wwwsssasssas"
    assert kinds(plan_steps(10, warmup=2, refresh_interval=3, window=(4, 8))) == "wwwwssasaa"
    assert kinds(plan_steps(4, warmup=2, refresh_interval=1)) == "wwaa"
    assert kinds(plan_steps(2, warmup=5, refresh_interval=4)) == "ww"


@pytest.mark.parametrize(
    ("interval", "plan"),
    [(1, "wwwwaaaaaaaaaaaaaaaa"), (2, "wwwwsasasasasasasasa"), (3, "wwwwsasasasassassass"), (4, "wwwwssassassasssasss")],
)
def test_widening_cycles(interval: int, plan: str) -> None:
    assert kinds(plan_steps(20, warmup=4, refresh_interval=interval, widen=True)) == plan


@given(st.integers(0, 60), st.integers(1, 10), st.integers(1, 20), st.integers(0, 60), st.integers(0, 60), st.booleans())
def test_plan_laws(total: int, warmup: int, interval: int, first: int, last: int, widen: bool) -> None:
    plan = plan_steps(total, warmup, interval, (first, last), widen)
    assert len(plan) == total
    assert all(kind is StepKind.WARMUP for kind in plan[:warmup])
    selective = [i for i, kind in enumerate(plan) if kind is StepKind.SELECTIVE]
    assert all(max(first, warmup) <= i < last for i in selective)
    run = longest = 0
    for kind in plan:
        run = run + 1 if kind is StepKind.SELECTIVE else 0
        longest = max(longest, run)
    assert longest <= interval - 1


def test_predicted_share() -> None:
    assert predicted_share(plan_steps(10, 2, 4), 0.25) == pytest.approx((4 + 6 * 0.25) / 10)


SIGMAS = [1.0, 0.8, 0.6, 0.4, 0.2, 0.0]


@pytest.mark.parametrize(("sigma", "step"), [(1.0, 0), (0.9999, 0), (0.8, 1), (0.7, 1), (0.2, 4), (0.05, 4), (5.0, 0)])
def test_step_of_sigma(sigma: float, step: int) -> None:
    assert step_of_sigma(SIGMAS, sigma) == step


def test_window_of_sigmas() -> None:
    assert window_of_sigmas(SIGMAS, 1.0, 0.0) == (0, 5)
    assert window_of_sigmas(SIGMAS, 0.8, 0.3) == (1, 4)
    assert window_of_sigmas(SIGMAS, 0.15, 0.1) == (5, 5)


@pytest.mark.parametrize("values", [{"refresh_interval": 0}, {"refresh_interval": 65}, {"start_percent": 0.6, "end_percent": 0.5}])
def test_bad_values_are_named(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        ScheduleConfig(**values)  # type: ignore[arg-type]
