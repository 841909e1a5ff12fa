"""ComfyUI's attention inside a graph of torch.compile: masks are judged by an operator when the graph runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...masks.sdpa import Attention, active_ledger
from .attention import AttentionOverride

# A host's attention functions by name, for graphs that hold no more than the name.
_functions: dict[str, Attention] = {}
_KNOWN_OPTIONS = frozenset(
    {"heads", "mask", "attn_precision", "skip_reshape", "skip_output_reshape", "scale", "enable_gqa", "low_precision_attention"}
)
_WITHOUT_EFFECT = frozenset({"transformer_options", "_inside_attn_wrapper"})


def name_functions(functions: Mapping[str, Attention]) -> None:
    """Make a host's attention functions known to `compiled_override`."""
    _functions.update(functions)


def compiled_override(func: Attention, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Stands in for a host's attention function while a model is compiled: traced, it is that function, or an operator if there is a mask.

    Nothing of a run is compiled in. The operator judges the mask when the graph runs, for the ledger that is active then (`judged`), and
    without one attends as if the pack were not there. So a graph stays right for every later run, with or without the pack.
    """
    mask: Tensor | None = args[1] if len(args) > 1 else kwargs.get("mask")
    unknown = kwargs.keys() - _KNOWN_OPTIONS - _WITHOUT_EFFECT
    if mask is None or unknown or len(args) > 2 or _functions.get(func.__name__) is not func or q.shape[-1] != v.shape[-1]:
        return func(q, k, v, *args, **kwargs)
    heads = args[0] if args else kwargs["heads"]
    return _opaque_function(
        q, k, v, mask, func.__name__, heads, kwargs.get("attn_precision"), kwargs.get("skip_reshape", False),
        kwargs.get("skip_output_reshape", False), kwargs.get("scale"), kwargs.get("enable_gqa", False),
        kwargs.get("low_precision_attention", True),
    )  # fmt: skip


# Its name is that of this copy of the engine, since ComfyUI and a script may each load one.
@torch.library.custom_op(f"safe_dit_{re.sub('[^a-z0-9]', '_', __name__.lower())}::attention", mutates_args=())
def _opaque_function(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, name: str, heads: int, attn_precision: torch.dtype | None, skip_reshape: bool,
    skip_output_reshape: bool, scale: float | None, enable_gqa: bool, low_precision_attention: bool,
) -> Tensor:  # fmt: skip
    func, ledger = _functions[name], active_ledger()
    options: dict[str, Any] = {"skip_reshape": skip_reshape, "skip_output_reshape": skip_output_reshape, "mask": mask}
    given = {"attn_precision": attn_precision, "scale": scale}
    options |= {name: value for name, value in given.items() if value is not None}
    options |= {"enable_gqa": True} if enable_gqa else {}
    options |= {} if low_precision_attention else {"low_precision_attention": False}
    attend = partial(func) if ledger is None else partial(AttentionOverride(ledger, None, None), func)
    return attend(q, k, v, heads, **options).contiguous()


@_opaque_function.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, name: str, heads: int, attn_precision: torch.dtype | None, skip_reshape: bool,
    skip_output_reshape: bool, scale: float | None, enable_gqa: bool, low_precision_attention: bool,
) -> Tensor:  # fmt: skip
    batch, rows = q.shape[0], q.shape[2 if skip_reshape else 1]
    head_dim = q.shape[-1] if skip_reshape else q.shape[-1] // heads
    return q.new_empty((batch, heads, rows, head_dim) if skip_output_reshape else (batch, rows, heads * head_dim))
