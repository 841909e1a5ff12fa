"""Times are those of the work, and a finished report waits for nothing."""

from __future__ import annotations

import time

import torch

from safe_dit_engine.report import RunReport, StepRecord
from safe_dit_engine.steps.plan import StepKind
from safe_dit_engine.stopwatch import Stopwatch


def test_the_time_between_making_and_stopping() -> None:
    began = time.perf_counter()
    watch = Stopwatch(torch.device("cpu"))
    time.sleep(0.03)
    watch.stop()
    passed = 1000.0 * (time.perf_counter() - began)
    time.sleep(0.03)
    assert 30.0 <= watch.milliseconds <= passed


def test_a_finished_report_holds_numbers() -> None:
    report = RunReport(total_steps=1)
    record = StepRecord(0, StepKind.WARMUP, 1, 1, Stopwatch().stop())
    report.evaluations.append(record)
    report.finish(0.1)
    assert [type(found.spent) for found in report.evaluations] == [float]
    assert report.evaluations[0].milliseconds == record.milliseconds
