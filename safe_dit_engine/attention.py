"""The attention override: rules on masks, hands keys and values to the model call, chains an override that is already there.

Hosts call it as ComfyUI does (comfy/ldm/modules/attention.py, `wrap_attn`): `override(func, q, k, v, heads, mask, **kwargs)`, with the
mask positional or by keyword, and tensors `[B, heads, rows, head_dim]` when `skip_reshape` is set, else `[B, rows, heads * head_dim]`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .execution import ModelCall
from .masks import MaskLedger, MaskMode

Attention = Callable[..., Tensor]


class AttentionOverride:
    """Stands in for a host's attention function during one model call."""

    def __init__(self, ledger: MaskLedger, call: ModelCall | None, previous: Callable[..., Tensor] | None) -> None:
        self._ledger = ledger
        self._call = call
        self._previous = previous

    def __call__(self, func: Attention, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Attention with a proven mask removed and, inside a tracked block, the run's keys and values."""
        args, kwargs = self._rule_on_mask(args, kwargs)
        if self._call is not None and self._call.block is not None:
            heads = args[0] if args else kwargs["heads"]
            split = bool(kwargs.get("skip_reshape", False))
            mask = args[1] if len(args) > 1 else kwargs.get("mask")
            k, v = self._call.attend(q, k, v, heads=heads, heads_first=split, mask=mask, scale=kwargs.get("scale"))
        if self._previous is not None:
            return self._previous(func, q, k, v, *args, **kwargs)
        return func(q, k, v, *args, **kwargs)

    def _rule_on_mask(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if self._ledger.mode is MaskMode.OFF:
            return args, kwargs
        if len(args) > 1:
            return (args[0], self._ledger.rule(args[1]), *args[2:]), kwargs
        return args, {**kwargs, "mask": self._ledger.rule(kwargs.get("mask"))}
