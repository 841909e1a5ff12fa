"""Map and partition of a run as mask and picture, at the size of the decoded image; of videos, one for each frame of the latent."""

from __future__ import annotations

import torch
from torch import Tensor

from .grid import frames_in
from .partition import Partition

PIXELS_PER_LATENT = 8
CONTEXT_BRIGHTNESS = 0.35

# Dark blue - teal - yellow: rises evenly in lightness, readable without red and green.
_RAMP = ((0.05, 0.05, 0.25), (0.10, 0.30, 0.50), (0.15, 0.55, 0.55), (0.55, 0.75, 0.35), (1.00, 0.93, 0.30))


def sensitivity_mask(sensitivity: Tensor | None, partition: Partition | None, latent_shape: tuple[int, ...]) -> Tensor:
    """Sensitivity `[images, H, W]` in [0, 1]; zeros where there is no map."""
    if sensitivity is None or partition is None:
        return torch.zeros(_picture_shape(latent_shape))
    tokens = partition.grid.apart(sensitivity.float().cpu().nan_to_num(0.0))
    return _enlarge(tokens[:, None], latent_shape)[:, 0]


def token_map(sensitivity: Tensor | None, partition: Partition | None, latent_shape: tuple[int, ...]) -> Tensor:
    """Sensitivity in colour `[images, H, W, 3]`; tokens of the context are dimmed. Black where there is no map."""
    if sensitivity is None or partition is None:
        return torch.zeros((*_picture_shape(latent_shape), 3))
    colours = _coloured(sensitivity.float().cpu())
    grid = partition.grid
    if not partition.full:
        sensitive = partition.sensitive.cpu().view(-1, *grid.shape)
        colours = torch.where(sensitive[..., None], colours, colours * CONTEXT_BRIGHTNESS)
    return _enlarge(grid.apart(colours).movedim(-1, 1), latent_shape).movedim(1, -1)


def _picture_shape(latent_shape: tuple[int, ...]) -> tuple[int, int, int]:
    return latent_shape[0] * frames_in(latent_shape[2:]), latent_shape[-2] * PIXELS_PER_LATENT, latent_shape[-1] * PIXELS_PER_LATENT


def _enlarge(tokens: Tensor, latent_shape: tuple[int, ...]) -> Tensor:
    size = _picture_shape(latent_shape)[1:]
    return torch.nn.functional.interpolate(tokens, size=size, mode="nearest-exact")


def _coloured(values: Tensor) -> Tensor:
    ramp = torch.tensor(_RAMP)
    place = values.nan_to_num(0.0).clamp(0, 1) * (len(_RAMP) - 1)
    low = place.floor().long().clamp(max=len(_RAMP) - 2)
    part = (place - low)[..., None]
    return ramp[low] * (1 - part) + ramp[low + 1] * part
