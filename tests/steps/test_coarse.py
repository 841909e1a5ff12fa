"""Coarse steps: the smaller latent is one that the model knows, and what becomes of its prediction."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from safe_dit_engine.steps.coarse import LATE, MIN_EDGE, NO_PICTURE, NOT_HERE, TOO_SMALL, coarse_level, enlarge, pool, why_not, with_detail
from safe_dit_engine.steps.levels import flow_parts


def plain_parts(sigma: float) -> tuple[float, float]:
    return 1.0, sigma


@given(st.floats(0.01, 1.0))
def test_flow_matching_levels(sigma: float) -> None:
    level = coarse_level(sigma, flow_parts)
    assert level is not None
    scale = 1.0 / ((1.0 - sigma) + sigma / 2)
    assert level.scale == pytest.approx(scale) and level.sigma == pytest.approx(sigma / 2 * scale)


@given(st.floats(0.01, 100.0))
def test_plain_levels(sigma: float) -> None:
    level = coarse_level(sigma, plain_parts)
    assert level is not None and (level.sigma, level.scale) == pytest.approx((sigma / 2, 1.0))


def test_levels_that_are_not_known() -> None:
    assert coarse_level(0.5, lambda sigma: (1.0 - sigma**2, sigma)) is None
    assert coarse_level(0.5, lambda sigma: (1.0, 0.0)) is None


@pytest.mark.parametrize("parts", [flow_parts, plain_parts], ids=["flow", "plain"])
@pytest.mark.parametrize("size", [(64, 64), (63, 65)])
def test_a_pooled_latent_is_one_of_its_level(parts: object, size: tuple[int, int]) -> None:
    """White noise and a picture that a pooled one holds whole: mean and spread are those of the level."""
    sigma, noise, picture = 0.7, torch.randn(64, 4, *size, generator=torch.Generator().manual_seed(0)), torch.full((64, 4, *size), 3.0)
    signal, amount = parts(sigma)  # type: ignore[operator]
    level = coarse_level(sigma, parts)  # type: ignore[arg-type]
    assert level is not None
    found = pool(signal * picture + amount * noise) * level.scale
    signal_there, noise_there = parts(level.sigma)  # type: ignore[operator]
    assert found.mean() == pytest.approx(3.0 * signal_there, rel=0.01) and found.std() == pytest.approx(noise_there, rel=0.02)


@given(st.integers(2, 9), st.integers(2, 9), st.booleans())
def test_pooling_is_an_average_over_two_by_two(height: int, width: int, video: bool) -> None:
    x = torch.randn(2, 3, *((5,) if video else ()), height, width)
    found = pool(x)
    assert found.shape == (*x.shape[:-2], -(-height // 4) * 2, -(-width // 4) * 2)
    even = x[..., : height // 2 * 2, : width // 2 * 2]
    expected = F.avg_pool2d(even.flatten(0, -3), 2).reshape(*x.shape[:-2], height // 2, width // 2)
    assert torch.allclose(found[..., : height // 2, : width // 2], expected, atol=1e-6)
    assert enlarge(found, (height, width)).shape == x.shape


def test_detail_comes_from_the_last_prediction() -> None:
    last = torch.randn(1, 4, 8, 8)
    assert torch.allclose(with_detail(pool(last), last), last, atol=1e-6), "what has not changed is the last prediction"
    assert torch.allclose(with_detail(pool(last) + 1.0, last), last + 1.0, atol=1e-5)


@pytest.mark.parametrize(
    ("spatial", "reason"),
    [((64, 64), None), ((7, 64, 70), None), ((MIN_EDGE - 1, 80), TOO_SMALL.format(MIN_EDGE)), ((64,), NO_PICTURE)],
)
def test_where_no_step_is_coarse(spatial: tuple[int, ...], reason: str | None) -> None:
    assert why_not(spatial, 0.0, flow_parts) == reason
    assert why_not(spatial, 0.0, None) == NOT_HERE
    assert reason or why_not(spatial, 0.3, flow_parts) == LATE
