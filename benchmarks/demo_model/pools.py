"""Training data made on the fly: ring buffers of rendered pictures and of latents, each item used a few times."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from safe_dit_engine.demo.autoencoder import LATENT_CHANNELS, Autoencoder
from safe_dit_engine.demo.words import TEXT_LENGTH, token_ids

from .scenes import Scene, random_scene

BOX_WEIGHT = 2.0  # extra loss weight on things: they are a small part of the picture and all of the task


def to_tensor(picture: np.ndarray) -> Tensor:
    """(h, w, 3) array -> (3, h, w) tensor."""
    return torch.from_numpy(picture).permute(2, 0, 1).contiguous()


def box_weights(scene: Scene, grid: int) -> Tensor:
    """Loss weight per latent cell, (1, grid, grid): 1 outside the things' boxes, more inside, 1 on average."""
    weights = torch.ones(1, grid, grid)
    for x0, y0, x1, y1 in (scene.boxes() * grid).tolist():
        rows, columns = slice(max(0, int(y0) - 1), int(y1) + 2), slice(max(0, int(x0) - 1), int(x1) + 2)
        weights[:, rows, columns] = 1.0 + BOX_WEIGHT
    return weights / weights.mean()


@dataclass
class Batch:
    """Latents (b, 16, g, g), token ids (b, rows) and loss weights (b, 1, g, g)."""

    latents: Tensor
    ids: Tensor
    weights: Tensor


class LatentPool:
    """Ring buffer of encoded scenes of one size. Every draw replaces its oldest `fresh` items first."""

    def __init__(self, size: int, capacity: int, fresh: int, coder: Autoencoder, seed: int) -> None:
        grid = size // 8
        self.size, self.capacity, self.fresh, self.coder = size, capacity, fresh, coder
        self.rng = np.random.default_rng([seed, size])
        self.latents = torch.zeros(capacity, LATENT_CHANNELS, grid, grid)
        self.ids = torch.zeros(capacity, TEXT_LENGTH, dtype=torch.long)
        self.weights = torch.ones(capacity, 1, grid, grid)
        self.filled = self.drawn = 0

    def _add(self) -> None:
        scene, slot = random_scene(self.rng), self.drawn % self.capacity
        with torch.no_grad():
            self.latents[slot] = self.coder.encode(to_tensor(scene.render(self.size))[None])[0]
        self.ids[slot] = torch.tensor(token_ids(scene.caption))
        self.weights[slot] = box_weights(scene, self.size // 8)
        self.drawn += 1
        self.filled = min(self.drawn, self.capacity)

    def draw(self, count: int) -> Batch:
        """A batch; the first call fills the buffer."""
        for _ in range(self.fresh if self.filled == self.capacity else self.capacity - self.filled):
            self._add()
        rows = torch.from_numpy(self.rng.integers(0, self.filled, count))
        return Batch(self.latents[rows], self.ids[rows], self.weights[rows])


class CropPool:
    """Ring buffer of rendered pictures of mixed sizes, from which square crops are cut."""

    def __init__(self, capacity: int, seed: int, sizes: tuple[int, ...] = (128, 256, 256, 512)) -> None:
        self.rng = np.random.default_rng([seed, 1])
        self.sizes, self.capacity = sizes, capacity
        self.pictures: list[Tensor] = []

    def _add(self) -> None:
        picture = to_tensor(random_scene(self.rng).render(int(self.rng.choice(self.sizes))))
        self.pictures = [*self.pictures[-self.capacity + 1 :], picture]

    def draw(self, count: int, crop: int, fresh: int) -> Tensor:
        """Crops, (count, 3, crop, crop), on 8 px steps."""
        for _ in range(fresh if len(self.pictures) == self.capacity else self.capacity - len(self.pictures)):
            self._add()
        return torch.stack([self._crop(self.pictures[i], crop) for i in self.rng.integers(0, self.capacity, count)])

    def _crop(self, picture: Tensor, crop: int) -> Tensor:
        y, x = (8 * int(self.rng.integers(0, (picture.shape[1] - crop) // 8 + 1)) for _ in range(2))
        return picture[:, y : y + crop, x : x + crop]
