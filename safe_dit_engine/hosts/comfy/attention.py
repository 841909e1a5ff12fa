"""ComfyUI's attention override: masks ruled on, and the run's keys and values where a part of the rows is computed.

ComfyUI calls an override as (comfy/ldm/modules/attention.py, `wrap_attn`) `override(func, q, k, v, heads, mask, **kwargs)`, with the
mask positional or by keyword, and tensors `[B, heads, rows, head_dim]` when `skip_reshape` is set, else `[B, rows, heads * head_dim]`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from ...masks.ledger import MaskLedger
from ...masks.ruled import ruled_attention
from ...masks.sdpa import Attention, kernels_of
from ...selective.model_call import ModelCall

# ComfyUI's attention functions that take a boolean mask for numbers, or for something of another shape than SDPA does.
ADDS_BOOLEANS = frozenset({"attention_basic", "attention_split", "attention_sub_quad"})
# Those that hand every call with a mask to another one (attention.py of ComfyUI).
MASKED_FALLBACK = {"attention_flash": "PyTorch attention", "attention3_sage": "attention_pytorch"}


class AttentionOverride:
    """Stands in for ComfyUI's attention functions during one model call, before the override that was there (`previous`)."""

    def __init__(self, ledger: MaskLedger, call: ModelCall | None, previous: Callable[..., Tensor] | None) -> None:
        self._ledger = ledger
        self._call = call
        self._previous = previous

    def __call__(self, func: Attention, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Attention with a mask rewritten as proven and, inside a tracked block, the run's keys and values."""
        mask: Tensor | None = args[1] if len(args) > 1 else kwargs.get("mask")
        heads, heads_first = args[0] if args else kwargs["heads"], bool(kwargs.get("skip_reshape", False))
        if (kwargs.get("transformer_options") or {}).get("optimized_attention_override") is not self:
            self._ledger.enter(None)  # another override stands between the model and this one, and may have changed the mask
        attention = func if self._previous is None else partial(self._previous, func)

        def attend(q: Tensor, k: Tensor, v: Tensor, left: Tensor | None) -> Tensor:
            given, named = (args, kwargs) if left is mask else _with_mask(args, kwargs, left)
            return attention(q, k, v, *given, **named)

        def scores(k: Tensor, mask: Tensor | None) -> tuple[int, ...]:
            return _scores(q, k, mask, heads, heads_first)

        def described(k: Tensor, v: Tensor, mask: Tensor) -> str:
            return _described(func, q, k, v, mask, heads_first)

        return ruled_attention(
            attend, q, k, v, mask, ledger=self._ledger, tap=None if self._call is None else self._call.attention.tap(), scores=scores,
            describe=(func.__name__, described), heads=heads, heads_first=heads_first, scale=kwargs.get("scale"),
            adds_booleans=func.__name__ in ADDS_BOOLEANS,
        )  # fmt: skip


def _scores(q: Tensor, k: Tensor, mask: Tensor | None, heads: int, heads_first: bool) -> tuple[int, ...]:
    """Shape of the attention scores as ComfyUI's masks see them: those of three dimensions know no heads."""
    if mask is None:
        return ()
    rows = 2 if heads_first else 1
    return (q.shape[0], *((heads,) if mask.ndim == 4 else ()), q.shape[rows], k.shape[rows])


def _with_mask(args: tuple[Any, ...], kwargs: dict[str, Any], mask: Tensor | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return ((args[0], mask, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "mask": mask})


def _described(func: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, heads_first: bool) -> str:
    """What a masked call ran on, and what it runs on now."""
    if func.__name__ in MASKED_FALLBACK:
        return f"{MASKED_FALLBACK[func.__name__]}, to which every mask falls back, is {func.__name__} again"
    if func.__name__ == "attention_pytorch" and heads_first and q.shape[1] == k.shape[1]:
        return f"attention_pytorch: {kernels_of(q, k, v, mask.unsqueeze(1) if mask.ndim == 3 else mask)}"
    return f"{func.__name__}, now without a mask"
