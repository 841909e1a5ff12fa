"""The benches that run the demo model through ComfyUI's own sampler, small."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.comfy import cost, samplers
from benchmarks.comfy.bench import Bench
from benchmarks.comfy.fidelity import DENSE, cached, parse, reused, unchanged
from benchmarks.command import Wrong
from benchmarks.measure.fidelity import run
from benchmarks.measure.methods import Method

METHODS = [
    DENSE,
    Method("whole_steps_hold", "everything computed", reused(lambda total: frozenset(range(total)), 0, 1.0)),
    Method("whole_steps_linear", "half", reused(lambda total: frozenset(range(0, total, 2)), 1, 0.6)),
    Method("easycache", "some", partial(cached, "EasyCache", 0.3, 0.15, 0.95)),
    Method("lazycache", "some", partial(cached, "LazyCache", 2.0, 0.15, 0.95)),
    Method("fewer_steps", "half", unchanged, step_share=0.5),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fidelity")


@pytest.fixture(scope="module")
def rows(comfy: Any, folder: Path) -> dict[str, dict[str, Any]]:
    """What a small measurement found, by method."""
    return {row["method"]: row for row in run(arguments(folder), Bench().sample, METHODS)}


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


def test_resuming_makes_no_picture_again(rows: dict[str, dict[str, Any]], folder: Path) -> None:
    def again(*_: Any) -> Any:
        pytest.fail("sampled again")

    found = run(arguments(folder, "--resume"), again, METHODS)
    assert {row["method"]: row for row in found} == rows


def test_a_preset_stands_beside_as_many_full_steps(comfy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samplers, "SIZE", 128)
    few = ["--out", str(tmp_path), "--samplers", "euler", "--scenes", "2", "--seeds", "1", "--steps", "12"]
    assert samplers.few_steps([*few, "--presets", "quality"]) == 0
    path = tmp_path / "few-steps.json"
    (row,) = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert set(samplers.COLUMNS) <= set(row)
    assert "-" in row["plan"] and row["fewer_steps"] == row["evaluations"] == len(row["plan"].replace("-", ""))
    assert row["pictures"] == 2 and 15.0 < row["psnr_db"] and row["worst_lead_db"] <= row["lead_db"]
    assert "| euler | 2 | 12 | quality |" in (tmp_path / "few-steps.md").read_text(encoding="utf-8")
    assert samplers.few_steps([*few, "--presets", "quality", "balanced", "--resume"]) == 0
    first, second = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert first == row and second["preset"] == "balanced"


def test_noise_schedules_have_rows_of_their_own(comfy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samplers, "SIZE", 128)
    few = ["--out", str(tmp_path), "--scenes", "2", "--seeds", "1", "--steps", "12", "--presets", "quality"]
    assert samplers.noise_schedules([*few, "--schedulers", "normal", "beta"]) == 0
    rows = {row["scheduler"]: row for row in json.loads((tmp_path / "noise-schedules.json").read_text(encoding="utf-8"))["rows"]}
    assert "-" in rows["normal"]["plan"] and rows["normal"]["psnr_db"] > 15.0
    assert "-" not in rows["beta"]["plan"] and "psnr_db" not in rows["beta"]
    assert "| normal | euler | 2 | 12 | quality |" in (tmp_path / "noise-schedules.md").read_text(encoding="utf-8")
    with pytest.raises(Wrong, match="`betta` is no scheduler; use simple, "):
        samplers.noise_schedules([*few, "--schedulers", "betta"])


def test_a_selective_step_is_timed_beside_the_same_dense_one(comfy: Any) -> None:
    row = cost.measure(Bench(), 128, 0.25, rounds=1, seed=0)
    assert set(cost.COLUMNS) == set(row)
    assert 0.25 < row["rows_computed_share"] < 0.7, "text rows are counted"
    assert row["cost_over_share"] == pytest.approx(row["selective_over_dense"] / row["rows_computed_share"])
    assert min(row["dense_seconds"], row["refresh_over_dense"], row["warmup_over_dense"]) > 0.0
