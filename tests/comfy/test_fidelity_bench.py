"""The fidelity instrument through ComfyUI's own sampler, small."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.comfy.fidelity import parse, run
from benchmarks.comfy.peers import Method, cached, reused
from benchmarks.comfy.side_by_side import Bench

METHODS = [
    reused("whole_steps_hold", "everything computed", lambda total: frozenset(range(total)), 0, 1.0),
    reused("whole_steps_linear", "half", lambda total: frozenset(range(0, total, 2)), 1, 0.6),
    Method("easycache", "some", partial(cached, "EasyCache", 0.3, 0.15, 0.95)),
    Method("lazycache", "some", partial(cached, "LazyCache", 2.0, 0.15, 0.95)),
    Method("fewer_steps", "half", step_share=0.5),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fidelity")


@pytest.fixture(scope="module")
def rows(comfy: Any, folder: Path) -> dict[str, dict[str, Any]]:
    """What a small measurement found, by method."""
    return {row["method"]: row for row in run(arguments(folder), METHODS)}


def arguments(folder: Path, *more: str) -> Any:
    small = ["--prompts", "1", "--seeds", "1", "--sizes", "128", "--steps", "6", "--samplers", "euler"]
    return parse(["--out", str(folder), *small, *more])


def test_dense_is_its_own_reference(rows: dict[str, dict[str, Any]]) -> None:
    dense = rows["dense"]
    assert (dense["psnr_db"], dense["seconds_over_dense"], dense["rows_computed_share"]) == (float("inf"), 1.0, 1.0)
    assert dense["seconds"] > 0.0 and 0.0 <= dense["oracle_score"] <= 1.0


def test_whole_steps_all_computed_are_dense_bit_for_bit(rows: dict[str, dict[str, Any]]) -> None:
    assert rows["whole_steps_hold"]["psnr_db"] == float("inf")
    assert rows["whole_steps_hold"]["rows_computed_share"] == 1.0


def test_rivals_save_what_they_say_and_are_not_broken(rows: dict[str, dict[str, Any]]) -> None:
    assert rows["whole_steps_linear"]["rows_computed_share"] == rows["fewer_steps"]["rows_computed_share"] == pytest.approx(0.5)
    for name in ("easycache", "lazycache", "whole_steps_linear", "fewer_steps"):
        assert rows[name]["rows_computed_share"] < 1.0
        assert 15.0 < rows[name]["psnr_db"] < 80.0


def test_everything_is_written(rows: dict[str, dict[str, Any]], folder: Path) -> None:
    written = json.loads((folder / "fidelity.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert set(written) == {"environment", "rows", "comparison"}
    assert [row["method"] for row in written["rows"]] == list(rows)
    assert written["rows"][0]["psnr_db"] is None
    assert (folder / "fidelity.png").stat().st_size > 1000
    assert "| fewer_steps | half | 128x128 | 6 | euler |" in (folder / "fidelity.md").read_text(encoding="utf-8")


def test_a_picture_in_the_journal_is_not_made_again(rows: dict[str, dict[str, Any]], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "fidelity.json").unlink()
    monkeypatch.setattr(Bench, "sample", lambda *_: pytest.fail("sampled again"))
    again = run(arguments(folder, "--resume"), METHODS)
    assert {row["method"]: row for row in again} == rows


def test_resuming_runs_nothing_twice(rows: dict[str, dict[str, Any]], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bench, "sample", lambda *_: pytest.fail("sampled again"))
    again = run(arguments(folder, "--resume"), METHODS)
    assert [row["method"] for row in again] == list(rows)
