"""Verdicts on the masks of one run, and what is told of them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .certify import Certificate, Verdict, certify, fits, keep


class MaskMode(str, Enum):
    """What to do with attention masks: rewrite the certified ones, only count them, or do not look."""

    ELIDE = "elide"
    OBSERVE = "observe"
    OFF = "off"


@dataclass(eq=False)
class MaskLedger:
    """Verdicts and the counts the report shows; one reduction per mask object.

    A verdict belongs to the tensor object and its version counter. Tensors born in inference mode have no counter: their verdicts are
    good until `begin_call`, or for one attention call where nobody calls it (`bracketed` False).
    `compiled`: attention runs in a compiled graph, where only calls with a mask are seen.
    `made_from`: what every mask of the current block is made from (sources.py); then that object is judged, by the first mask made from
    it. Every thread has its own: a model split over several GPUs runs different blocks at the same time.
    """

    mode: MaskMode = MaskMode.ELIDE
    bracketed: bool = False
    compiled: bool = False
    calls: int = 0
    masked: int = 0
    elided: int = 0
    trimmed: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    backends: dict[str, str] = field(default_factory=dict)
    _sources: threading.local = field(default_factory=threading.local)
    _calls_begun: int = 0
    _verdicts: WeakTensorKeyDictionary = field(default_factory=WeakTensorKeyDictionary)  # tensor -> (stamp, {view: certificate})

    @property
    def made_from(self) -> Tensor | None:
        """What the masks of this thread's current block are made from."""
        found: Tensor | None = getattr(self._sources, "tensor", None)
        return found

    def enter(self, made_from: Tensor | None) -> None:
        """The masks of this thread are made from this tensor from here on; None: each stands for itself."""
        self._sources.tensor = made_from

    def run_compiled(self) -> None:
        """Attention runs in a compiled graph."""
        self.compiled = True

    def may_be_written_to(self, written: bool) -> None:
        """Whether somebody may write to masks between two attention calls, which nothing would tell us: then verdicts last for one."""
        self.bracketed = not written

    def begin_call(self) -> None:
        """Forget verdicts that cannot be watched for writes."""
        self._calls_begun += 1

    def forget(self) -> None:
        """Let go of all verdicts, which may hold indices on a device; the counts stay."""
        self._verdicts.clear()

    def rule(self, mask: Tensor | None, scores: Sequence[int], adds_booleans: bool = False) -> Certificate | None:
        """What to do in one attention call with scores of shape `[batch, ..., queries, keys]`; None: call as it is.

        `adds_booleans`: the attention takes a boolean mask for numbers to add, so that one which looks like padding is none.
        """
        self.calls += 1
        if mask is None or self.mode is MaskMode.OFF:
            return None
        self.masked += 1
        certificate = self._verdict(mask) if fits(mask, scores) else keep("its shape does not fit the attention")
        if certificate.verdict is Verdict.TRIM:
            if adds_booleans and mask.dtype == torch.bool:
                certificate = keep("this attention backend adds boolean masks to the logits")
            elif len(certificate.groups) > 1 and mask.ndim != len(scores):
                certificate = keep("padding differs along a dimension that is not the batch")
        return self._count(certificate)

    def _count(self, certificate: Certificate) -> Certificate | None:
        """Enter a verdict; None if nothing is to be done about it."""
        if certificate.verdict is Verdict.KEEP:
            self.kept[certificate.reason] += 1
            return None
        if self.mode is MaskMode.OBSERVE:
            self.kept[f"only counting was asked for; it could be {_DONE[certificate.verdict]}"] += 1
            return None
        if certificate.verdict is Verdict.ELIDE:
            self.elided += 1
        else:
            self.trimmed[certificate.reason] += 1
        return certificate

    def rewrote(self, attention: str, describe: Callable[[], str]) -> None:
        """A call by this attention function was rewritten; `describe` says, the first time, what that changed."""
        if attention not in self.backends:
            self.backends[attention] = describe()

    def _verdict(self, mask: Tensor) -> Certificate:
        source = self.made_from if self.made_from is not None else mask if mask._base is None else mask._base
        stamp = self._stamp(source)
        known = self._verdicts.get(source)
        if known is None or known[0] != stamp:
            known = (stamp, {})
            self._verdicts[source] = known
        view: tuple[Any, ...] = (mask.shape, mask.dtype)
        if self.made_from is None:
            view += (mask.stride(), mask.storage_offset())
        if view not in known[1]:
            known[1][view] = certify(mask)
        certificate: Certificate = known[1][view]
        return certificate

    def _stamp(self, source: Tensor) -> tuple[str, int]:
        if not source.is_inference():
            return ("version", source._version)
        if not self.bracketed:
            self._calls_begun += 1
        return ("call", self._calls_begun)

    def sentence(self) -> str:
        """What was found, in words."""
        if self.calls == 0 and self.compiled:
            return "no mask was seen in the compiled model: nothing to elide"
        if self.calls == 0:
            return "no attention call was seen: the model does not attend through what is watched here"
        carried = f"{self.masked:,} of {self.calls:,} attention calls carried a mask"
        if self.masked == 0:
            return f"{carried}: nothing to elide"
        parts = [f"{carried}: {self.elided:,} elided"]
        parts += [f"{count:,} trimmed ({reason})" for reason, count in self.trimmed.items()]
        parts += [f"{count:,} kept because {reason}" for reason, count in self.kept.items()]
        return "; ".join([*parts, *self.backends.values()])

    def counts(self) -> dict[str, Any]:
        """The same as data."""
        found = {"calls": self.calls, "masked": self.masked, "elided": self.elided, "trimmed": self.trimmed.total()}
        return {**found, "kept": self.kept.total(), "reasons": {**self.trimmed, **self.kept}, "backends": dict(self.backends)}


_DONE = {Verdict.ELIDE: "elided", Verdict.TRIM: "trimmed"}
