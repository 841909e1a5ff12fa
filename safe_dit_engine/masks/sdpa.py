"""Attention with masks ruled on: the override ComfyUI calls, and `sdpa` for plain torch code and `diffusers` models.

ComfyUI calls an override as (comfy/ldm/modules/attention.py, `wrap_attn`) `override(func, q, k, v, heads, mask, **kwargs)`, with the
mask positional or by keyword, and tensors `[B, heads, rows, head_dim]` when `skip_reshape` is set, else `[B, rows, heads * head_dim]`.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend
from torch.overrides import handle_torch_function, has_torch_function_variadic

from ..selective.model_call import ModelCall
from .certify import Certificate, MaskLedger, MaskMode, Verdict, attend_trimmed

Attention = Callable[..., Tensor]

# ComfyUI's attention functions that take a boolean mask for numbers, or for something of another shape than SDPA does.
ADDS_BOOLEANS = frozenset({"attention_basic", "attention_split", "attention_sub_quad"})
# Those that hand every call with a mask to another one (attention.py of ComfyUI).
MASKED_FALLBACK = {"attention_flash": "PyTorch attention", "attention3_sage": "attention_pytorch"}


class AttentionOverride:
    """Stands in for a host's attention function during one model call."""

    def __init__(self, ledger: MaskLedger, call: ModelCall | None, previous: Callable[..., Tensor] | None) -> None:
        self._ledger = ledger
        self._call = call
        self._previous = previous

    def __call__(self, func: Attention, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Attention with a mask rewritten as proven and, inside a tracked block, the run's keys and values."""
        mask: Tensor | None = args[1] if len(args) > 1 else kwargs.get("mask")
        heads_first = bool(kwargs.get("skip_reshape", False))
        if (kwargs.get("transformer_options") or {}).get("optimized_attention_override") is not self:
            self._ledger.origin = None  # another override stands between the model and this one, and may have changed the mask
        call = self._call if self._call is not None and self._call.block is not None else None
        if call is not None:
            given, (k, v, mask) = mask, call.spliced(k, v, mask, heads_first=heads_first)
            if mask is not given:
                args, kwargs = _with_mask(args, kwargs, mask)
        certificate = self._ledger.rule(mask, _scores(q, k, mask, args, kwargs, heads_first), func.__name__ in ADDS_BOOLEANS)
        if certificate is not None and mask is not None:
            self._ledger.rewrote(func.__name__, partial(_described, func, q, k, v, mask, heads_first))
            mask, (args, kwargs) = None, _with_mask(args, kwargs, None)
        if call is not None:
            heads = args[0] if args else kwargs["heads"]
            call.looked_at(q, k, v, mask, heads=heads, heads_first=heads_first, scale=kwargs.get("scale"))

        def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if self._previous is not None:
                return self._previous(func, q, k, v, *args, **kwargs)
            return func(q, k, v, *args, **kwargs)

        if certificate is None or certificate.verdict is Verdict.ELIDE:
            return attention(q, k, v)
        return attend_trimmed(attention, q, k, v, certificate.groups, 2 if heads_first else 1)


# Inside a compiled graph

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


def _scores(q: Tensor, k: Tensor, mask: Tensor | None, args: tuple[Any, ...], kwargs: dict[str, Any], heads_first: bool) -> tuple[int, ...]:
    """Shape of the attention scores as ComfyUI's masks see them: those of three dimensions know no heads."""
    if mask is None:
        return ()
    rows = 2 if heads_first else 1
    heads = (args[0] if args else kwargs["heads"],) if mask.ndim == 4 else ()
    return (q.shape[0], *heads, q.shape[rows], k.shape[rows])


def _with_mask(args: tuple[Any, ...], kwargs: dict[str, Any], mask: Tensor | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return ((args[0], mask, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "mask": mask})


def _described(func: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, heads_first: bool) -> str:
    """What a masked call ran on, and what it runs on now."""
    if func.__name__ in MASKED_FALLBACK:
        return f"{MASKED_FALLBACK[func.__name__]}, to which every mask falls back, is {func.__name__} again"
    if func.__name__ == "attention_pytorch" and heads_first and q.shape[1] == k.shape[1]:
        return f"attention_pytorch: {_kernels(q, k, v, mask.unsqueeze(1) if mask.ndim == 3 else mask)}"
    return f"{func.__name__}, now without a mask"


def _kernels(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, enable_gqa: bool = False) -> str:
    before, after = (kernel_of(q, k, v, given, enable_gqa=enable_gqa) for given in (mask, None))
    return f"{before} kernel with the mask, {after} kernel without"


def kernel_of(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, **kwargs: Any) -> str:
    """Which kernel torch's SDPA would run on `[B, heads, rows, head_dim]`; decided from shapes and types, nothing runs."""
    backend = SDPBackend(torch._fused_sdp_choice(q, k, v, attn_mask=mask, **kwargs))
    return str(backend.name).removesuffix("_ATTENTION").lower()


# Plain torch code


def sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    ledger: MaskLedger | None = None,
) -> Tensor:
    """`F.scaled_dot_product_attention` that removes a mask proven to change nothing and trims padding.

    Shapes, arguments and errors are those of the original. `ledger` counts and remembers verdicts: that of `certified_masks` where one
    is active, else the process-wide `LEDGER`. A call with dropout or `is_causal` is left as it is.
    """
    options: dict[str, Any] = {"dropout_p": dropout_p, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
    if F.scaled_dot_product_attention is sdpa and has_torch_function_variadic(query, key, value, attn_mask):
        # A mode may look for the function of that name, which is this one now (diffusers/hooks/layer_skip.py).
        relevant = tuple(x for x in (query, key, value, attn_mask) if x is not None)
        result: Tensor = handle_torch_function(sdpa, relevant, query, key, value, attn_mask, **options, ledger=ledger)
        return result
    if _swapped.idle and ledger is None:
        return _swapped.original(query, key, value, attn_mask=attn_mask, **options)
    call = None if torch.compiler.is_compiling() else _calls.get()
    if call is not None and call.block is not None:
        return _in_call(call, query, key, value, attn_mask, options)
    if attn_mask is not None:
        if torch.compiler.is_compiling() and ledger is None and not torch.is_grad_enabled():
            return _opaque(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
        return _ruled(ledger, query, key, value, attn_mask, options)
    if not torch.compiler.is_compiling():
        _ledger_of(ledger).calls += 1
    return _swapped.original(query, key, value, **options)


# What `sdpa` has seen outside any `certified_masks`.
LEDGER = MaskLedger()
_active: ContextVar[MaskLedger | None] = ContextVar("safe_dit_masks", default=None)
_calls: ContextVar[ModelCall | None] = ContextVar("safe_dit_call", default=None)


def _ledger_of(given: MaskLedger | None) -> MaskLedger:
    return given or _active.get() or LEDGER


# A verdict traced into a compiled graph would be frozen there.
@torch.compiler.disable
def _ruled(given: MaskLedger | None, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, options: dict[str, Any]) -> Tensor:
    ledger = _ledger_of(given)
    certificate = _certificate(ledger, q, k, mask, options)
    return _rewritten(ledger, certificate, q, k, v, mask, options)


def _certificate(ledger: MaskLedger, q: Tensor, k: Tensor, mask: Tensor | None, options: dict[str, Any]) -> Certificate | None:
    plain = options["dropout_p"] == 0.0 and not options["is_causal"] and q.shape[0] == k.shape[0]
    return ledger.rule(mask, (*q.shape[:-1], k.shape[-2])) if plain else None


def _in_call(call: ModelCall, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, options: dict[str, Any]) -> Tensor:
    """Attention inside a tracked block, with the run's keys and values."""
    ledger = _ledger_of(None)
    k, v, mask = call.spliced(k, v, mask, heads_first=True)
    certificate = _certificate(ledger, q, k, mask, options)
    left = mask if certificate is None else None
    call.looked_at(q, k, v, left, heads=q.shape[1], heads_first=True, scale=options["scale"])
    return _rewritten(ledger, certificate, q, k, v, mask, options)


def _rewritten(
    ledger: MaskLedger, certificate: Certificate | None, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, options: dict[str, Any]
) -> Tensor:
    """Attention with its mask as it was ruled."""
    if certificate is None or mask is None:
        return _swapped.original(q, k, v, attn_mask=mask, **options)
    if q.ndim == 4:
        ledger.rewrote("SDPA", lambda: _kernels(q, k, v, mask, options["enable_gqa"]))
    attention = partial(_swapped.original, **options)
    if certificate.verdict is Verdict.ELIDE:
        return attention(q, k, v)
    return attend_trimmed(attention, q, k, v, certificate.groups, k.ndim - 2)


# A whole-graph compilation allows no break: there the ruling is an operator of its own, run when the graph runs. Its name is that of this
# copy of the engine, since ComfyUI and a script may each load one.
@torch.library.custom_op(f"safe_dit_{re.sub('[^a-z0-9]', '_', __name__.lower())}::sdpa", mutates_args=())
def _opaque(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout_p: float, is_causal: bool, scale: float | None, enable_gqa: bool
) -> Tensor:
    options: dict[str, Any] = {"dropout_p": dropout_p, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
    return _ruled(None, q, k, v, mask, options).contiguous()


@_opaque.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout_p: float, is_causal: bool, scale: float | None, enable_gqa: bool
) -> Tensor:
    return q.new_empty((*q.shape[:-1], v.shape[-1]))


# The same for a host's attention functions, which are looked up by `name`.
@torch.library.custom_op(f"safe_dit_{re.sub('[^a-z0-9]', '_', __name__.lower())}::attention", mutates_args=())
def _opaque_function(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, name: str, heads: int, attn_precision: torch.dtype | None, skip_reshape: bool,
    skip_output_reshape: bool, scale: float | None, enable_gqa: bool, low_precision_attention: bool,
) -> Tensor:  # fmt: skip
    func, ledger = _functions[name], _active.get()
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


class _Swapped:
    """`F.scaled_dot_product_attention` while `sdpa` stands in for it: once for the process, however many threads ask.

    Another library may put its own over `sdpa` in the meantime, and call `sdpa` from there. Then nothing is put back, which would take
    theirs away: `sdpa` hands on what it is given (`idle`) until somebody asks for it again.
    """

    def __init__(self) -> None:
        self.original: Attention = F.scaled_dot_product_attention
        self.idle = False
        self._users = 0
        self._lock = threading.Lock()

    def enter(self) -> None:
        with self._lock:
            covered = self.idle and F.scaled_dot_product_attention is not self.original
            if self._users == 0 and not covered:
                self.original, F.scaled_dot_product_attention = F.scaled_dot_product_attention, sdpa
            self.idle = False
            self._users += 1

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users > 0:
                return
            if F.scaled_dot_product_attention is sdpa:
                F.scaled_dot_product_attention = self.original
            else:
                self.idle = True


_swapped = _Swapped()


@contextmanager
def certified_masks(model: nn.Module | None = None, mode: MaskMode = MaskMode.ELIDE) -> Iterator[MaskLedger]:
    """Rule on the masks of everything that calls torch's SDPA inside the block: `diffusers`, `transformers`, plain torch code.

    `model`: only what this module does is judged, and verdicts on masks made in inference mode last for one call of it. Yields the
    ledger, whose `sentence()` says what was found. Other threads are not touched; afterwards torch is as it was.
    """
    ledger = MaskLedger(mode, bracketed=model is not None)
    _swapped.enter()
    try:
        with judged(ledger) if model is None else _judged_in(model, ledger):
            yield ledger
    finally:
        _swapped.leave()


@contextmanager
def attending(ledger: MaskLedger, call: ModelCall | None) -> Iterator[None]:
    """Put a run's `ledger` and model `call` behind torch's SDPA for the length of one call of a model; then torch is as it was."""
    _swapped.enter()
    token = _calls.set(call)
    try:
        with judged(ledger):
            yield
    finally:
        _calls.reset(token)
        _swapped.leave()


@contextmanager
def judged(ledger: MaskLedger) -> Iterator[None]:
    """Let this ledger judge the masks of this thread."""
    token = _active.set(ledger)
    try:
        yield
    finally:
        _active.reset(token)


@contextmanager
def _judged_in(model: nn.Module, ledger: MaskLedger) -> Iterator[None]:
    tokens = []

    def enter(*_: Any) -> None:
        ledger.begin_call()
        tokens.append(_active.set(ledger))

    def leave(*_: Any) -> None:
        _active.reset(tokens.pop())

    handles = [model.register_forward_pre_hook(enter), model.register_forward_hook(leave, always_call=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
