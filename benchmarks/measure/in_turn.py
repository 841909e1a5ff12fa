"""Pictures of several methods in turn, beside the dense one of the same prompt and seed: the loop that every such bench shares."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from .journal import Cell, Journal, Named, Sample, Shot

log = logging.getLogger("safe_dit.bench")

# Judged by what is in the picture: it differs from dense on purpose.
NOT_COMPARED = ("safe_sw",)
M = TypeVar("M", bound=Named)
Make = Callable[[M, Cell, Shot], Sample]


class Unsupported(Exception):
    """A method does not run on a model; the message is one sentence that says why."""


def make_in_turn(make: Make[M], methods: Sequence[M], cell: Cell, shots: Sequence[Shot], journal: Journal) -> dict[M, str]:
    """Make the pictures that the journal lacks; `methods[0]` is dense. What does not run, and why."""
    skipped: dict[M, str] = {}
    warm = False
    for number, shot in enumerate(shots):
        missing = [method for method in methods if method not in skipped and not journal.has(method, cell, shot)]
        if missing and not warm:
            _warm_up(make, methods, cell, shot)
            warm = True
        if missing:
            skipped |= _make_shot(make, methods[0], missing, cell, shot, journal, number)
        log.info("%s px, %s steps, %s: picture %s of %s", cell.size, cell.steps, cell.sampler, number + 1, len(shots))
    return skipped


def _make_shot(make: Make[M], dense: M, missing: list[M], cell: Cell, shot: Shot, journal: Journal, number: int) -> dict[M, str]:
    reference, skipped = make(dense, cell, shot), dict[M, str]()
    # Another order for each shot, so that none is always measured in the shadow of the same neighbour.
    for method in random.Random(number).sample(missing, len(missing)):
        try:
            journal.add(method, cell, shot, reference if method is dense else make(method, cell, shot), reference)
        except Unsupported as error:
            skipped[method] = str(error)
    return skipped


def _warm_up(make: Make[M], methods: Sequence[M], cell: Cell, shot: Shot) -> None:
    """Each method once; settings of one method run the same code, and may share what it learns."""
    for method in {method.name: method for method in methods}.values():
        with suppress(Unsupported):
            make(method, cell, shot)
