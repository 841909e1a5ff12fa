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

# Share of the image tokens that a coarse step computes.
SHARE = 0.25
# Models draw nothing of use on fewer latent pixels a side than a coarse picture has then (docs/experiments.md, part 27).
MIN_EDGE = 32

TOO_SMALL = f"the picture is smaller than {MIN_EDGE} x {MIN_EDGE} latent pixels"
NO_PICTURE = "the latent has no two sides to make smaller"
NOT_HERE = "pipelines of diffusers hand the model a latent whose size they alone know"
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


def why_not(spatial: tuple[int, ...], parts: Parts | None) -> str | None:
    """Why no coarse step is possible on a latent whose shape ends in `spatial`, as the end of a sentence; None if one is.

    `parts`: None where the host cannot run one.
    """
    if parts is None:
        return NOT_HERE
    if len(spatial) not in (2, 3):
        return NO_PICTURE
    return TOO_SMALL if min(spatial[-2:]) < MIN_EDGE else None


def shrink(x: Tensor, sigma: float, parts: Parts, why_not: Callable[[float], str | None]) -> tuple[Tensor, float] | str:
    """A latent `[..., H, W]` at noise level `sigma` on a quarter of the pixels, and its level; or why not, as the end of a sentence.

    `why_not`: asked what speaks against that level.
    """
    level = coarse_level(sigma, parts)
    if level is None:
        return UNKNOWN_LEVELS
    return why_not(level.sigma) or (pool(x) * level.scale, level.sigma)


def pool(x: Tensor) -> Tensor:
    """`x` `[..., H, W]` averaged over 2 x 2 pixels; of an odd side the last pixel is averaged with the one before, which counts twice."""
    return _halved(_halved(x, -1), -2)


def _halved(x: Tensor, side: int) -> Tensor:
    length = x.shape[side]
    first = torch.arange(0, length, 2, device=x.device).clamp_max(max(length - 2, 0))
    return (x.index_select(side, first) + x.index_select(side, (first + 1).clamp_max(length - 1))) / 2


def enlarge(x: Tensor, size: tuple[int, int]) -> Tensor:
    """A pooled tensor `[..., h, w]` at the `size` it had."""
    pictures = x.reshape(-1, 1, *x.shape[-2:])
    large = F.interpolate(pictures, scale_factor=2, mode="bicubic")[..., : size[0], : size[1]]
    return large.reshape(*x.shape[:-2], *size)


def with_detail(coarse: Tensor, last: Tensor) -> Tensor:
    """A coarse prediction enlarged, with what the `last` prediction `[..., H, W]` holds beyond a pooled one's reach."""
    size = (last.shape[-2], last.shape[-1])
    return enlarge(coarse - pool(last), size) + last
