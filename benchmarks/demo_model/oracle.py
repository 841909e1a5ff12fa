"""Reads a scene back from a picture: is each thing there, in its colour, in its shape, at its place?

No learning involved. Pixels are named by the nearest palette tone, the largest connected patch of a thing's colour is the
thing, and its outline is compared with all eight shapes drawn at the same area and centre.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage  # type: ignore[import-untyped]

from safe_dit_engine.demo.words import COLOURS, SHAPES

from .scenes import PLACES, Scene, Thing, shape_distance, tone

GRID = 160  # pictures are judged at this size
PLACE_TOLERANCE = 0.14  # just above half the spacing of neighbouring places
AREA_RANGE = (0.3, 3.0)  # found area over the asked one
_LEVELS = np.linspace(-0.95, 0.95, 9)


class Verdict(NamedTuple):
    """What holds for one thing. Shape and position can only be right where the colour was found."""

    colour: bool
    shape: bool
    position: bool


@dataclass(frozen=True)
class Rates:
    """Shares of things with the attribute right; `score` is the mean of the three, `complete` needs all of them at once."""

    colour: float
    shape: float
    position: float
    complete: float
    things: int

    @property
    def score(self) -> float:
        """The `oracle_score` of reports, 0 to 1."""
        return (self.colour + self.shape + self.position) / 3

    def __str__(self) -> str:
        parts = f"colour {self.colour:.2f}, shape {self.shape:.2f}, position {self.position:.2f}, all {self.complete:.2f}"
        return f"{parts}, oracle_score {self.score:.3f} ({self.things} things)"


@dataclass(frozen=True)
class Patch:
    """A connected region of one colour: mask (GRID, GRID), area as a share of the picture and its centre."""

    mask: np.ndarray
    area: float
    x: float
    y: float


def judge(picture: np.ndarray, scene: Scene) -> list[Verdict]:
    """One verdict per thing of the scene for a picture (h, w, 3) in [0, 1]."""
    names = name_pixels(picture)
    patches = [find_patch(names, thing) for thing in scene.things]
    placed = _placed(scene, patches)
    return [
        Verdict(patch is not None, patch is not None and read_shape(patch) == thing.shape, position)
        for thing, patch, position in zip(scene.things, patches, placed)
    ]


def judge_pictures(pictures: Sequence[np.ndarray] | np.ndarray, scenes: Sequence[Scene]) -> Rates:
    """Rates over all things of all pictures, (n, h, w, 3)."""
    table = np.array([verdict for picture, scene in zip(pictures, scenes, strict=True) for verdict in judge(picture, scene)], float)
    colour, shape, position = table.mean(axis=0).tolist()
    return Rates(colour, shape, position, float(table.all(axis=1).mean()), len(table))


def oracle_score(picture: np.ndarray, scene: Scene) -> float:
    """Share of the scene's attributes (colour, shape and position of every thing) that a picture has right."""
    return judge_pictures([picture], [scene]).score


def name_pixels(picture: np.ndarray) -> np.ndarray:
    """Index into `COLOURS` per pixel of the picture at judging size, (GRID, GRID)."""
    small = _resize(np.clip(np.asarray(picture, np.float32), 0, 1))
    gallery = _gallery()
    squares = (gallery**2).sum(1) - 2 * small.reshape(-1, 3) @ gallery.T
    return (squares.argmin(1) // len(_LEVELS)).reshape(GRID, GRID)


def find_patch(names: np.ndarray, thing: Thing) -> Patch | None:
    """The largest connected patch of a thing's colour, if its area is plausible."""
    mask = largest_component(names == COLOURS.index(thing.colour))
    area = float(mask.mean())
    wanted = _template(thing.shape)[0] * thing.radius**2
    if not AREA_RANGE[0] * wanted <= area <= AREA_RANGE[1] * wanted:
        return None
    rows, columns = np.nonzero(mask)
    return Patch(mask, area, float(columns.mean() + 0.5) / GRID, float(rows.mean() + 0.5) / GRID)


def read_shape(patch: Patch) -> str:
    """The shape whose template overlaps the patch best."""
    return max(SHAPES, key=lambda shape: _overlap(patch, shape))


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest 4-connected part of a boolean mask."""
    labels, count = ndimage.label(mask)
    return np.asarray(labels == np.bincount(labels.ravel())[1:].argmax() + 1) if count else mask


def _placed(scene: Scene, patches: list[Patch | None]) -> list[bool]:
    if scene.relation is None:
        return [patch is not None and _near(patch, thing.place) for patch, thing in zip(patches, scene.things)]
    first, second = patches
    if first is None or second is None:
        return [False, False]
    across, down = second.x - first.x, second.y - first.y
    ways = {"left of": (across, down), "right of": (-across, down), "above": (down, across), "below": (-down, across)}
    reach, sideways = ways[scene.relation]
    return [bool(reach > 0.15 and reach > abs(sideways))] * 2


def _near(patch: Patch, place: str) -> bool:
    x, y = PLACES[place]
    return max(abs(patch.x - x), abs(patch.y - y)) < PLACE_TOLERANCE


def _overlap(patch: Patch, shape: str) -> float:
    """Intersection over union with a template of equal area and centre of mass."""
    area, centre_v = _template(shape)
    radius = (patch.area / area) ** 0.5
    grid = (np.arange(GRID) + 0.5) / GRID
    u, v = (grid[None, :] - patch.x) / radius, (grid[:, None] - patch.y) / radius + centre_v
    drawn = shape_distance(shape, *np.broadcast_arrays(u, v)) < 0
    return float((drawn & patch.mask).sum() / (drawn | patch.mask).sum())


@cache
def _template(shape: str) -> tuple[float, float]:
    """Area of a shape of radius 1, and the height of its centre of mass."""
    axis = np.linspace(-1.5, 1.5, 601)
    inside = shape_distance(shape, *np.meshgrid(axis, axis)) < 0
    return float(inside.mean() * 9), float((inside * axis[:, None]).sum() / inside.sum())


@cache
def _gallery() -> np.ndarray:
    """Tones of every palette colour, (colours x levels, 3)."""
    return np.concatenate([tone(colour, _LEVELS) for colour in COLOURS])


def _resize(picture: np.ndarray) -> np.ndarray:
    if picture.shape[:2] == (GRID, GRID):
        return picture
    channels = [Image.fromarray(np.ascontiguousarray(picture[..., c])).resize((GRID, GRID), Image.Resampling.BOX) for c in range(3)]
    return np.stack([np.asarray(c) for c in channels], axis=-1)
