"""Sensitivity-weighted classifier-free guidance (paper section "SW-CFG"): stronger where the prompt acts, weaker elsewhere."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .tokens.grid import TokenGrid


@dataclass(frozen=True)
class GuidanceConfig:
    """Guidance scale of tokens with sensitivity 0 (`context_scale`) and 1 (`sensitive_scale`)."""

    context_scale: float = 4.0
    sensitive_scale: float = 5.0

    def __post_init__(self) -> None:
        for name in ("context_scale", "sensitive_scale"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(f"`{name}` is {getattr(self, name)}; a guidance scale is a number, 0 or more.")


def scale_map(config: GuidanceConfig, sensitivity: Tensor) -> Tensor:
    """gamma_i = gamma_c + (gamma_s - gamma_c) * s_i, of the shape of `sensitivity` (values in [0, 1])."""
    return config.context_scale + (config.sensitive_scale - config.context_scale) * sensitivity


def reweight(guided: Tensor, cond: Tensor, uncond: Tensor, scale: float, scales: Tensor) -> Tensor:
    """Move a prediction guided with one `scale` to the map `scales` `[B, 1, H, W]`; `cond`, `uncond`, `guided`: `[B, C, H, W]`.

    Adds (gamma_i - scale) * (cond - uncond), so that what other guidance nodes did to `guided` stays.
    """
    return guided + (scales - scale) * (cond - uncond)


def to_pixels(tokens: Tensor, grid: TokenGrid, edge: int, spatial: tuple[int, ...]) -> Tensor:
    """A map of tokens of `edge` x `edge` latent pixels on those pixels, `[B, 1, *spatial]`; linear between token centres, so that no
    edge of a token shows.

    `spatial`: height and width of the latent, before them its frames where it is a video.
    """
    pixels = torch.nn.functional.interpolate(grid.apart(tokens)[:, None], scale_factor=edge, mode="bilinear", align_corners=False)
    return pixels[..., : spatial[-2], : spatial[-1]].reshape(tokens.shape[0], 1, *spatial)
