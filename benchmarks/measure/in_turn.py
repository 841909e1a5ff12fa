"""The loop that every bench of methods shares: all methods of a cell in turn, shot by shot, so that a slow moment of the machine hits all.

What a bench must say: how one method makes one shot, and what is kept of it. Only that record stays, in a journal that can be resumed.
"""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ..command import log
from ..demo_model.scenes import Scene
from .methods import Method

Record = dict[str, Any]
# `make(method, cell, shot)`, and `judge(sample, reference, shot)`, where `reference()` is the dense sample of the same shot.
Make = Callable[[Method, Any, Any], Any]
Judge = Callable[[Any, Callable[[], Any], Any], Record]

# A measurement of another processor, device or version is another measurement.
SAME_MACHINE = ("processor", "device", "torch", "diffusers")


class Unsupported(Exception):
    """A method does not run on a model; the message is one sentence that says why."""


class OutOfMemory(Unsupported):
    """There is no room for a sample, and there will be none when the measurement is resumed."""


@dataclass(frozen=True)
class Cell:
    """What the rows of one comparison share: square pictures of `size` pixels in so many steps."""

    size: int
    steps: int
    sampler: str

    def described(self) -> dict[str, Any]:
        """What every row says of it."""
        return {"resolution": f"{self.size}x{self.size}", "steps": self.steps, "sampler": self.sampler}


@dataclass(frozen=True)
class Shot:
    """One picture to make."""

    scene: Scene
    seed: int

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells it from others in a journal."""
        return (self.scene.caption, self.seed)


@dataclass(frozen=True)
class Sample:
    """One picture made: `[H, W, 3]` in [0, 1]."""

    picture: np.ndarray
    seconds: float
    rows: int
    peak_bytes: int | None


def machine_of(environment: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same for results to be kept."""
    return {key: environment.get(key) for key in SAME_MACHINE}


class Journal:
    """A record for each sample made: in memory, and with a path in a file as well, a JSON line each.

    With `resume`, what the file has from this machine is kept; without it, or from another machine, it begins anew.
    """

    def __init__(self, path: Path | None = None, environment: Mapping[str, Any] | None = None, resume: bool = False) -> None:
        self._path = path
        self._records: dict[tuple[Any, ...], Record] = {}
        if path is not None:
            head = json.dumps(machine_of(environment or {})) + "\n"
            lines = _whole_lines(path) if resume else []
            lines = lines if lines[:1] == [head] else [head]
            self._records = {tuple(key): record for key, record in map(json.loads, lines[1:])}
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(lines), encoding="utf-8")

    def get(self, method: Method, cell: Any, shot: Any = None) -> Record | None:
        """What is known of a sample; without a shot, of the method in the cell."""
        return self._records.get(_key(method, cell, shot))

    def add(self, method: Method, cell: Any, shot: Any, record: Record) -> None:
        """Keep a record."""
        key = _key(method, cell, shot)
        self._records[key] = record
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([key, record]) + "\n")

    def records(self, method: Method, cell: Any, shots: Sequence[Any] | None = None) -> list[Record]:
        """What is known of a method in a cell, of these shots or of all."""
        if shots is not None:
            return [record for shot in shots if (record := self.get(method, cell, shot)) is not None]
        start = _key(method, cell, None)
        return [record for key, record in self._records.items() if key[: len(start)] == start != key]

    def keys(self) -> list[tuple[Any, ...]]:
        """Name and setting, then the cell's fields, then the shot's key."""
        return list(self._records)


def _whole_lines(path: Path) -> list[str]:
    """The lines of a file, without a last one that was cut short."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    return [line for line in lines if line.endswith("\n")]


def _key(method: Method, cell: Any, shot: Any) -> tuple[Any, ...]:
    return (method.name, method.setting, *astuple(cell), *(() if shot is None else shot.key))


def make_in_turn(
    make: Make, judge: Judge, methods: Sequence[Method], cell: Any, shots: Sequence[Any], journal: Journal, warm_up: Any = None
) -> dict[Method, str]:
    """Make and judge what the journal lacks; `methods[0]` is dense. What does not run, and why.

    `warm_up`: a cell that each method is tried in first, where time is measured.
    """
    known = {method: journal.get(method, cell) for method in methods}
    refused: dict[Method, str] = {method: record["skipped"] for method, record in known.items() if record is not None}
    for number, shot in enumerate(shots):
        missing = [method for method in methods if method not in refused and journal.get(method, cell, shot) is None]
        if missing and warm_up is not None:
            _warm_up(make, methods, warm_up, shot)
            warm_up = None
        reference = functools.cache(functools.partial(make, methods[0], cell, shot))
        for method in _order(methods[0], missing, number):
            try:
                sample = reference() if method is methods[0] else make(method, cell, shot)
                journal.add(method, cell, shot, judge(sample, reference, shot))
            except Unsupported as error:
                refused[method] = str(error)
                if isinstance(error, OutOfMemory):
                    journal.add(method, cell, None, {"skipped": str(error)})
        log.info("%s: %s of %s", ", ".join(str(part) for part in astuple(cell)), number + 1, len(shots))
    return refused


def _order(dense: Method, missing: Sequence[Method], number: int) -> list[Method]:
    """Dense first; the others in another order for each shot, so that none is always measured in the shadow of the same neighbour."""
    others = [method for method in missing if method is not dense]
    return [dense] * (dense in missing) + random.Random(number).sample(others, len(others))


def _warm_up(make: Make, methods: Sequence[Method], cell: Any, shot: Any) -> None:
    """Each method once; settings of one method run the same code, and may share what it learns."""
    for method in {method.name: method for method in methods}.values():
        with suppress(Unsupported):
            make(method, cell, shot)


@contextmanager
def rows_through(module: nn.Module) -> Iterator[list[int]]:
    """Rows, text rows and conds counted, of every call of a module."""
    rows: list[int] = []
    handle = module.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].shape[:-1].numel()))
    try:
        yield rows
    finally:
        handle.remove()
