"""How close a picture `[H, W, 3]` in [0, 1] is to a reference: PSNR of the whole, of the objects and of their outlines, SSIM."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from safe_dit_engine.cli.results import ssim
from safe_dit_engine.report import psnr_db

from ..demo_model.oracle import oracle_score
from ..demo_model.scenes import Scene, shape_distance
from .in_turn import Record, Sample, Shot

Measures = dict[str, float | None]
# An outline is this far to either side of a shape's edge, as a share of the picture's side: 3 pixels of 256.
OUTLINE = 3 / 256
# In a mean, an equal picture counts as this many dB: more than any other reaches, and finite.
EQUAL_DB = 100.0


def judge(sample: Sample, reference: Callable[[], Sample], shot: Shot) -> Record:
    """Everything that is kept of one picture beside the dense one of the same shot."""
    dense, scene, picture = reference(), shot.scenes[0], sample.pictures[0]
    return {
        "seconds": sample.seconds,
        "seconds_over_dense": sample.seconds / dense.seconds,
        "rows_computed_share": sample.rows / dense.rows,
        "peak_bytes": sample.peak_bytes,
        "oracle_score": oracle_score(picture, scene),
        "closeness": closeness(picture, dense.pictures[0], scene),
    }


def row_of(records: Sequence[Record], compared: bool) -> dict[str, Any]:
    """Medians of time, means of the rest; `psnr_db_each` in the order of the pictures. Not `compared`: what differs on purpose."""
    pairs = [record["closeness"] for record in records]
    found = mean_closeness(pairs)
    each = [min(pair["psnr_db"], EQUAL_DB) for pair in pairs]
    peaks = [record["peak_bytes"] for record in records if record["peak_bytes"] is not None]
    return {
        "seconds": statistics.median(record["seconds"] for record in records),
        "seconds_over_dense": statistics.median(record["seconds_over_dense"] for record in records),
        "rows_computed_share": statistics.mean(record["rows_computed_share"] for record in records),
        **(found if compared else dict.fromkeys(found)),
        "oracle_score": statistics.mean(record["oracle_score"] for record in records),
        "peak_bytes": max(peaks, default=None),
        "psnr_db_each": each if compared else None,
    }


def closeness(picture: np.ndarray, reference: np.ndarray, scene: Scene) -> Measures:
    """Every measure of one pair."""
    outlines = outline_mask(scene, picture.shape[0])
    # Single precision costs SSIM about 0.0001 and double twenty times the time; equal pictures are said to be equal.
    equal = bool(np.array_equal(picture, reference))
    return {
        "psnr_db": psnr_db(picture, reference),
        "psnr_db_objects": objects_psnr(picture, reference, scene),
        "psnr_db_edges": psnr_db(picture[outlines], reference[outlines]),
        "ssim": 1.0 if equal else ssim(picture, reference),
    }


def mean_closeness(pairs: Sequence[Measures]) -> Measures:
    """Mean of every measure; None where a pair has none. Infinite dB only when all are, else an equal picture counts `EQUAL_DB`."""
    return {key: _mean([pair[key] for pair in pairs]) for key in pairs[0]}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return math.inf if all(map(math.isinf, known)) else float(np.mean([min(value, EQUAL_DB) for value in known]))


def objects_psnr(picture: np.ndarray, reference: np.ndarray, scene: Scene) -> float:
    """PSNR inside the boxes of the scene's shapes."""
    inside = np.zeros(picture.shape[:2], bool)
    for x0, y0, x1, y1 in (scene.boxes() * len(picture)).round().astype(int):
        inside[y0:y1, x0:x1] = True
    return psnr_db(picture[inside], reference[inside])


def outline_mask(scene: Scene, size: int) -> np.ndarray:
    """Bool `[size, size]`: pixels near the outline of a shape."""
    centres = (np.arange(size) + 0.5) / size
    x, y = np.meshgrid(centres, centres)
    near = [np.abs(shape_distance(t.shape, (x - t.x) / t.radius, (y - t.y) / t.radius)) * t.radius < OUTLINE for t in scene.things]
    return np.asarray(np.any(near, axis=0))
