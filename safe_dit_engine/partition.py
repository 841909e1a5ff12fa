"""Sensitivity map (and an artist's mask) -> sensitive rows (paper section "PCSP")."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

MIN_KEEP_RATIO = 0.05


class Signal(str, Enum):
    """Where the sensitivity map comes from."""

    ATTENTION = "attention"
    GUIDANCE = "guidance"
    BOTH = "both"
    SPREAD = "spread"

    @property
    def moves(self) -> bool:
        """Whether the partition is renewed during the run, instead of fixed after warm-up."""
        return self is Signal.SPREAD


@dataclass(frozen=True, eq=False)
class PartitionConfig:
    """How image tokens are split into sensitive and context.

    `keep_ratio`: sensitive tokens / image tokens. `warmup_steps`: dense steps that collect evidence. `smoothing`: standard deviation of
    the Gaussian over the token grid, in tokens. `painted`: mask `[B or 1, H, W]` in [0, 1] of any size; tokens under it (mean above one
    half) are always sensitive.
    """

    keep_ratio: float = 0.25
    signal: Signal = Signal.ATTENTION
    warmup_steps: int = 4
    smoothing: float = 0.7
    painted: Tensor | None = None

    def __post_init__(self) -> None:
        if not MIN_KEEP_RATIO <= self.keep_ratio <= 1.0:
            raise ValueError(f"`keep_ratio` is {self.keep_ratio}; give a number from {MIN_KEEP_RATIO} to 1.0 (dense).")
        if self.warmup_steps < 1:
            raise ValueError(f"`warmup_steps` is {self.warmup_steps}; the partition needs at least 1 dense step to look at.")
        if self.smoothing < 0.0:
            raise ValueError(f"`smoothing` is {self.smoothing}; give 0 (off) or a positive number of tokens.")


@dataclass(frozen=True, eq=False)
class Partition:
    """Sensitive rows of a token grid: `rows` int64 `[K]` (same for all images) or `[B, K]`, rising; `sensitive` bool `[B, N]`."""

    rows: Tensor
    sensitive: Tensor
    grid: tuple[int, int]

    @property
    def kept(self) -> int:
        """Sensitive tokens of an image."""
        return self.rows.shape[-1]

    @property
    def full(self) -> bool:
        """Whether every token is sensitive, so that there is nothing to save."""
        return self.kept == self.grid[0] * self.grid[1]

    def pixels(self, patch: int, height: int, width: int) -> Tensor:
        """Bool `[B, 1, height, width]`: latent pixels that belong to sensitive tokens of `patch` x `patch` pixels."""
        grid = self.sensitive.view(-1, 1, *self.grid)
        return grid.repeat_interleave(patch, -2).repeat_interleave(patch, -1)[..., :height, :width]


def select_rows(sensitivity: Tensor, keep_ratio: float, forced: Tensor | None = None) -> Partition:
    """Top tokens of `sensitivity` `[B, h, w]`; tokens of `forced` (bool, same shape) are always in, growing the share if they must."""
    batch, height, width = sensitivity.shape
    flat = sensitivity.reshape(batch, -1)
    count = math.ceil(keep_ratio * flat.shape[1])
    if forced is not None:
        painted = forced.reshape(batch, -1)
        flat = flat.masked_fill(painted, float("inf"))
        count = max(count, int(painted.sum(1).max()))
    rows = flat.topk(count, dim=1).indices.sort(dim=1).values
    sensitive = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, rows, True)
    same = bool((rows == rows[:1]).all())
    return Partition(rows[0] if same else rows, sensitive, (height, width))


def painted_tokens(painted: Tensor, batch: int, grid: tuple[int, int]) -> Tensor:
    """Bool `[batch, h, w]`: tokens whose mean under the painted mask `[..., H, W]` is above one half; masks repeat over the batch."""
    pooled = torch.nn.functional.adaptive_avg_pool2d(painted.float().reshape(-1, 1, *painted.shape[-2:]), grid)[:, 0]
    repeats = math.ceil(batch / pooled.shape[0])
    return pooled.repeat(repeats, 1, 1)[:batch] > 0.5
