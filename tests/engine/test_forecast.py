"""Following the line through the last two anchors."""

from __future__ import annotations

import torch

from safe_dit_engine.cache import BranchCache
from safe_dit_engine.forecast import MAX_REACH, extrapolate, reach


def test_a_straight_path_is_met_exactly() -> None:
    def at(sigma: float) -> torch.Tensor:
        return torch.tensor([2.0, -1.0]) + sigma * torch.tensor([3.0, 0.5])

    ahead = reach(0.5, latest=0.7, previous=0.8)
    assert torch.allclose(extrapolate(at(0.7), at(0.8), ahead), at(0.5))


def test_nothing_moves_at_the_anchor_itself() -> None:
    latest, previous = torch.randn(4), torch.randn(4)
    assert reach(0.7, 0.7, 0.8) == 0.0
    assert extrapolate(latest, previous, 0.0) is latest


def test_two_anchors_close_together_do_not_throw_it_far() -> None:
    assert reach(0.1, latest=0.7, previous=0.7001) == MAX_REACH
    assert reach(0.9, latest=0.7, previous=0.7001) == -MAX_REACH


def test_one_anchor_is_held() -> None:
    latest = torch.randn(4)
    assert reach(0.5, 0.7, None) == 0.0 and reach(0.5, 0.7, 0.7) == 0.0
    assert extrapolate(latest, None, 0.6) is latest


def test_the_cache_keeps_the_anchor_before_through_any_batching() -> None:
    cache = BranchCache()
    cache.store("k", ("a", "b"), torch.tensor([[1.0], [2.0]]), keep_previous=True)
    assert cache.previous("k", ("a", "b")) is None
    cache.store("k", ("b",), torch.tensor([[20.0]]), keep_previous=True)
    cache.store("k", ("a",), torch.tensor([[10.0]]), keep_previous=True)
    previous = cache.previous("k", ("b", "a"))
    assert previous is not None and previous.flatten().tolist() == [2.0, 1.0]
    assert cache.load("k", ("b", "a")).flatten().tolist() == [20.0, 10.0]
    cache.store("k", ("a", "b"), torch.tensor([[100.0], [200.0]]), keep_previous=True)
    previous = cache.previous("k", ("a", "b"))
    assert previous is not None and previous.flatten().tolist() == [10.0, 20.0]
    assert cache.bytes == 16
