"""The bench `quality` with the demo model through ComfyUI's own sampler, small."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.comfy import quality
from benchmarks.comfy.bench import Bench
from benchmarks.comfy.fidelity import DENSE
from benchmarks.demo_model.classifier import Classifier

Measured = tuple[Any, list[dict[str, Any]]]
METHODS = [DENSE, *(method for method in quality.methods() if method.setting in ("speedup 2", "50% of the steps", "50% rather early"))]


@pytest.fixture(scope="module")
def network() -> Classifier:
    return Classifier(32).eval()


@pytest.fixture(scope="module")
def measured(comfy: Any, tmp_path_factory: pytest.TempPathFactory, network: Classifier) -> Measured:
    """Arguments and rows of a small measurement."""
    folder = tmp_path_factory.mktemp("quality")
    arguments = quality.parse(["--out", str(folder), "--size", "128", "--steps", "4", "--prompts", "2", "--samplers", "euler"])
    return arguments, quality.run(arguments, Bench().sample, METHODS, network)


def test_dense_is_its_own_reference(measured: Measured) -> None:
    dense = measured[1][0]
    assert (dense["method"], dense["rows_computed_share"], dense["sharpness"], dense["pictures"]) == ("dense", 1.0, 1.0, 2)
    assert (dense["oracle_difference"], dense["distance_to_dense"], dense["distance_difference"]) == (0.0, 0.0, 0.0)
    assert dense["oracle_score_low"] <= dense["oracle_score"] <= dense["oracle_score_high"]


def test_others_differ_from_it(measured: Measured) -> None:
    for row in measured[1][1:]:
        assert row["rows_computed_share"] <= 1.0 and 5.0 < row["psnr_db"] and 0.3 < row["sharpness"] < 3.0
        assert row["distance_to_scenes_low"] <= row["distance_to_scenes_high"]
    shares = {row["method"]: row["rows_computed_share"] for row in measured[1]}
    assert shares["fewer_steps"] == shares["whole_steps_hold"] == 0.5


def test_everything_is_written(measured: Measured) -> None:
    folder = measured[0].out
    written = json.loads((folder / "quality.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert [row["method"] for row in written["rows"]] == [row["method"] for row in measured[1]]
    assert (folder / "quality.png").stat().st_size > 1000
    page = (folder / "quality.md").read_text(encoding="utf-8")
    assert "| fewer_steps | 50% of the steps | 128x128 | 4 | euler | 2 | 0.5 |" in page and " to " in page


def test_resuming_makes_no_picture_again(measured: Measured, network: Classifier) -> None:
    def again(*_: Any) -> Any:
        pytest.fail("sampled again")

    arguments, rows = measured
    arguments.resume = True
    assert quality.run(arguments, again, METHODS, network) == rows
