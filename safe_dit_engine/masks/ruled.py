"""Attention with its mask as it was ruled: the one path that ComfyUI's override and `sdpa` share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from .certify import Verdict, attend_trimmed
from .ledger import MaskLedger

# Attention on q, k, v and a mask or None.
Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


class Tap(Protocol):
    """What stands between a model's attention and its keys, in a call that computes a part of the rows (selective/model_call.py)."""

    def spliced(self, k: Tensor, v: Tensor, mask: Tensor | None, *, heads_first: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys, values and mask at full length."""

    def looked_at(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, heads: int, heads_first: bool, scale: float | None
    ) -> None:
        """Attention is about to run with these, and with what was left of its mask."""


def ruled_attention(
    attend: Attend,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    *,
    ledger: MaskLedger,
    scores: Callable[[Tensor, Tensor | None], tuple[int, ...]] | None,
    describe: tuple[str, Callable[[Tensor, Tensor, Tensor], str]] | None,
    heads: int,
    tap: Tap | None = None,
    heads_first: bool = True,
    scale: float | None = None,
    adds_booleans: bool = False,
) -> Tensor:
    """Attention with a mask rewritten as proven and, where there is a `tap`, with its keys and values.

    Tensors are `[B, heads, rows, head_dim]`, or `[B, rows, heads * head_dim]` where not `heads_first`. `scores`: shape of the attention
    scores by keys and mask; None: the mask is not judged. `describe`: name of the attention, and what a rewritten call ran on, by keys,
    values and mask. `adds_booleans`: see `MaskLedger.rule`.
    """
    if tap is not None:
        k, v, mask = tap.spliced(k, v, mask, heads_first=heads_first)
    certificate = None if scores is None else ledger.rule(mask, scores(k, mask), adds_booleans)
    if certificate is not None and mask is not None and describe is not None:
        name, told = describe
        given = mask
        ledger.rewrote(name, lambda: told(k, v, given))
    left = mask if certificate is None else None
    if tap is not None:
        tap.looked_at(q, k, v, left, heads=heads, heads_first=heads_first, scale=scale)
    if certificate is None or certificate.verdict is Verdict.ELIDE:
        return attend(q, k, v, left)
    return attend_trimmed(lambda q, k, v: attend(q, k, v, None), q, k, v, certificate.groups, k.ndim - 2)
