"""A partition that moves: the rule of region-adaptive sampling (RAS, arXiv 2502.10389), to compare ours with."""

from __future__ import annotations

import torch
from torch import Tensor

from safe_dit_engine.tokens.grid import TokenGrid
from safe_dit_engine.tokens.sensitivity import normalise

STARVATION = 0.1


class SpreadPolicy:
    """Score of a token: spread of its predicted noise, times exp(0.1 x the steps it was left out since the last refresh)."""

    def __init__(self) -> None:
        self.score: Tensor | None = None
        self._left_out: Tensor | None = None

    def observe(self, noise: Tensor, computed: Tensor | None, grid: TokenGrid) -> None:
        """After every evaluation: predicted noise `[B, C, H, W]`, of videos `[B, C, frames, H, W]`; the tokens computed, bool `[B, N]`
        (None: all)."""
        mean, square = (grid.pool(x.mean(1)) for x in (noise, noise.square()))
        spread = (square - mean.square()).clamp_min(0.0).sqrt()
        if computed is None or self._left_out is None:
            self._left_out = torch.zeros_like(spread)
        else:
            self._left_out = (self._left_out + 1.0) * ~computed.view(-1, *grid.shape)
        self.score = normalise(spread * (STARVATION * self._left_out).exp(), outliers=0.0)
