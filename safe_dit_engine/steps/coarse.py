"""Coarse steps: the whole model runs on a picture of a quarter of the tokens.

The early steps of a run settle layout and colour, not detail. A latent x = signal * picture + noise level * noise is averaged over 2 x 2
pixels, which halves the noise and keeps the picture: scaled, it is a latent at a lower noise level, and a valid input there. The prediction
is enlarged; what a small picture cannot hold comes from the last prediction of full size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .levels import BEGIN

# Share of the image tokens that a coarse step computes.
SHARE = 0.25
# On half of so many latent pixels a side models still draw something; on fewer, some fail (PixArt).
MIN_EDGE = 64

LATE = "the run does not begin in noise, and what it begins with would lose its detail"
TOO_SMALL = "the picture is smaller than {0} x {0} latent pixels"
NO_PICTURE = "the latent has no two sides to make smaller"
NOT_HERE = (
    "in diffusers that takes a flow-matching scheduler, a latent that is not packed, with sides of a multiple of 4, and nothing else of "
    "its size"
)
PART = "the model is asked about a part of the latent"
UNKNOWN_LEVELS = "how this model counts noise is not known, so a smaller picture has no noise level"

# Signal and noise that a latent holds at a noise level.
Parts = Callable[[float], tuple[float, float]]


@dataclass(frozen=True)
class CoarseLevel:
    """Noise level `sigma` of a pooled latent, once it is multiplied by `scale`."""

    sigma: float
    scale: float


def coarse_level(sigma: float, parts: Parts) -> CoarseLevel | None:
    """The level at which noise / signal is half of what it is at `sigma`; None where levels are neither those of flow matching,
    x = (1 - sigma) * picture + sigma * noise, nor plain, x = picture + sigma * noise."""
    signal, noise = parts(sigma)
    for lower in (sigma / 2, sigma / (2 - sigma) if sigma <= 1.0 else sigma):
        signal_there, noise_there = parts(lower)
        if noise > 0 and math.isclose(2 * noise_there * signal, noise * signal_there, rel_tol=1e-4, abs_tol=1e-6):
            return CoarseLevel(lower, 2 * noise_there / noise)
    return None


def why_not(spatial: tuple[int, ...], begin: float, parts: Parts | None, smallest: int = 1) -> str | None:
    """Why no coarse step is possible in a run from the progress `begin` on, on a latent whose shape ends in `spatial`, as the end of a
    sentence; None if one is.

    `parts`: None where the host cannot run one. `smallest`: fewest pixels a side that the model runs on.
    """
    if parts is None:
        return NOT_HERE
    if len(spatial) not in (2, 3):
        return NO_PICTURE
    if begin > BEGIN:
        return LATE
    edge = max(MIN_EDGE, 2 * smallest)
    return TOO_SMALL.format(edge) if min(spatial[-2:]) < edge else None


def shrink(x: Tensor, sigma: float, parts: Parts, reason_at: Callable[[float], str | None]) -> tuple[Tensor, float] | str:
    """A latent `[..., H, W]` at noise level `sigma` on a quarter of the pixels, and its level; or why not, as the end of a sentence.

    `reason_at`: why the host cannot run it at a noise level, as the end of a sentence; None if it can.
    """
    level = coarse_level(sigma, parts)
    if level is None:
        return UNKNOWN_LEVELS
    return reason_at(level.sigma) or (pool(x) * level.scale, level.sigma)


def pool(x: Tensor) -> Tensor:
    """`x` `[..., H, W]` averaged over 2 x 2 pixels, on an even number of pixels a side: not all models take an odd one.

    What is missing at the end is the average of the last two pixels once more.
    """
    return _halved(_halved(x, -1), -2)


def _halved(x: Tensor, side: int) -> Tensor:
    length = x.shape[side]
    first = torch.arange(0, -(-length // 4) * 4, 2, device=x.device).clamp_max(length - 2)
    return (x.index_select(side, first) + x.index_select(side, first + 1)) / 2


def enlarge(x: Tensor, size: tuple[int, int]) -> Tensor:
    """A pooled tensor `[..., h, w]` at the `size` it had."""
    pictures = x.reshape(-1, 1, *x.shape[-2:])
    large = F.interpolate(pictures, scale_factor=2, mode="bicubic")[..., : size[0], : size[1]]
    return large.reshape(*x.shape[:-2], *size)


def with_detail(coarse: Tensor, last: Tensor) -> Tensor:
    """A coarse prediction enlarged, with what the `last` prediction `[..., H, W]` holds beyond a pooled one's reach."""
    size = (last.shape[-2], last.shape[-1])
    return enlarge(coarse - pool(last), size) + last
