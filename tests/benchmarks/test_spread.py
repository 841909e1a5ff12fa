"""The partition that moves."""

from __future__ import annotations

import torch

from benchmarks.measure.spread import SpreadPolicy
from safe_dit_engine.tokens.grid import TokenGrid

GRID = TokenGrid(1, 4, 4)


def test_the_token_with_uneven_noise_scores_highest() -> None:
    noise = torch.zeros(1, 2, 8, 8)
    noise[0, 0, 2, 4] = 5.0
    policy = SpreadPolicy()
    policy.observe(noise, None, GRID)
    assert _place(policy, 1 * 4 + 2) == 15


def test_a_token_left_out_gains_until_it_is_computed() -> None:
    noise = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    policy, computed = SpreadPolicy(), torch.ones(1, 16, dtype=torch.bool)
    computed[0, 5] = False
    policy.observe(noise, None, GRID)
    scores = []
    for _ in range(3):
        policy.observe(noise, computed, GRID)
        scores.append(_place(policy, 5))
    assert scores[0] < scores[2] or scores[2] == 15
    policy.observe(noise, None, GRID)
    assert _place(policy, 5) <= scores[0]


def _place(policy: SpreadPolicy, token: int) -> int:
    assert policy.score is not None
    return int(policy.score.flatten().argsort().argsort()[token])
