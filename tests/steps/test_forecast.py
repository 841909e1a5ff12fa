"""Predictions reused, extrapolated and corrected."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from safe_dit_engine.steps.forecast import MAX_REACH, Forecaster, weight_of
from safe_dit_engine.steps.levels import flow_progress
from safe_dit_engine.steps.plan import ScheduleConfig
from safe_dit_engine.steps.samplers import EULER, Sampler
from safe_dit_engine.steps.skipping import UNGUIDED, Skipping

SHAPE = (1, 2, 4, 4)
SIGMAS = [1.0, 0.9, 0.8, 0.65, 0.5, 0.3, 0.1, 0.0]


def line(sigma: float) -> Tensor:
    """A prediction on a straight line over the noise level."""
    generator = torch.Generator().manual_seed(1)
    start, slope = (torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(2))
    return start + sigma * slope


def euler(forecaster: Forecaster, plan: str, truth: object = line) -> tuple[Tensor, Tensor]:
    """x after the steps of `plan` (r: computed, s: left half computed, -: skipped) and after computing all of them."""
    x, exact = (torch.zeros(SHAPE, dtype=torch.float64) for _ in range(2))
    left = (torch.arange(SHAPE[-1]) < SHAPE[-1] // 2).expand(1, 1, *SHAPE[-2:])
    for kind, sigma, following in zip(plan, SIGMAS, SIGMAS[1:], strict=False):
        value, weight = truth(sigma), weight_of(sigma, following)  # type: ignore[operator]
        if kind == "-":
            given = forecaster.skipped(sigma, weight)
        elif kind == "s":
            given = forecaster.selected(value, sigma, weight, left)
        else:
            given = forecaster.refreshed(value, sigma, weight)
        ratio = following / sigma
        x, exact = ratio * x + (1 - ratio) * given, ratio * exact + (1 - ratio) * value
    return x, exact


def test_a_straight_path_is_followed_exactly() -> None:
    x, exact = euler(Forecaster(1.0, corrector=False), "rr-r-r")
    assert torch.allclose(x, exact, atol=1e-12)


def test_reused_it_falls_behind_and_corrected_it_arrives() -> None:
    skipped, exact = euler(Forecaster(0.0, corrector=False), "rr-s-r")
    corrected, _ = euler(Forecaster(0.0, corrector=True), "rr---r")
    assert not torch.allclose(skipped, exact, atol=1e-3)
    assert torch.allclose(corrected, exact, atol=1e-12)


@given(st.text("r-s", min_size=6, max_size=6), st.sampled_from([0.0, 0.5, 1.0]))
def test_on_a_line_every_plan_that_ends_with_a_refresh_arrives_where_nothing_was_selected(plan: str, forecast: float) -> None:
    plan = "r" + plan[1:5] + "r"
    x, exact = euler(Forecaster(forecast, corrector=True), plan)
    right = slice(SHAPE[-1] // 2, None)
    assert torch.allclose(x[..., right], exact[..., right], atol=1e-9)


def test_where_nothing_was_skipped_the_very_tensor_comes_back() -> None:
    forecaster = Forecaster(0.6, corrector=True)
    for sigma, following in zip(SIGMAS[:4], SIGMAS[1:5]):
        value = torch.randn(SHAPE)
        assert forecaster.refreshed(value, sigma, weight_of(sigma, following)) is value


def test_one_prediction_is_kept_and_not_aliased() -> None:
    forecaster, value = Forecaster(1.0, corrector=True), torch.randn(SHAPE)
    forecaster.refreshed(value, 1.0, 0.1)
    skipped = forecaster.skipped(0.5, 1.0)
    assert torch.equal(skipped, value)
    skipped.zero_()
    value.zero_()
    assert not torch.equal(forecaster.skipped(0.4, 1.0), value)


def test_two_refreshes_close_together_do_not_throw_it_far() -> None:
    forecaster, first, second = Forecaster(1.0, corrector=False), torch.zeros(SHAPE), torch.ones(SHAPE)
    forecaster.refreshed(first, 0.7001, 0.0)
    forecaster.refreshed(second, 0.7, 0.0)
    assert torch.allclose(forecaster.skipped(0.1, 0.0), second + MAX_REACH)
    assert torch.allclose(forecaster.skipped(0.9, 0.0), second - MAX_REACH)


def test_a_second_evaluation_at_one_level_draws_no_line() -> None:
    forecaster, value = Forecaster(1.0, corrector=True), torch.randn(SHAPE)
    forecaster.refreshed(value, 0.7, 0.5)
    forecaster.refreshed(value + 1.0, 0.7, 0.5)
    assert torch.equal(forecaster.skipped(0.5, 0.5), value + 1.0)


def test_selected_pixels_are_the_new_ones() -> None:
    forecaster, fresh = Forecaster(0.5, corrector=False), torch.rand(1, 1, 4, 4) > 0.5
    forecaster.refreshed(line(1.0), 1.0, 0.1)
    forecaster.refreshed(line(0.8), 0.8, 0.1)
    value = torch.full(SHAPE, 9.0, dtype=torch.float64)
    result = forecaster.selected(value, 0.6, 0.1, fresh)
    assert torch.equal(result.masked_select(fresh), value.masked_select(fresh))
    assert torch.allclose(result.masked_select(~fresh), (line(0.8) * 1.5 - line(1.0) * 0.5).masked_select(~fresh))


@pytest.mark.parametrize(("sigma", "following"), [(1.0, 0.5), (14.6, 10.0), (0.1, 0.0)])
def test_weight_is_eulers(sigma: float, following: float) -> None:
    if following == 0.0:
        assert weight_of(sigma, following) == 0.0
    else:
        assert math.isclose(weight_of(sigma, following) * following, 1.0 - following / sigma)


@pytest.mark.parametrize(
    ("schedule", "sampler", "coarse", "amount"),
    [
        (ScheduleConfig(2, forecast=0.2, skipped_steps=1, spaced=1.0), EULER, False, UNGUIDED),
        (ScheduleConfig(speedup=1.5), EULER, False, UNGUIDED),
        (ScheduleConfig(speedup=5.0), EULER, True, 0.0),
        (ScheduleConfig(2, forecast=0.2, skipped_steps=1), EULER, False, 0.2),
        (ScheduleConfig(2, forecast=0.2, skipped_steps=1, spaced=1.0), Sampler(), False, 0.0),
    ],
    ids=["preset", "speedup", "after coarse steps", "by hand", "a sampler without forecast"],
)
def test_without_guidance_what_is_skipped_follows_the_line(schedule: ScheduleConfig, sampler: Sampler, coarse: bool, amount: float) -> None:
    sigmas = (1.0, 0.9, 0.8, 0.7, 0.0)
    skipping = Skipping(sigmas, flow_progress(sigmas), schedule, sampler, lambda sentence, warning: None)
    skipping.unguided()
    if coarse:
        skipping.enlarged(0, 1.0, line(1.0)[..., ::2, ::2], SHAPE[-2:])
    first = int(coarse)
    for step in (first, first + 1):
        skipping.refreshed(step, sigmas[step], line(sigmas[step]))
    step = first + 2
    found = skipping.stand_in(step, sigmas[step])
    assert torch.allclose(found, line(sigmas[step - 1] + amount * (sigmas[step] - sigmas[step - 1])))
