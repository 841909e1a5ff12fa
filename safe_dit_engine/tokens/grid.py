"""The grid of image tokens: the one place that counts frames, rows and columns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def frames_in(spatial: tuple[int, ...]) -> int:
    """Frames of a latent whose shape ends in `spatial`: (H, W) of a picture, or (frames, H, W) of a video."""
    return spatial[0] if len(spatial) == 3 else 1


@dataclass(frozen=True)
class TokenGrid:
    """`frames` of `rows` x `columns` tokens. A map of them is `[B, frames * rows, columns]`: frame under frame."""

    frames: int
    rows: int
    columns: int

    @classmethod
    def of_latent(cls, spatial: tuple[int, ...], edge: int) -> TokenGrid:
        """Grid of a latent whose shape ends in `spatial`, with tokens of `edge` x `edge` latent pixels, padded up to whole tokens."""
        return cls(frames_in(spatial), -(-spatial[-2] // edge), -(-spatial[-1] // edge))

    @property
    def tokens(self) -> int:
        """How many there are."""
        return self.frames * self.rows * self.columns

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of a map."""
        return self.frames * self.rows, self.columns

    def pool(self, pixels: Tensor) -> Tensor:
        """Mean over a token's pixels: `[B, H, W]`, or of videos `[B, frames, H, W]`, as a map."""
        single = pixels.reshape(-1, 1, *pixels.shape[-2:])
        pooled = torch.nn.functional.adaptive_avg_pool2d(single, (self.rows, self.columns))
        return pooled.reshape(-1, *self.shape)

    def apart(self, tokens: Tensor) -> Tensor:
        """A map `[B, frames * rows, columns, ...]` with its frames apart: `[B * frames, rows, columns, ...]`."""
        return tokens.reshape(-1, self.rows, *tokens.shape[2:])
