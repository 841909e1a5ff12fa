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
from typing import Any, TypeVar

import numpy as np
from torch import nn

from safe_dit_engine.cli.clock import now, peak_bytes_of, reset_peak
from safe_dit_engine.cli.time_left import TimeLeft

from ..command import log
from ..demo_model.scenes import Scene
from .methods import Method

T = TypeVar("T")
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

    def described(self) -> Record:
        """What every row says of it."""
        return {"resolution": f"{self.size}x{self.size}", "steps": self.steps, "sampler": self.sampler}


@dataclass(frozen=True)
class Shot:
    """A batch of pictures to make, most often of one."""

    scenes: tuple[Scene, ...]
    seeds: tuple[int, ...]

    @property
    def captions(self) -> list[str]:
        """What the pictures show."""
        return [scene.caption for scene in self.scenes]

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells it from others in a journal."""
        return (*self.captions, *self.seeds)


@dataclass(frozen=True)
class Sample:
    """Pictures made: `[N, H, W, 3]` in [0, 1]."""

    pictures: np.ndarray
    seconds: float
    rows: float
    peak_bytes: int | None


def machine_of(environment: Mapping[str, Any]) -> Record:
    """What must be the same for results to be kept."""
    return {key: environment.get(key) for key in SAME_MACHINE}


class Journal:
    """A record for each sample made: in memory, and with a path in a file as well, a JSON line each.

    With `resume`, what the file has from this machine is kept; without it, or from another machine, it begins anew. Keys: a method's name
    and setting, the cell's fields, and the shot's key; without the latter, a record says why the method does not run in the cell.
    """

    def __init__(self, path: Path | None = None, environment: Mapping[str, Any] | None = None, resume: bool = False) -> None:
        self._path = path
        self.known: dict[tuple[Any, ...], Record] = {}
        if path is not None:
            head = json.dumps(machine_of(environment or {})) + "\n"
            text = path.read_text(encoding="utf-8") if resume and path.is_file() else ""
            # Without a last line that was cut short.
            lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
            lines = lines if lines[:1] == [head] else [head]
            self.known = {tuple(key): record for key, record in map(json.loads, lines[1:])}
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(lines), encoding="utf-8")

    def get(self, method: Method, cell: Any, shot: Any = None) -> Record | None:
        """What is known of a sample."""
        return self.known.get(_key(method, cell, shot))

    def add(self, method: Method, cell: Any, shot: Any, record: Record) -> None:
        """Keep a record."""
        key = _key(method, cell, shot)
        self.known[key] = record
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([key, record]) + "\n")

    def records(self, method: Method, cell: Any, shots: Sequence[Any] | None = None) -> list[Record]:
        """What is known of a method in a cell, of these shots or of all."""
        if shots is not None:
            return [record for shot in shots if (record := self.get(method, cell, shot)) is not None]
        start = _key(method, cell, None)
        return [record for key, record in self.known.items() if key[: len(start)] == start != key]


def _key(method: Method, cell: Any, shot: Any) -> tuple[Any, ...]:
    return (method.name, method.setting, *astuple(cell), *(() if shot is None else shot.key))


def make_in_turn(
    make: Make, judge: Judge, methods: Sequence[Method], cell: Any, shots: Sequence[Any], journal: Journal, warm_up: Any = None
) -> dict[Method, str]:
    """Make and judge what the journal lacks; `methods[0]` is dense. What does not run, and why.

    `warm_up`: a cell that each method is tried in first, where time is measured.
    """
    dense, made = methods[0], 0
    refused: dict[Method, str] = {method: record["skipped"] for method in methods if (record := journal.get(method, cell)) is not None}
    progress = TimeLeft(", ".join(str(part) for part in astuple(cell)), log.info)
    for number, shot in enumerate(shots):
        missing = [method for method in methods if method not in refused and journal.get(method, cell, shot) is None]
        if missing and warm_up is not None:
            _warm_up(make, methods, warm_up, shot)
            warm_up = None
        # Dense first; the others in another order for each shot, so that none is always in the shadow of the same neighbour.
        random.Random(number).shuffle(missing)
        reference = functools.cache(functools.partial(make, dense, cell, shot))
        for method in sorted(missing, key=lambda method: method is not dense):
            try:
                sample = reference() if method is dense else make(method, cell, shot)
                journal.add(method, cell, shot, judge(sample, reference, shot))
            except Unsupported as error:
                refused[method] = str(error)
                if isinstance(error, OutOfMemory):
                    journal.add(method, cell, None, {"skipped": str(error)})
            made += 1
            progress.tell(made, sum(journal.get(one, cell, other) is None for one in methods if one not in refused for other in shots))
    return refused


def _warm_up(make: Make, methods: Sequence[Method], cell: Any, shot: Any) -> None:
    """Each method once; settings of one method run the same code, and may share what it learns."""
    kinds, progress = {method.name: method for method in methods}.values(), TimeLeft("warming up", log.info)
    for number, method in enumerate(kinds, 1):
        with suppress(Unsupported):
            make(method, cell, shot)
        progress.tell(number, len(kinds) - number)


def timed(call: Callable[[], T], device: str) -> tuple[T, float, int | None]:
    """What a call returns, its seconds, and the peak of memory in bytes meanwhile, None where it is not known."""
    is_known, started = reset_peak(device), now(device)
    result = call()
    return result, now(device) - started, peak_bytes_of(device) if is_known else None


@contextmanager
def rows_through(module: nn.Module) -> Iterator[list[int]]:
    """Rows, text rows and conds counted, of every call of a module."""
    rows: list[int] = []
    handle = module.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].shape[:-1].numel()))
    try:
        yield rows
    finally:
        handle.remove()
