"""What single pictures were judged to be, so that a stopped measurement goes on where it stood, and the rows made from it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..demo_model.oracle import oracle_score
from ..demo_model.scenes import Scene
from .closeness import EQUAL_DB, closeness, mean_closeness

Record = dict[str, Any]
# A measurement of another processor, device or torch is another measurement.
SAME_MACHINE = ("processor", "device", "torch")


@dataclass(frozen=True)
class Cell:
    """What the rows of one comparison share."""

    size: int
    steps: int
    sampler: str


@dataclass(frozen=True)
class Shot:
    """One picture to make."""

    scene: Scene
    seed: int


@dataclass(frozen=True)
class Sample:
    """One picture made."""

    picture: np.ndarray
    seconds: float
    rows: int
    peak_bytes: int | None


class Named(Protocol):
    """One setting of one method."""

    @property
    def name(self) -> str: ...

    @property
    def setting(self) -> str: ...


class Journal:
    """A record for each picture made: in memory, and with a path in a file as well, a JSON line each.

    With `resume`, what the file has from this machine is kept; without it, or from another machine, it begins anew.
    """

    def __init__(self, path: Path | None = None, machine: Mapping[str, Any] | None = None, resume: bool = False) -> None:
        self._path = path
        self._records: dict[tuple[Any, ...], Record] = {}
        if path is not None:
            head = json.dumps({key: (machine or {}).get(key) for key in SAME_MACHINE}) + "\n"
            lines = _whole_lines(path) if resume else []
            lines = lines if lines[:1] == [head] else [head]
            self._records = {tuple(key): record for key, record in map(json.loads, lines[1:])}
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(lines), encoding="utf-8")

    def has(self, method: Named, cell: Cell, shot: Shot) -> bool:
        """Whether this picture has been made and judged."""
        return _key(method, cell, shot) in self._records

    def add(self, method: Named, cell: Cell, shot: Shot, sample: Sample, reference: Sample) -> None:
        """Judge a picture beside the dense one of the same shot; only figures are kept."""
        key = _key(method, cell, shot)
        self._records[key] = judged(sample, reference, shot.scene)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([key, self._records[key]]) + "\n")

    def row(self, method: Named, cell: Cell, shots: Sequence[Shot], compared: bool) -> dict[str, Any]:
        """What the pictures of one method come to."""
        return row_of([self._records[_key(method, cell, shot)] for shot in shots], compared)


def _whole_lines(path: Path) -> list[str]:
    """The lines of a file, without a last one that was cut short."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    return [line for line in lines if line.endswith("\n")]


def _key(method: Named, cell: Cell, shot: Shot) -> tuple[Any, ...]:
    return (method.name, method.setting, cell.size, cell.steps, cell.sampler, shot.scene.caption, shot.seed)


def judged(sample: Sample, reference: Sample, scene: Scene) -> Record:
    """Everything that is kept of a picture."""
    return {
        "seconds": sample.seconds,
        "seconds_over_dense": sample.seconds / reference.seconds,
        "rows_computed_share": sample.rows / reference.rows,
        "peak_bytes": sample.peak_bytes,
        "oracle_score": oracle_score(sample.picture, scene),
        "closeness": closeness(sample.picture, reference.picture, scene),
    }


def row_of(records: Sequence[Record], compared: bool) -> dict[str, Any]:
    """Medians of time, means of the rest; `psnr_db_each` in the order of the pictures."""
    pairs = [record["closeness"] for record in records]
    found = mean_closeness(pairs)
    each = [round(min(pair["psnr_db"], EQUAL_DB), 3) for pair in pairs]
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
