"""The bench of `diffusers`' schedulers, small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.diffusers import schedulers


def test_a_preset_stands_beside_as_many_full_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedulers, "SIZE", 128)
    monkeypatch.setattr(schedulers, "PICTURES", 1)
    assert schedulers.main(["--out", str(tmp_path), "--schedulers", "euler", "--presets", "quality", "--steps", "12"]) == 0
    (row,) = json.loads((tmp_path / "schedulers.json").read_text(encoding="utf-8"))["rows"]
    assert set(schedulers.COLUMNS) <= set(row) and "-" in row["plan"] and row["fewer_steps"] == len(row["plan"].replace("-", ""))
    assert 15.0 < row["worst_psnr_db"] <= row["psnr_db"] and 10.0 < row["fewer_psnr_db"]
    assert "| euler | 12 | quality |" in (tmp_path / "schedulers.md").read_text(encoding="utf-8")
