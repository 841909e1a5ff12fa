"""What a run says about itself."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
import torch

from safe_dit_engine.report import RunReport, StepRecord, step_message
from safe_dit_engine.steps.plan import StepKind
from safe_dit_engine.tokens.grid import TokenGrid
from safe_dit_engine.tokens.partition import Partition, select_rows
from safe_dit_engine.tokens.pictures import sensitivity_mask, token_map


def partition_of(sensitivity: torch.Tensor, keep: float) -> Partition:
    return select_rows(sensitivity, TokenGrid(1, *sensitivity.shape[1:]), keep)


@pytest.fixture
def report() -> RunReport:
    sensitivity = torch.rand(1, 4, 6, generator=torch.Generator().manual_seed(0))
    report = RunReport(total_steps=3, backbone="NextDiT", sensitivity=sensitivity, partition=partition_of(sensitivity, 0.25))
    report.evaluations = [StepRecord(0, StepKind.WARMUP, 30, 30, 9.0), StepRecord(1, StepKind.SELECTIVE, 12, 30, 4.0)]
    return report


def test_share_counts_rows(report: RunReport) -> None:
    assert report.rows_computed_share == pytest.approx(42 / 60)
    assert "1 warmup, 1 selective" in report.log_line() and "70% of rows" in report.log_line()


def test_selective_message_carries_the_rows_as_bits(report: RunReport) -> None:
    message = step_message(report, report.evaluations[1], False)
    assert report.partition is not None
    bits = np.unpackbits(np.frombuffer(base64.b64decode(message["mask"]), np.uint8), bitorder="little")[: 4 * 6]
    assert bits.astype(bool).tolist() == report.partition.sensitive[0].tolist()
    assert (message["v"], message["kind"], message["w"], message["h"], message["k"]) == (1, "selective", 6, 4, 6)
    assert message["sens"] is None


def test_full_message_carries_the_map_as_bytes(report: RunReport) -> None:
    message = step_message(report, report.evaluations[0], True)
    assert message["mask"] is None and message["k"] is None
    assert len(base64.b64decode(message["sens"])) == 4 * 6


def test_skipped_message_says_that_nothing_is_active(report: RunReport) -> None:
    message = step_message(report, StepRecord(2, StepKind.SKIPPED, 0, 30, 0.1), False)
    assert (message["kind"], message["k"], message["mask"], message["sens"], message["rows"]) == ("skipped", 0, None, None, [0, 30])


def test_a_coarse_step_counts_as_a_quarter(report: RunReport) -> None:
    """Rows of it are of another sequence, so shares of steps are added; its message says that everything is active."""
    coarse = StepRecord(0, StepKind.COARSE, 0, 0, 3.0)
    report.evaluations = [coarse, StepRecord(1, StepKind.WARMUP, 30, 30, 9.0), StepRecord(2, StepKind.SKIPPED, 0, 30, 0.1)]
    assert report.rows_computed_share == pytest.approx(1.25 / 3)
    assert report.counts() == {"warmup": 1, "skipped": 1, "coarse": 1} and "1 coarse" in report.log_line()
    assert "coarse: 1 evaluations, median 3 ms" in report.text()
    message = step_message(report, coarse, False)
    assert (message["kind"], message["k"], message["mask"], message["sens"]) == ("coarse", None, None, None)
    assert report.record()["steps"][0][:2] == [0, "coarse"]


def test_a_new_map_is_packed_anew(report: RunReport) -> None:
    before = (report.mask_bits, report.map_bytes)
    sensitivity = 1.0 - torch.rand(1, 4, 6, generator=torch.Generator().manual_seed(0))
    report.divide(sensitivity, partition_of(sensitivity, 0.25))
    assert report.mask_bits != before[0] and report.map_bytes != before[1]


def test_a_map_that_no_step_used_is_said_to_be_unused(report: RunReport) -> None:
    assert "no step of this run" not in report.text()
    report.evaluations[1] = StepRecord(1, StepKind.SKIPPED, 0, 30, 0.1)
    assert "no step of this run computed them alone" in report.text()


def test_a_big_selective_message_stays_small() -> None:
    sensitivity = torch.rand(1, 192, 192)
    report = RunReport(total_steps=30, sensitivity=sensitivity, partition=partition_of(sensitivity, 0.3))
    message = step_message(report, StepRecord(5, StepKind.SELECTIVE, 1, 2, 3.0), False)
    assert len(json.dumps(message)) < 10_000


def test_record_is_json_with_a_bounded_map() -> None:
    sensitivity = torch.rand(1, 192, 100)
    report = RunReport(total_steps=3, sensitivity=sensitivity, partition=partition_of(sensitivity, 0.3))
    record = json.loads(json.dumps(report.record()))
    assert len(base64.b64decode(record["sens"])) == 64 * 64
    assert (record["w"], record["h"]) == (100, 192)


def test_a_note_is_kept_once(report: RunReport) -> None:
    assert report.note("Computed in full, because of a test.")
    assert not report.note("Computed in full, because of a test.")
    assert report.text().count("Computed in full, because of a test.") == 1


def test_pictures_have_the_size_of_the_image(report: RunReport) -> None:
    shape = (1, 16, 8, 12)
    assert sensitivity_mask(report.sensitivity, report.partition, shape).shape == (1, 64, 96)
    picture = token_map(report.sensitivity, report.partition, shape)
    assert picture.shape == (1, 64, 96, 3)
    assert report.partition is not None
    sensitive = report.partition.sensitive.view(4, 6)
    brightness = picture.mean(-1)[0, ::16, ::16]
    assert brightness[sensitive].min() > brightness[~sensitive].max()
    assert token_map(None, None, shape).eq(0).all() and sensitivity_mask(None, None, shape).eq(0).all()


def test_a_selective_message_of_a_large_picture_is_small() -> None:
    """192 x 192 tokens, 3,072 px a side."""
    sensitivity = torch.rand(1, 192, 192)
    report = RunReport(total_steps=30, sensitivity=sensitivity, partition=partition_of(sensitivity, 0.25))
    message = step_message(report, StepRecord(5, StepKind.SELECTIVE, 9_300, 37_000, 812.25), False)
    assert len(json.dumps(message)) < 10_000
