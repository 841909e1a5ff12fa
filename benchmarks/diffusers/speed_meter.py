"""One picture, measured: the clock around the pipeline and around its transformer, memory, and what of the blocks was really computed."""

from __future__ import annotations

import gc
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from safe_dit_engine.report import RunReport
from safe_dit_engine.steps.plan import StepKind

from ..measure.in_turn import timed
from .models import Subject

# The context tells the report of a method of ours.
Enable = Callable[[Any], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Sample:
    """One picture made. Rows are those, text rows and conds counted, that reached a layer: of the middle block, of all blocks.

    `selective_seconds`: median of the transformer's calls in selective steps; `selective_share`: their rows / all rows; None without any.
    """

    seconds: float
    transformer_seconds: float
    middle_rows: int
    feed_forward_rows: int
    attention_rows: int
    peak_bytes: int | None
    reserved_bytes: int | None
    selective_seconds: float | None = None
    selective_share: float | None = None
    notes: tuple[str, ...] = ()


@dataclass
class Readings:
    """What the hooks of one picture saw."""

    device: str
    rows: Counter[str] = field(default_factory=Counter)
    marks: list[Any] = field(default_factory=list)

    def mark(self) -> None:
        """A point in time, on a GPU that of its own queue, which is not waited for."""
        if self.device == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def call_seconds(self) -> list[float]:
        """Seconds of each call of the transformer; on a GPU after it is synchronised."""
        pairs = zip(self.marks[::2], self.marks[1::2], strict=True)
        return [begin.elapsed_time(end) / 1000 if self.device == "cuda" else end - begin for begin, end in pairs]


def sample(subject: Subject, enable: Enable, size: int, steps: int, seed: int = 0) -> Sample:
    """Make one picture; whatever the method or the pipeline raises is passed on."""
    release(subject.device)
    # The layers are looked up before a method may put others in their place.
    with metered(subject) as readings, enable(subject.pipe) as handle:
        _, seconds, peak = timed(lambda: subject.picture(size, steps, seed), subject.device)
    calls, rows = readings.call_seconds(), readings.rows
    reserved = torch.cuda.max_memory_reserved() if subject.device == "cuda" else None
    report: RunReport | None = None if handle is None else handle.report()
    selective = (None, None) if report is None else _selective(report, calls)
    notes = () if report is None else tuple(report.notes)
    counts = (rows["middle"], rows["feed_forward"], rows["attention"])
    return Sample(seconds, sum(calls), *counts, peak, reserved, *selective, notes)


def _selective(report: RunReport, calls: list[float]) -> tuple[float | None, float | None]:
    records = report.evaluations
    found = [pair for pair in zip(calls, records, strict=True) if pair[1].kind is StepKind.SELECTIVE] if records else []
    if not found:
        return None, None
    return statistics.median(seconds for seconds, _ in found), statistics.median(row.rows_active / row.rows_total for _, row in found)


@contextmanager
def metered(subject: Subject) -> Iterator[Readings]:
    """Time every call of the transformer, and count the rows that reach the linear layers named by the model's stacks.

    Caches skip a block, or a part of it, in place of its `forward`, after the hooks of torch: so the layers inside are watched.
    """
    readings = Readings(subject.device)
    blocks, transformer = subject.blocks(), subject.pipe.transformer
    handles = [
        transformer.register_forward_pre_hook(lambda *_: readings.mark()),
        transformer.register_forward_hook(lambda *_: readings.mark(), always_call=True),
    ]
    for number, (stack, block) in enumerate(blocks):
        names = ["feed_forward", *(["middle"] if number == len(blocks) // 2 else [])]
        handles.append(_counted(block.get_submodule(stack.feed_forward), names, readings.rows))
        handles.append(_counted(block.get_submodule(stack.attention), ["attention"], readings.rows))
    try:
        yield readings
    finally:
        for handle in handles:
            handle.remove()


def _counted(layer: nn.Module, names: list[str], rows: Counter[str]) -> Any:
    def count(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows.update(dict.fromkeys(names, inputs[0].shape[:-1].numel()))

    return layer.register_forward_pre_hook(count)


def release(device: str) -> None:
    """Give back what earlier pictures left, so that it counts for none of the later ones."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
