"""Latents as the transformers of `diffusers` are given them: pictures, lists of pictures, or packed, a row for a token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def latents_of(arguments: dict[str, Any]) -> Tensor:
    """The latents a transformer was given, whatever it calls them; a list of pictures is stacked, behind their references."""
    x: Any = arguments.get("hidden_states", arguments.get("x"))
    latents: Tensor = torch.stack([part[-1] if isinstance(part, list) else part for part in x]) if isinstance(x, list) else x
    return latents


def grid_of(arguments: dict[str, Any]) -> tuple[int, int] | None:
    """Rows and columns of the tokens of a packed picture, from what the transformer knows of their places; None: not packed."""
    shapes: Any = arguments.get("img_shapes")
    if shapes is not None:
        while not isinstance(shapes[0], int):
            shapes = shapes[0]
        return shapes[1], shapes[2]
    places: Tensor | None = arguments.get("img_ids")
    if places is None:
        return None
    places = places[0] if places.ndim == 3 else places
    own: Sequence[float] = (places[places[:, 0] == 0].amax(0) + 1).tolist()  # a reference picture's first number is another
    return int(own[1]), int(own[2])


def like(x: Tensor, picture: Tensor) -> Tensor:
    """A picture as a latent is: packed, `[B, tokens, C]`, or without the frame of which a transformer alone knows."""
    if picture.ndim == x.ndim:
        return picture
    return picture.flatten(2).transpose(1, 2) if x.ndim == 3 else picture.squeeze(2)
