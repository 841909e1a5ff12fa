"""Captioned pictures of simple scenes: the closed world the demo model is trained on.

A `Scene` holds one to three things on a background. It knows its caption (a closed vocabulary, one word = one token), its
picture at any square size, and where its things are. Coordinates run from 0 to 1, x to the right and y down.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from safe_dit_engine.demo.words import COLOURS, SHAPES, STYLES, TEXTURES

PALETTE: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.12, 0.12), "orange": (0.97, 0.52, 0.08), "yellow": (0.97, 0.87, 0.15), "green": (0.16, 0.62, 0.22),
    "cyan": (0.15, 0.80, 0.83), "blue": (0.14, 0.27, 0.85), "purple": (0.53, 0.18, 0.72), "pink": (0.97, 0.52, 0.74),
    "brown": (0.45, 0.27, 0.13), "black": (0.06, 0.06, 0.07), "white": (0.96, 0.96, 0.96), "grey": (0.52, 0.52, 0.54),
}  # fmt: skip
SIZES = {"small": 0.125, "medium": 0.175, "large": 0.23}
PLACES: dict[str, tuple[float, float]] = {
    "top left": (0.24, 0.24), "top": (0.5, 0.24), "top right": (0.76, 0.24),
    "left": (0.24, 0.5), "center": (0.5, 0.5), "right": (0.76, 0.5),
    "bottom left": (0.24, 0.76), "bottom": (0.5, 0.76), "bottom right": (0.76, 0.76),
}
RELATIONS: dict[str, tuple[str, str]] = {
    "left of": ("left", "right"), "right of": ("right", "left"), "above": ("top", "bottom"), "below": ("bottom", "top"),
}
# Colours that never share a picture: an oracle that reads colours back could not tell them apart under shading.
CONFUSABLE = frozenset(frozenset(pair) for pair in (
    ("white", "grey"), ("black", "grey"), ("black", "brown"), ("red", "orange"), ("orange", "brown"), ("red", "brown"),
    ("purple", "pink"),
))
# Every third colour lacks two shapes in training, so that a caption can ask for a new combination.
HELD_OUT_PAIRS = frozenset((colour, SHAPES[(3 * i + k) % 8]) for i, colour in enumerate(COLOURS) if i % 3 == 0 for k in (1, 5))
EVALUATION_SEED = 2**40  # training seeds stay below, held-out scenes start here

_TONE_DEPTH = 0.30
_EXTENT = {"circle": 0.94, "square": 0.86, "triangle": 1.10, "diamond": 1.10, "star": 1.16, "ring": 1.0, "cross": 1.0, "hexagon": 0.96}


@dataclass(frozen=True)
class Thing:
    """One object: words for the caption, and its centre and radius as shares of the picture's side."""

    colour: str
    shape: str
    size: str
    texture: str
    place: str
    x: float
    y: float
    radius: float

    def phrase(self, terse: bool) -> str:
        """The noun phrase without a place, for example `a small striped red ring`."""
        size = "" if terse and self.size == "medium" else self.size
        return _noun(size, "" if self.texture == "plain" else self.texture, self.colour, self.shape)


@dataclass(frozen=True)
class Background:
    """Colour and style of what lies behind the things; `seed` fixes angle, phase and noise."""

    colour: str
    style: str
    seed: int

    def phrase(self, terse: bool) -> str:
        """For example `a checkered blue background`."""
        return _noun("" if terse and self.style == "plain" else self.style, self.colour, "background")


def _noun(*parts: str) -> str:
    words = " ".join(part for part in parts if part)
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


@dataclass(frozen=True)
class Scene:
    """One to three things on a background. With a `relation`, the two things are described relative to each other."""

    things: tuple[Thing, ...]
    background: Background
    relation: str | None = None
    light: float = 0.0
    terse: bool = False

    @property
    def caption(self) -> str:
        """The scene in the closed vocabulary; at most `TEXT_LENGTH` - 2 words, commas included."""
        phrases = [thing.phrase(self.terse) for thing in self.things]
        if self.relation is not None:
            what = f"{phrases[0]} {self.relation} {phrases[1]}"
        else:
            placed = [f"{phrase} at the {thing.place}" for phrase, thing in zip(phrases, self.things)]
            what = placed[0] if len(placed) == 1 else ", ".join(placed[:-1]) + " and " + placed[-1]
        return f"{what} on {self.background.phrase(self.terse)}"

    def boxes(self) -> np.ndarray:
        """Boxes around the things, (n, 4) as x0, y0, x1, y1 in shares of the side."""
        rows = [(t.x, t.y, t.radius * _EXTENT[t.shape]) for t in self.things]
        return np.clip(np.array([(x - r, y - r, x + r, y + r) for x, y, r in rows]), 0.0, 1.0)

    def render(self, size: int) -> np.ndarray:
        """The picture, (size, size, 3) float32 in [0, 1]."""
        picture = _paint_background(self.background, size)
        for thing in self.things:
            _paint_thing(picture, thing, self.light)
        return picture


def random_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene, without the colour and shape pairs in `HELD_OUT_PAIRS`."""
    count = int(rng.choice([1, 2, 3], p=[0.45, 0.37, 0.18]))
    relation = str(rng.choice(list(RELATIONS))) if count == 2 and rng.random() < 0.6 else None
    places = list(RELATIONS[relation]) if relation else [str(p) for p in rng.choice(list(PLACES), count, replace=False)]
    colours = _draw_colours(rng, count + 1)
    sizes = _draw_sizes(rng, places)
    things = tuple(_draw_thing(rng, c, s, p) for c, s, p in zip(colours, sizes, places))
    style = str(rng.choice(STYLES, p=[0.3, 0.2, 0.2, 0.12, 0.18]))
    background = Background(colours[-1], style, int(rng.integers(2**31)))
    return Scene(things, background, relation, float(rng.uniform(0, 2 * np.pi)), bool(rng.random() < 0.5))


def scene_from_seed(seed: int) -> Scene:
    """The scene that belongs to a seed."""
    return random_scene(np.random.default_rng(seed))


def held_out_scenes(count: int, first: int = 0) -> list[Scene]:
    """Scenes from the seed range that training never draws from."""
    return [scene_from_seed(EVALUATION_SEED + first + i) for i in range(count)]


def tone(colour: str, level: np.ndarray | float) -> np.ndarray:
    """A lighter (`level` up to 1) or darker (down to -1) version of a palette colour; adds a last axis of 3."""
    base = np.asarray(PALETTE[colour], np.float32)
    level = np.clip(np.asarray(level, np.float32), -1.0, 1.0)[..., None] * _TONE_DEPTH
    return base * (1 - np.abs(level)) + np.maximum(level, 0.0)


def shape_distance(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Distance to a shape's edge, negative inside, for points (u, v) in units of the shape's radius (v down)."""
    u, v = u / _EXTENT[shape], v / _EXTENT[shape]
    return _DISTANCES[shape](u, v) * _EXTENT[shape]


def _draw_colours(rng: np.random.Generator, count: int) -> list[str]:
    chosen: list[str] = []
    for colour in rng.permutation(COLOURS):
        if all(frozenset((str(colour), other)) not in CONFUSABLE for other in chosen):
            chosen.append(str(colour))
    picked = chosen[:count]
    return [picked[i] for i in rng.permutation(count)]


def _draw_sizes(rng: np.random.Generator, places: list[str]) -> list[str]:
    weights = {1: [0.2, 0.35, 0.45], 2: [0.25, 0.4, 0.35], 3: [0.5, 0.35, 0.15]}[len(places)]
    for _ in range(40):
        sizes = [str(s) for s in rng.choice(list(SIZES), len(places), p=weights)]
        if _fits(places, sizes):
            return sizes
    return ["small"] * len(places)


def _fits(places: list[str], sizes: list[str]) -> bool:
    spots = [(*PLACES[p], SIZES[s]) for p, s in zip(places, sizes)]
    pairs = [(a, b) for i, a in enumerate(spots) for b in spots[:i]]
    return all(np.hypot(a[0] - b[0], a[1] - b[1]) > 1.06 * (a[2] + b[2]) for a, b in pairs)


def _draw_thing(rng: np.random.Generator, colour: str, size: str, place: str) -> Thing:
    shape = str(rng.choice([shape for shape in SHAPES if (colour, shape) not in HELD_OUT_PAIRS]))
    texture = str(rng.choice(TEXTURES, p=[0.55, 0.15, 0.15, 0.15]))
    radius = SIZES[size] * float(rng.uniform(0.94, 1.04))
    x, y = (float(c + rng.uniform(-0.015, 0.015)) for c in PLACES[place])
    low, high = radius + 0.01, 0.99 - radius
    return Thing(colour, shape, size, texture, place, float(np.clip(x, low, high)), float(np.clip(y, low, high)), radius)


def _soft_step(value: np.ndarray, width: float) -> np.ndarray:
    """-1 or 1 with a linear ramp of the given width around zero."""
    return np.clip(value / width, -1.0, 1.0)


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    centres = (np.arange(size, dtype=np.float32) + 0.5) / size
    return centres[None, :], centres[:, None]


def _paint_background(background: Background, size: int) -> np.ndarray:
    rng = np.random.default_rng(background.seed)
    angle, phase, light = rng.choice(8) * np.pi / 4, rng.uniform(0, 1, 2), rng.uniform(-0.12, 0.12)
    x, y = _grid(size)
    along = np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5)
    level = _BACKGROUNDS[background.style](rng, x, y, along, phase) + light
    return np.ascontiguousarray(tone(background.colour, np.broadcast_to(level, (size, size))))


def _checks(x: np.ndarray, y: np.ndarray, phase: np.ndarray) -> np.ndarray:
    waves = np.sin(2 * np.pi * (x * 4 + phase[0])), np.sin(2 * np.pi * (y * 4 + phase[1]))
    return 0.55 * _soft_step(waves[0], 0.15) * _soft_step(waves[1], 0.15)


def _noise(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    cells = rng.uniform(-1, 1, (13, 13)).astype(np.float32)
    # Linear interpolation weights of positions onto the cells, (positions, 13).
    rows, columns = (np.maximum(0.0, 1.0 - np.abs(place.ravel()[:, None] * 12 - np.arange(13, dtype=np.float32))) for place in (y, x))
    return 1.1 * (rows @ cells @ columns.T)


# Tone of every pixel: of the background's own random numbers, x, y, the distance along its angle, and its phase.
_BACKGROUNDS: dict[str, Callable[..., np.ndarray]] = {
    "plain": lambda rng, x, y, along, phase: 0.15 * along,
    "gradient": lambda rng, x, y, along, phase: 1.5 * along,
    "striped": lambda rng, x, y, along, phase: 0.55 * _soft_step(np.sin(2 * np.pi * (along * 7 + phase[0])), 0.25),
    "noisy": lambda rng, x, y, along, phase: _noise(rng, x, y),
    "checkered": lambda rng, x, y, along, phase: _checks(x, y, phase),
}


def _paint_thing(picture: np.ndarray, thing: Thing, light: float) -> None:
    size = picture.shape[0]
    reach = thing.radius * 1.25
    rows, columns = _window(thing.y, reach, size), _window(thing.x, reach, size)
    x, y = _grid(size)
    u, v = (x[:, columns] - thing.x) / thing.radius, (y[rows] - thing.y) / thing.radius
    cover = np.clip(0.5 - shape_distance(thing.shape, u, v) * thing.radius * size, 0.0, 1.0)[..., None]
    shade = 0.28 * (np.cos(light) * u + np.sin(light) * v) + 0.6 * _TEXTURES[thing.texture](u, v)
    picture[rows, columns] = cover * tone(thing.colour, shade) + (1 - cover) * picture[rows, columns]


def _window(centre: float, reach: float, size: int) -> slice:
    return slice(max(0, int((centre - reach) * size)), min(size, int((centre + reach) * size) + 2))


_TEXTURES: dict[str, Callable[..., np.ndarray]] = {
    "plain": lambda u, v: np.zeros((1, 1), np.float32),
    "striped": lambda u, v: _soft_step(np.sin(1.5 * np.pi * (u + v)), 0.3),
    "dotted": lambda u, v: _soft_step(np.cos(2 * np.pi * u / 0.62) + np.cos(2 * np.pi * v / 0.62) - 0.9, 0.4),
    "checkered": lambda u, v: _soft_step(np.sin(2 * np.pi * u / 0.9), 0.25) * _soft_step(np.sin(2 * np.pi * v / 0.9), 0.25),
}


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    inner, fifth = 0.42, 2 * np.pi / 5
    fold = np.abs((np.arctan2(u, -v) + fifth / 2) % fifth - fifth / 2)
    rho = np.hypot(u, v)
    tip, notch = np.array([0.0, 1.0]), inner * np.array([np.sin(fifth / 2), np.cos(fifth / 2)])
    edge = (notch - tip) / np.linalg.norm(notch - tip)
    return edge[0] * (rho * np.cos(fold) - tip[1]) - edge[1] * (rho * np.sin(fold) - tip[0])


_DISTANCES: dict[str, Callable[..., np.ndarray]] = {
    "circle": lambda u, v: np.hypot(u, v) - 1,
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) - 1,
    "triangle": lambda u, v: np.maximum(0.866 * np.abs(u) - 0.5 * (v - 0.25), v - 0.25) - 0.5,
    "diamond": lambda u, v: (np.abs(u) + np.abs(v) - 1) * 0.707,
    "star": _star,
    "ring": lambda u, v: np.abs(np.hypot(u, v) - 0.73) - 0.27,
    "cross": lambda u, v: np.minimum(np.maximum(np.abs(u) - 0.34, np.abs(v) - 1), np.maximum(np.abs(u) - 1, np.abs(v) - 0.34)),
    "hexagon": lambda u, v: np.maximum(np.abs(v), 0.866 * np.abs(u) + 0.5 * np.abs(v)) - 0.866,
}
