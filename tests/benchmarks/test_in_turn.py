"""The loop of all benches: every method in turn, what is kept of a sample, and what a resumed measurement makes again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.comfy.fidelity import unchanged
from benchmarks.demo_model.scenes import scene_from_seed
from benchmarks.measure.in_turn import Cell, Journal, OutOfMemory, Sample, Shot, Unsupported, make_in_turn, timed
from benchmarks.measure.methods import Method

CELL, WARM_UP = Cell(64, 4, "euler"), Cell(32, 4, "euler")
MACHINE = {"processor": "p", "device": "cpu", "torch": "2"}
SHOTS = [Shot((scene_from_seed(number),), (number,)) for number in range(3)]
DENSE, FAST, SLOW = (Method(name, "as is", unchanged) for name in ("dense", "fast", "slow"))


def seconds(sample: Sample, reference: Callable[[], Sample], shot: Shot) -> dict[str, Any]:
    """A judge."""
    return {"over_dense": sample.seconds / reference().seconds, "seed": shot.seeds[0]}


class Maker:
    """Makes samples, and remembers of what; `errors` are raised by method."""

    def __init__(self, **errors: Exception) -> None:
        self.made: list[tuple[str, int, int]] = []
        self.errors = errors

    def __call__(self, method: Method, cell: Cell, shot: Shot) -> Sample:
        self.made.append((method.name, cell.size, shot.seeds[0]))
        if method.name in self.errors:
            raise self.errors[method.name]
        return Sample(np.zeros((1, 8, 8, 3)), {"dense": 2.0, "fast": 1.0, "slow": 4.0}[method.name], 10, None)


def test_every_method_is_judged_beside_the_dense_sample_of_its_shot() -> None:
    make, journal = Maker(), Journal()
    assert make_in_turn(make, seconds, [DENSE, FAST, SLOW], CELL, SHOTS, journal) == {}
    assert sorted(make.made) == sorted((name, 64, seed) for name in ("dense", "fast", "slow") for seed in range(3)), "each once"
    assert [name for name, _, _ in make.made[::3]] == ["dense"] * 3
    assert journal.records(FAST, CELL) == [{"over_dense": 0.5, "seed": seed} for seed in range(3)]
    assert journal.records(SLOW, CELL, SHOTS[1:2]) == [{"over_dense": 2.0, "seed": 1}]
    assert journal.records(SLOW, Cell(64, 5, "euler")) == []


def test_methods_are_warmed_up_where_time_is_measured() -> None:
    make = Maker(slow=Unsupported("It does not run here."))
    assert make_in_turn(make, seconds, [DENSE, FAST, SLOW], CELL, SHOTS[:1], Journal(), warm_up=WARM_UP) == {SLOW: "It does not run here."}
    assert make.made[:3] == [("dense", 32, 0), ("fast", 32, 0), ("slow", 32, 0)]


@pytest.mark.parametrize(("error", "is_final"), [(Unsupported("no"), False), (OutOfMemory("full"), True)])
def test_what_does_not_run_is_tried_once_and_after_a_pause_only_where_there_may_be_room(error: Unsupported, is_final: bool) -> None:
    make, journal = Maker(fast=error), Journal()
    assert make_in_turn(make, seconds, [DENSE, FAST], CELL, SHOTS, journal) == {FAST: str(error)}
    assert [name for name, _, _ in make.made].count("fast") == 1
    again = Maker()
    refused = make_in_turn(again, seconds, [DENSE, FAST], CELL, SHOTS, journal)
    assert refused == ({FAST: "full"} if is_final else {})
    assert [name for name, _, _ in again.made].count("fast") == (0 if is_final else 3)


def test_a_journal_goes_on_where_it_stood(tmp_path: Path) -> None:
    path = tmp_path / "new" / "fidelity.jsonl"
    make_in_turn(Maker(), seconds, [DENSE, FAST], CELL, SHOTS[:2], Journal(path, MACHINE))
    with path.open("a", encoding="utf-8") as file:
        file.write('[["cut sho')
    make, again = Maker(), Journal(path, MACHINE, resume=True)
    assert again.records(FAST, CELL) == [{"over_dense": 0.5, "seed": 0}, {"over_dense": 0.5, "seed": 1}]
    make_in_turn(make, seconds, [DENSE, FAST], CELL, SHOTS, again)
    assert sorted(make.made) == [("dense", 64, 2), ("fast", 64, 2)]
    assert len(Journal(path, MACHINE, resume=True).records(FAST, CELL, SHOTS)) == 3


@pytest.mark.parametrize(("machine", "resume"), [({**MACHINE, "torch": "3"}, True), (MACHINE, False)])
def test_a_journal_begins_anew_on_another_machine_or_unasked(tmp_path: Path, machine: dict[str, str], resume: bool) -> None:
    path = tmp_path / "a.jsonl"
    Journal(path, MACHINE).add(FAST, CELL, SHOTS[0], {})
    assert Journal(path, machine, resume).get(FAST, CELL, SHOTS[0]) is None
    assert Journal(path, machine, resume=True).get(FAST, CELL, SHOTS[0]) is None


def test_another_setting_is_another_sample() -> None:
    journal = Journal()
    journal.add(FAST, CELL, SHOTS[0], {"seconds": 1.0})
    assert journal.get(Method("fast", "as it was once", unchanged), CELL, SHOTS[0]) is None


def test_a_call_is_timed() -> None:
    found, took, peak = timed(lambda: np.ones(10**6).sum(), "cpu")
    assert found == 10**6 and took > 0.0 and (peak is None or peak > 8 * 10**6)
