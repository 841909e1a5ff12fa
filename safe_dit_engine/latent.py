"""The latent of a run: what a model call or a prediction must look like to be about the whole of it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LatentShape:
    """`images` latents whose shape ends in `spatial`: (H, W), or (frames, H, W) of a video."""

    images: int
    spatial: tuple[int, ...]

    def is_whole(self, x: Tensor) -> bool:
        """Whether this is a prediction for all of it, not for a window or a tile."""
        frames, *size = (1, *x.shape[2:])[-3:]  # a picture may come with a frame that its latent does not have
        return x.shape[0] == self.images and (frames, *size) == (1, *self.spatial)[-3:]

    def misfit(self, conds: int, x: Tensor) -> str | None:
        """Why a model call on `x` for so many conds is not about all of it, as the end of a sentence; None if it is."""
        if tuple(x.shape[2:]) != self.spatial:
            return "a model call works on a part of the latent: an area of a prompt, a window or a tile"
        if x.shape[0] != conds * self.images:
            return f"a model call holds {x.shape[0]} latents where {conds} x {self.images} were expected"
        return None
