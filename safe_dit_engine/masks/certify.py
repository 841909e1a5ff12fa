"""Certificate of an attention mask: proof of what it does, and the exact rewrite that follows (paper section "Certified mask elision").

Softmax cancels a constant added to all logits of a query row, so a mask that adds one finite constant per row may be removed: `elide`.
A key that no query attends to has weight zero, so its row of keys and values may be left out: `trim`. Everything else is kept.
`explicit_attention` is the specification the tests hold the rules against.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

# Padding is written as -inf, as the lowest number of a dtype, or as a large negative number; from here down a key counts as masked.
# (in bfloat16 -10,000 is -9,984). Its weight is zero in float32 unless one logit of a row exceeds another by 7,800: far above any that
# leaves a softmax a choice.
MASKED_BELOW = -9e3
# What the other keys of such a row may add at most, so that the distance between the two is never in doubt.
HIGHEST_LEVEL = 1e3

Index = slice | Tensor


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


def explicit_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention written out in float64: the specification. `q`, `k`, `v`: `[..., rows, head_dim]`."""
    q, k, v = q.double(), k.double(), v.double()
    logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask.double()
    return logits.softmax(-1) @ v
