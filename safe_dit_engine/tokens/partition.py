"""Sensitivity map (and an artist's mask and painting) -> sensitive rows (paper section "PCSP")."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from .focus import FocusRequest
from .grid import TokenGrid
from .painting import CONTEXT, SENSITIVE, kept_tokens, resize_painting

MIN_KEEP_RATIO = 0.05


class Signal(str, Enum):
    """Where the sensitivity map comes from."""

    ATTENTION = "attention"
    GUIDANCE = "guidance"
    BOTH = "both"


@dataclass(frozen=True, eq=False)
class PartitionConfig:
    """How image tokens are split into sensitive and context.

    `keep_ratio`: sensitive tokens / image tokens. `warmup_steps`: full steps that collect evidence. `smoothing`: standard deviation of
    the Gaussian over the token grid, in tokens. `painted`: mask `[B or 1, H, W]` in [0, 1] of any size; tokens under it (mean above one
    half) are always sensitive. `painting`: tokens painted on the map, uint8 `[h, w]` of any grid (painting.py); where the two disagree,
    the painting holds. `focus`: words of the prompt whose attention alone makes the map.
    """

    keep_ratio: float = 0.25
    signal: Signal = Signal.ATTENTION
    warmup_steps: int = 4
    smoothing: float = 0.7
    painted: Tensor | None = None
    painting: Tensor | None = None
    focus: FocusRequest | None = None

    def __post_init__(self) -> None:
        if not MIN_KEEP_RATIO <= self.keep_ratio <= 1.0:
            raise ValueError(f"`keep_ratio` is {self.keep_ratio}; give a number from {MIN_KEEP_RATIO} to 1.0 (all of them).")
        if self.warmup_steps < 1:
            raise ValueError(f"`warmup_steps` is {self.warmup_steps}; the partition needs at least 1 full step to look at.")
        if not 0.0 <= self.smoothing < math.inf:
            raise ValueError(f"`smoothing` is {self.smoothing}; give 0 (off) or a positive number of tokens.")


@dataclass(frozen=True, eq=False)
class Partition:
    """Sensitive rows of a token grid: `rows` int64 `[K]` (same for all images) or `[B, K]`, rising; `sensitive` bool `[B, N]`."""

    rows: Tensor
    sensitive: Tensor
    grid: TokenGrid

    @property
    def kept(self) -> int:
        """Sensitive tokens of an image."""
        return self.rows.shape[-1]

    @property
    def full(self) -> bool:
        """Whether every token is sensitive, so that there is nothing to save."""
        return self.kept == self.grid.tokens

    def cpu(self) -> Partition:
        """The same in system memory."""
        return Partition(self.rows.cpu(), self.sensitive.cpu(), self.grid)

    def pixels(self, edge: int, spatial: tuple[int, ...]) -> Tensor:
        """Bool `[B, 1, *spatial]`: latent pixels that belong to sensitive tokens of `edge` x `edge` pixels.

        `spatial`: height and width of the latent, before them its frames where it is a video.
        """
        tokens = self.grid.apart(self.sensitive.view(-1, *self.grid.shape))
        pixels = tokens.repeat_interleave(edge, -2).repeat_interleave(edge, -1)[..., : spatial[-2], : spatial[-1]]
        return pixels.reshape(self.sensitive.shape[0], 1, *spatial)


def select_rows(
    sensitivity: Tensor, grid: TokenGrid, keep_ratio: float, forced: Tensor | None = None, barred: Tensor | None = None
) -> Partition:
    """Top tokens of the map `sensitivity` `[B, h, w]` of a `grid`.

    Tokens of `forced` (bool, same shape) are always in, growing the share if they must; those of `barred` (bool `[h, w]`, none of them
    forced) never, shrinking it if they must. If all are barred, the top one is in all the same: a step computes at least one.
    """
    flat = sensitivity.flatten(1)
    most_forced = 0
    if forced is not None:
        painted = forced.flatten(1)
        flat = flat.masked_fill(painted, float("inf"))
        most_forced = int(painted.sum(1).max())
    if barred is not None and not barred.all():
        flat = flat.masked_fill(barred.reshape(1, -1), float("-inf"))
    count = kept_tokens(flat.shape[1], keep_ratio, most_forced, 0 if barred is None else int(barred.sum()))
    rows = flat.topk(count, dim=1).indices.sort(dim=1).values
    sensitive = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, rows, True)
    same = bool((rows == rows[:1]).all())
    return Partition(rows[0] if same else rows, sensitive, grid)


def forced_tokens(
    config: PartitionConfig, batch: int, grid: TokenGrid, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """What mask and painting force on a grid: tokens always in, bool `[batch, h, w]`, and tokens never in, bool `[h, w]`; None: none."""
    forced = None if config.painted is None else painted_tokens(config.painted.to(device), batch, grid)
    if config.painting is None:
        return forced, None
    tokens = resize_painting(config.painting.to(device), grid.shape)
    sensitive, barred = (tokens == SENSITIVE).expand(batch, -1, -1), tokens == CONTEXT
    return (sensitive if forced is None else (forced | sensitive) & ~barred), barred


def painted_tokens(painted: Tensor, batch: int, grid: TokenGrid) -> Tensor:
    """Bool `[batch, h, w]`: tokens whose mean under the painted mask `[..., H, W]` is above one half.

    Masks repeat over the batch, and over the frames of a video.
    """
    pixels = painted.float().reshape(-1, 1, *painted.shape[-2:])
    pooled = torch.nn.functional.adaptive_avg_pool2d(pixels, (grid.rows, grid.columns))[:, 0]
    repeats = math.ceil(batch / pooled.shape[0])
    return pooled.repeat(repeats, grid.frames, 1)[:batch] > 0.5
