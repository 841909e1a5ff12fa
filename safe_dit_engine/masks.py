"""Certificate of an attention mask: proof that it changes nothing, or the reason to keep it (paper section "Certified mask elision").

Softmax cancels a constant added to all logits of a query row, so a mask that adds one finite constant per row may be removed. Everything
else stays. `explicit_attention` is the specification the tests hold the rule against.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary


class MaskMode(str, Enum):
    """What to do with attention masks: remove the certified ones, only count them, or do not look."""

    ELIDE = "elide"
    OBSERVE = "observe"
    OFF = "off"


@dataclass(frozen=True)
class Certificate:
    """Verdict on a mask with its reason in words."""

    removable: bool
    reason: str


def certify(mask: Tensor) -> Certificate:
    """Judge an SDPA mask (bool, True = attend; or additive float) of any shape broadcastable to `[..., queries, keys]`.

    Costs one reduction and one device-to-host read; an expanded view is judged on its base.
    """
    if mask.numel() == 0:
        return Certificate(False, "the mask is empty")
    base = _base_of_expanded(mask)
    if mask.dtype == torch.bool:
        every = bool(base.all())
        return Certificate(every, "all keys are attended" if every else "some keys are masked out")
    if not mask.is_floating_point():
        return Certificate(False, f"the dtype {mask.dtype} is neither bool nor float")
    return _certify_additive(base)


def _certify_additive(mask: Tensor) -> Certificate:
    low, high = mask.amin(-1), mask.amax(-1)
    # A constant so large that adding it rounds the logits away is not cancelled by a floating-point softmax.
    limit = 2.0**-10 / max(torch.finfo(mask.dtype).eps, torch.finfo(torch.float32).eps)
    constant, small = torch.stack([(low == high).all(), (high.abs() <= limit).all()]).tolist()
    if not constant:
        return Certificate(False, "the bias differs between keys")
    if not small:
        return Certificate(False, f"the constant is not finite or above {limit:g}, which would round the logits away")
    return Certificate(True, "one constant for all keys of a query")


def _base_of_expanded(mask: Tensor) -> Tensor:
    """The mask with expanded (stride 0) dimensions cut to size 1: the same values without the repeats."""
    for dim, (size, stride) in enumerate(zip(mask.shape, mask.stride(), strict=True)):
        if stride == 0 and size > 1:
            mask = mask.narrow(dim, 0, 1)
    return mask


class MaskLedger:
    """Verdicts of one run, one reduction per mask, and the counts the report shows.

    A verdict belongs to the tensor object and its version counter. Tensors born in inference mode have no counter, so their verdicts
    are forgotten when the next model call begins.
    """

    def __init__(self, mode: MaskMode = MaskMode.ELIDE) -> None:
        self.mode = mode
        self.calls = 0
        self.masked = 0
        self.elided = 0
        self.kept: Counter[str] = Counter()
        self._tracked = WeakTensorKeyDictionary()  # mask -> (version, certificate)
        self._untracked: list[tuple[Tensor, Certificate]] = []

    def begin_call(self) -> None:
        """Forget verdicts that cannot be watched for writes."""
        self._untracked.clear()

    def rule(self, mask: Tensor | None) -> Tensor | None:
        """The mask to use in one attention call: None where it is removed."""
        self.calls += 1
        if mask is None:
            return None
        self.masked += 1
        certificate = self._verdict(mask)
        if not certificate.removable:
            self.kept[certificate.reason] += 1
            return mask
        if self.mode is MaskMode.OBSERVE:
            self.kept["removable, but only counting was asked for"] += 1
            return mask
        self.elided += 1
        return None

    def _verdict(self, mask: Tensor) -> Certificate:
        if mask.is_inference():
            return self._verdict_untracked(mask)
        known = self._tracked.get(mask)
        if known is None or known[0] != mask._version:
            known = (mask._version, certify(mask))
            self._tracked[mask] = known
        return known[1]

    def _verdict_untracked(self, mask: Tensor) -> Certificate:
        for seen, certificate in self._untracked:
            if seen is mask:
                return certificate
        certificate = certify(mask)
        self._untracked.append((mask, certificate))
        return certificate

    def sentence(self) -> str:
        """What was found, in words."""
        if self.masked == 0:
            return f"0 of {self.calls:,} attention calls carried a mask: nothing to elide"
        kept = "; ".join(f"{count:,} kept because {reason}" for reason, count in self.kept.items())
        return f"{self.masked:,} of {self.calls:,} attention calls carried a mask: {self.elided:,} elided" + (f"; {kept}" if kept else "")


def explicit_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention written out in float64: the specification. `q`, `k`, `v`: `[..., rows, head_dim]`."""
    q, k, v = q.double(), k.double(), v.double()
    logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask.double()
    return logits.softmax(-1) @ v
