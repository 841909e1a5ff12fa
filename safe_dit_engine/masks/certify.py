"""Certificate of an attention mask: proof of what it does, and the exact rewrite that follows (paper section "Certified mask elision").

Softmax cancels a constant added to all logits of a query row, so a mask that adds one finite constant per row may be removed: `elide`.
A key that no query attends to has weight zero, so its row of keys and values may be left out: `trim`. Everything else is kept.
`explicit_attention` is the specification the tests hold the rules against.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

# Padding is written as -inf, as the lowest number of a dtype, or as a large negative number; from here down a key counts as masked.
# (in bfloat16 -10,000 is -9,984). Its weight is zero in float32 unless one logit of a row exceeds another by 7,800: far above any that
# leaves a softmax a choice.
MASKED_BELOW = -9e3
# What the other keys of such a row may add at most, so that the distance between the two is never in doubt.
HIGHEST_LEVEL = 1e3

Index = slice | Tensor


class MaskMode(str, Enum):
    """What to do with attention masks: rewrite the certified ones, only count them, or do not look."""

    ELIDE = "elide"
    OBSERVE = "observe"
    OFF = "off"


class Verdict(str, Enum):
    """What a mask may be replaced by: nothing, fewer keys, or nothing but itself."""

    ELIDE = "elide"
    TRIM = "trim"
    KEEP = "keep"


@dataclass(frozen=True, eq=False)
class KeyGroup:
    """Neighbouring batch rows that attend to the same keys."""

    batch: slice
    keys: Index


@dataclass(frozen=True, eq=False)
class Certificate:
    """Verdict on a mask with its reason in words; `groups`: what to attend to where the verdict is `trim`."""

    verdict: Verdict
    reason: str
    groups: tuple[KeyGroup, ...] = ()


def keep(reason: str) -> Certificate:
    """A mask that stays."""
    return Certificate(Verdict.KEEP, reason)


def certify(mask: Tensor) -> Certificate:
    """Judge an SDPA mask (bool, True = attend; or additive float) of any shape broadcastable to `[..., queries, keys]`.

    Costs one reduction and one device-to-host read; an expanded view is judged on its base. Dimension 0 of a mask of three or more
    dimensions is taken for the batch: key padding may differ along it, but not between heads or queries.
    """
    if mask.numel() == 0:
        return keep("the mask is empty")
    if mask.dtype != torch.bool and not mask.is_floating_point():
        return keep(f"the dtype {mask.dtype} is neither bool nor float")
    if mask.requires_grad:
        return keep("the mask is being learned")
    base = _base_of_expanded(mask.detach())
    base = base.reshape((1,) * (3 - base.ndim) + base.shape)
    elidable, reason, kept = _examine(base)
    if elidable:
        return Certificate(Verdict.ELIDE, reason)
    if kept is None or mask.shape[-1] == 1:
        return keep(reason)
    groups = _groups_of(kept, mask.device)
    return Certificate(Verdict.TRIM, _padding(kept, len(groups)), groups)


def _base_of_expanded(mask: Tensor) -> Tensor:
    """The mask with expanded (stride 0) dimensions cut to size 1: the same values without the repeats."""
    for dim, (size, stride) in enumerate(zip(mask.shape, mask.stride(), strict=True)):
        if stride == 0 and size > 1:
            mask = mask.narrow(dim, 0, 1)
    return mask


def _examine(mask: Tensor) -> tuple[bool, str, list[list[bool]] | None]:
    """Whether every query row of `[batch, ..., queries, keys]` is one constant; the reason; the keys to attend to if it is padding."""
    between = tuple(range(1, mask.ndim - 1))
    low, high = mask.amin(between), mask.amax(between)  # [batch, keys]
    row_low, row_high = mask.amin(-1), mask.amax(-1)
    if mask.dtype == torch.bool:
        attended, constant, small = high, row_low.all(), row_low.new_ones(())
        level = small
    else:
        attended = high > MASKED_BELOW
        limit = _largest_cancelled(mask.dtype)
        constant, small = (row_low == row_high).all(), (row_high.abs() <= limit).all()
        top = high.where(attended, -torch.inf).amax(-1)
        level = ((top == high.where(attended, torch.inf).amin(-1)) & (top.abs() <= min(limit, HIGHEST_LEVEL))).all()
    uniform, possible = (low == high).all(), attended.any(-1).all()
    flags = torch.stack([constant, small, uniform, possible, level])
    # One read for all of it: what comes to the host stalls a GPU.
    found: list[bool] = torch.cat([flags, attended.flatten()]).tolist()
    constant_, small_, uniform_, possible_, level_ = found[:5]
    if constant_ and small_:
        return True, "all keys are attended" if mask.dtype == torch.bool else "one constant for all keys of a query", None
    if not uniform_:
        return False, "it differs between queries or heads", None
    if not possible_:
        return False, "a query attends to nothing", None
    if not level_:
        return False, "its constant is not finite, or too large to cancel" if constant_ else "it weighs keys differently", None
    keys = mask.shape[-1]
    return False, "", [found[start : start + keys] for start in range(5, len(found), keys)]


def _largest_cancelled(dtype: torch.dtype) -> float:
    """The largest constant a floating-point softmax cancels: adding a larger one rounds the logits away."""
    return 2.0**-10 / max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)


def _groups_of(kept: list[list[bool]], device: torch.device) -> tuple[KeyGroup, ...]:
    """Runs of neighbouring batch rows with the same keys; a mask of one batch row stands for all of them."""
    found, start = [], 0
    for row, members in itertools.groupby(kept):
        stop = start + len(list(members))
        found.append((start, stop, row))
        start = stop
    if len(found) == 1:
        return (KeyGroup(slice(None), _index_of(found[0][2], device)),)
    return tuple(KeyGroup(slice(first, last), _index_of(row, device)) for first, last, row in found)


def _index_of(row: list[bool], device: torch.device) -> Index:
    """The True positions: a slice where they are neighbours, so that trimming copies nothing."""
    positions = [position for position, wanted in enumerate(row) if wanted]
    first, last = positions[0], positions[-1] + 1
    return slice(first, last) if last - first == len(positions) else torch.tensor(positions, device=device)


def _padding(kept: list[list[bool]], groups: int) -> str:
    attended, keys = sorted({sum(row) for row in kept}), len(kept[0])
    count = f"{attended[0]:,}" if len(attended) == 1 else f"{attended[0]:,} to {attended[-1]:,}"
    return f"padding: {count} of {keys:,} keys are attended" + (f", in {groups} groups of the batch" if groups > 1 else "")


# Rewrites


def take(x: Tensor, index: Index, dim: int) -> Tensor:
    """The rows `index` of dimension `dim`; a slice copies nothing."""
    return x.index_select(dim, index) if isinstance(index, Tensor) else x[(slice(None),) * dim + (index,)]


def attend_trimmed(
    attention: Callable[[Tensor, Tensor, Tensor], Tensor], q: Tensor, k: Tensor, v: Tensor, groups: Sequence[KeyGroup], dim: int
) -> Tensor:
    """Attention to the keys that are not padding; `dim` is the dimension of keys in `k` and `v`, dimension 0 the batch."""
    parts = []
    for group in groups:
        queries, keys, values = (x[group.batch] for x in (q, k, v))
        parts.append(attention(queries, take(keys, group.keys, dim), take(values, group.keys, dim)))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def fits(mask: Tensor, scores: Sequence[int]) -> bool:
    """Whether a mask broadcasts to attention scores of shape `[..., queries, keys]` without widening them."""
    pairs = zip(reversed(mask.shape), reversed(scores))
    return mask.ndim <= len(scores) and all(size in (1, wanted) for size, wanted in pairs)


# Counting


@dataclass(eq=False)
class MaskLedger:
    """Verdicts and the counts the report shows; one reduction per mask object.

    A verdict belongs to the tensor object and its version counter. Tensors born in inference mode have no counter: their verdicts are
    good until `begin_call`, or for one attention call where nobody calls it (`bracketed` False).
    `compiled`: attention runs in a compiled graph, where only calls with a mask are seen.
    `origin`: what every mask of the current block is made from (origins.py); then that object is judged, by the first mask made from it.
    Every thread has its own: a model split over several GPUs runs different blocks at the same time.
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
    _origins: threading.local = field(default_factory=threading.local)
    _calls_begun: int = 0
    _verdicts: WeakTensorKeyDictionary = field(default_factory=WeakTensorKeyDictionary)  # tensor -> (stamp, {view: certificate})

    @property
    def origin(self) -> Tensor | None:
        """What the masks of this thread's current block are made from."""
        found: Tensor | None = getattr(self._origins, "origin", None)
        return found

    @origin.setter
    def origin(self, made_from: Tensor | None) -> None:
        self._origins.origin = made_from

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
        source = self.origin if self.origin is not None else mask if mask._base is None else mask._base
        stamp = self._stamp(source)
        known = self._verdicts.get(source)
        if known is None or known[0] != stamp:
            known = (stamp, {})
            self._verdicts[source] = known
        view: tuple[Any, ...] = (mask.shape, mask.dtype)
        if self.origin is None:
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


def explicit_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention written out in float64: the specification. `q`, `k`, `v`: `[..., rows, head_dim]`."""
    q, k, v = q.double(), k.double(), v.double()
    logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask.double()
    return logits.softmax(-1) @ v
