"""What a run did: steps, rows, masks, bytes, milliseconds; and the message of one step (DESIGN: Promises 5, 9)."""

from __future__ import annotations

import base64
from collections import Counter
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .masks.ledger import MaskLedger
from .selective.kv_cache import Storage
from .steps.coarse import SHARE
from .steps.plan import StepKind
from .steps.samplers import EULER, Sampler
from .stopwatch import Stopwatch
from .tokens.partition import Partition

MESSAGE_VERSION = 1
RECORD_MAP_EDGE = 64


class NoteLevel(str, Enum):
    """What a sentence is: INFO explains what was done; WARNING says that something else was done than what was asked for."""

    INFO = "info"
    WARNING = "warn"


@dataclass(frozen=True)
class StepRecord:
    """One model evaluation: the step it belongs to, what was executed, rows (text rows counted) and the time spent: milliseconds, or the
    stopwatch that has them once the device is done."""

    step: int
    kind: StepKind
    rows_active: int
    rows_total: int
    spent: float | Stopwatch

    @property
    def milliseconds(self) -> float:
        """Time it took; waits for the device."""
        return self.spent.milliseconds if isinstance(self.spent, Stopwatch) else self.spent


@dataclass
class RunReport:
    """Collected over a run by `run.Run`; read by nodes, log and tests."""

    total_steps: int
    backbone: str = ""
    progress: tuple[float, ...] = ()  # at every noise level of the run
    window: tuple[int, int] = (0, 0)  # half-open range of steps that need not be computed in full
    sampler: Sampler = EULER
    coarse: bool = False  # whether the latent is large enough for coarse steps
    evaluations: list[StepRecord] = field(default_factory=list)
    noted: dict[str, NoteLevel] = field(default_factory=dict)  # sentence -> what it is, in the order they were made
    masks: str = ""
    ledger: MaskLedger | None = None
    ids: dict[str, Any] = field(default_factory=dict)  # under which the host knows the run
    cache_bytes: int = 0
    cache_predicted: int | None = None
    storage: Storage = field(default_factory=Storage)
    seconds: float = 0.0
    sensitivity: Tensor | None = None
    partition: Partition | None = None
    guided: bool = False

    def note(self, sentence: str, level: NoteLevel = NoteLevel.INFO) -> bool:
        """Keep a sentence once; True if it is new."""
        new = sentence not in self.noted
        self.noted.setdefault(sentence, level)
        return new

    @property
    def notes(self) -> list[str]:
        """The sentences."""
        return list(self.noted)

    @property
    def rows_computed_share(self) -> float:
        """Rows computed / rows a dense run would compute; where rows were not tracked, evaluations that were not skipped / all."""
        total = sum(record.rows_total for record in self.evaluations)
        if total and not any(record.kind is StepKind.COARSE for record in self.evaluations):
            return sum(record.rows_active for record in self.evaluations) / total
        return sum(map(_share_of_rows, self.evaluations)) / len(self.evaluations) if self.evaluations else 1.0

    def counts(self) -> dict[str, int]:
        """Evaluations by kind."""
        found = Counter(record.kind.value for record in self.evaluations)
        return {kind.value: found[kind.value] for kind in StepKind if found[kind.value]}

    def known_as(self, ids: dict[str, Any]) -> None:
        """The host knows the run under these ids."""
        self.ids = ids

    def remember(self, kept: int, predicted: int | None, storage: Storage) -> None:
        """So many bytes are kept between refreshes, so many were predicted, and how they are kept."""
        self.cache_bytes = max(self.cache_bytes, kept)
        self.cache_predicted, self.storage = predicted, storage

    def with_masks(self, ledger: MaskLedger) -> RunReport:
        """The same, with what was seen of masks."""
        self.ledger, self.masks = ledger, ledger.sentence()
        return self

    def divide(self, sensitivity: Tensor, partition: Partition) -> None:
        """Keep a map `[B, h, w]` and what it was divided into."""
        self.sensitivity, self.partition = sensitivity, partition
        for packed in ("mask_bits", "map_bytes"):
            self.__dict__.pop(packed, None)

    def finish(self, seconds: float) -> None:
        """The run is over: nothing of it stays on the device."""
        self.seconds = seconds
        self.evaluations = [replace(record, spent=record.milliseconds) for record in self.evaluations]
        self.sensitivity = None if self.sensitivity is None else self.sensitivity.cpu()
        self.partition = None if self.partition is None else self.partition.cpu()
        if self.ledger is not None:
            self.ledger.forget()
            self.masks = self.ledger.sentence()

    # Packed once a map: reading it off a GPU at every step would stall it.

    @cached_property
    def mask_bits(self) -> str | None:
        """Sensitive tokens of the first image; ask once there is a partition or the run is over."""
        return None if self.partition is None else pack_bits(self.partition.sensitive[0])

    @cached_property
    def map_bytes(self) -> str | None:
        """Sensitivity of the first image; ask once there is a map or the run is over."""
        return None if self.sensitivity is None else pack_bytes(self.sensitivity[0])

    def levels(self) -> dict[str, Any]:
        """What the run's plan was made from, beside its settings."""
        levels = [round(level, 6) for level in self.progress]
        return {"progress": levels, "window": list(self.window), "coarse": self.coarse, **self.sampler.limits()}

    def mask_counts(self) -> list[int] | None:
        """Attention calls, those with a mask, elided, trimmed; None where nobody looked."""
        found = self.ledger
        return None if found is None else [found.calls, found.masked, found.elided, found.trimmed.total()]

    def log_line(self) -> str:
        """The run in one line."""
        steps = ", ".join(f"{count} {kind}" for kind, count in self.counts().items()) or "no evaluations"
        parts = [f"{steps}", f"{self.rows_computed_share:.0%} of rows computed", self.masks, self.cache_line()]
        return "SAFE-DiT: " + " | ".join(part for part in parts if part) + f" | {self.seconds:.2f} s"

    def cache_line(self) -> str:
        """What was remembered between refreshes at most, and what had been predicted."""
        parts = ["" if self.cache_predicted is None else f"{self.cache_predicted / 2**20:.1f} predicted"]
        parts += ["8 bit" if self.storage.eight_bit else "", "in system memory" if self.storage.place else ""]
        told = ", ".join(part for part in parts if part)
        return f"cache {self.cache_bytes / 2**20:.1f} MiB" + (f" ({told})" if told else "")

    def text(self) -> str:
        """The run in words, a line each, for the Report node."""
        lines = [self.log_line()]
        for kind in StepKind:
            times = [record.milliseconds for record in self.evaluations if record.kind is kind]
            if times:
                lines.append(f"{kind.value}: {len(times)} evaluations, median {float(np.median(times)):.0f} ms")
        if self.partition is not None:
            tokens = self.partition.grid.tokens
            used = "" if StepKind.SELECTIVE.value in self.counts() else "; no step of this run computed them alone"
            lines.append(f"partition: {self.partition.kept:,} of {tokens:,} tokens are sensitive{used}")
        if self.guided:
            lines.append("SAFE+SW: guidance was weighted by sensitivity, so the picture differs from dense on purpose")
        return "\n".join(lines + self.notes)

    def record(self) -> dict[str, Any]:
        """The run as JSON-able data for the node's UI; the map is pooled to at most 64 x 64."""
        height, width = (0, 0) if self.partition is None else self.partition.grid.shape
        return {
            "v": MESSAGE_VERSION,
            "ids": self.ids,
            "total": self.total_steps,
            "backbone": self.backbone,
            "w": width,
            "h": height,
            "k": 0 if self.partition is None else self.partition.kept,
            "mask": self.mask_bits,
            "sens": None if self.sensitivity is None else pack_bytes(_pooled(self.sensitivity[0])),
            "levels": self.levels(),
            "steps": [
                [record.step, record.kind.value, record.rows_active, record.rows_total, round(record.milliseconds, 2)]
                for record in self.evaluations
            ],
            "rows_computed_share": self.rows_computed_share,
            "cache_bytes": self.cache_bytes,
            "cache_predicted": self.cache_predicted,
            "seconds": self.seconds,
            "masks": self.masks,
            "mask_counts": self.mask_counts(),
            "notes": self.notes,
            "warnings": [sentence for sentence, level in self.noted.items() if level is NoteLevel.WARNING],
        }


def step_message(report: RunReport, record: StepRecord, with_map: bool) -> dict[str, Any]:
    """Live message of one evaluation, without the ids the host adds.

    `mask`: bits, little-endian, row-major; None on full steps, where all tokens are active, and on skipped ones, where none is (`k` 0).
    `sens`: bytes, where `with_map` asks for it: it is large and seldom changes. `masks`: attention calls so far, those
    with a mask, elided, trimmed; None where nobody looked. `levels`: with the first message of a run.
    """
    partition = report.partition
    selective = record.kind is StepKind.SELECTIVE
    height, width = (0, 0) if partition is None else partition.grid.shape
    return {
        "v": MESSAGE_VERSION,
        "step": record.step,
        "total": report.total_steps,
        "kind": record.kind.value,
        "w": width,
        "h": height,
        "k": 0 if record.kind is StepKind.SKIPPED else partition.kept if partition is not None and selective else None,
        "mask": report.mask_bits if selective else None,
        "sens": report.map_bytes if with_map else None,
        "rows": [record.rows_active, record.rows_total],
        "ms": round(record.milliseconds, 2),
        "cache": report.cache_bytes,
        "masks": report.mask_counts(),
        "levels": report.levels() if len(report.evaluations) <= 1 else None,
    }


def psnr_db(picture: np.ndarray, reference: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of pictures with values in [0, 1]; infinite when they are equal."""
    error = float(np.mean((picture.astype(np.float64) - reference.astype(np.float64)) ** 2))
    return float("inf") if error == 0.0 else -10.0 * float(np.log10(error))


def note_message(sentence: str, level: NoteLevel) -> dict[str, Any]:
    """Message of one sentence, without the ids the host adds."""
    return {"v": MESSAGE_VERSION, "level": level.value, "sentence": sentence}


def _share_of_rows(record: StepRecord) -> float:
    if record.rows_total:
        return record.rows_active / record.rows_total
    return {StepKind.SKIPPED: 0.0, StepKind.COARSE: SHARE}.get(record.kind, 1.0)


def pack_bits(mask: Tensor) -> str:
    """Bool tensor as base64 of little-endian bits, row-major."""
    return base64.b64encode(np.packbits(mask.flatten().cpu().numpy(), bitorder="little").tobytes()).decode("ascii")


def pack_bytes(values: Tensor) -> str:
    """Values in [0, 1] as base64 of unsigned bytes, row-major."""
    return base64.b64encode((values.clamp(0, 1) * 255).round().to(torch.uint8).flatten().cpu().numpy().tobytes()).decode("ascii")


def _pooled(tokens: Tensor) -> Tensor:
    height, width = (min(size, RECORD_MAP_EDGE) for size in tokens.shape)
    return torch.nn.functional.adaptive_avg_pool2d(tokens[None, None].float(), (height, width))[0, 0]
