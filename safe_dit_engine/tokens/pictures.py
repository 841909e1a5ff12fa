"""Map and partition of a run as mask and picture, at the size of the decoded image; of videos, one for each frame of the latent."""

from __future__ import annotations

import torch
from torch import Tensor

from ..report import RunReport

PIXELS_PER_LATENT = 8
CONTEXT_BRIGHTNESS = 0.35

# Dark blue - teal - yellow: rises evenly in lightness, readable without red and green.
_RAMP = ((0.05, 0.05, 0.25), (0.10, 0.30, 0.50), (0.15, 0.55, 0.55), (0.55, 0.75, 0.35), (1.00, 0.93, 0.30))


def sensitivity_mask(report: RunReport | None, latent_shape: tuple[int, ...]) -> Tensor:
    """Sensitivity `[images, H, W]` in [0, 1]; zeros where there is no map."""
    if report is None or report.sensitivity is None:
        return torch.zeros(_picture_shape(latent_shape))
    return _enlarge(_frames(report.sensitivity.float().cpu().nan_to_num(0.0), latent_shape)[:, None], latent_shape)[:, 0]


def token_map(report: RunReport | None, latent_shape: tuple[int, ...]) -> Tensor:
    """Sensitivity in colour `[images, H, W, 3]`; tokens held between anchors are dimmed. Black where there is no map."""
    if report is None or report.sensitivity is None:
        return torch.zeros((*_picture_shape(latent_shape), 3))
    colours = _coloured(report.sensitivity.float().cpu())
    if report.partition is not None and not report.partition.full:
        sensitive = report.partition.sensitive.cpu().view(-1, *report.partition.grid)
        colours = torch.where(sensitive[..., None], colours, colours * CONTEXT_BRIGHTNESS)
    return _enlarge(_frames(colours, latent_shape).movedim(-1, 1), latent_shape).movedim(1, -1)


def _picture_shape(latent_shape: tuple[int, ...]) -> tuple[int, int, int]:
    return latent_shape[0] * _count(latent_shape), latent_shape[-2] * PIXELS_PER_LATENT, latent_shape[-1] * PIXELS_PER_LATENT


def _count(latent_shape: tuple[int, ...]) -> int:
    return latent_shape[2] if len(latent_shape) == 5 else 1


def _frames(tokens: Tensor, latent_shape: tuple[int, ...]) -> Tensor:
    """A map `[images, frames * h, ...]`, frame under frame, as `[images * frames, h, ...]`."""
    return tokens.unflatten(1, (_count(latent_shape), -1)).flatten(0, 1)


def _enlarge(tokens: Tensor, latent_shape: tuple[int, ...]) -> Tensor:
    size = _picture_shape(latent_shape)[1:]
    return torch.nn.functional.interpolate(tokens, size=size, mode="nearest-exact")


def _coloured(values: Tensor) -> Tensor:
    ramp = torch.tensor(_RAMP)
    place = values.nan_to_num(0.0).clamp(0, 1) * (len(_RAMP) - 1)
    low = place.floor().long().clamp(max=len(_RAMP) - 2)
    part = (place - low)[..., None]
    return ramp[low] * (1 - part) + ramp[low + 1] * part
