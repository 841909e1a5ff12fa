"""`sdpa`: torch's attention with masks ruled on, for plain torch code and `diffusers` models."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend
from torch.overrides import handle_torch_function, has_torch_function_variadic

from .ledger import MaskLedger, MaskMode
from .ruled import Tap, ruled_attention

Attention = Callable[..., Tensor]


def kernels_of(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, enable_gqa: bool = False) -> str:
    """Kernels of torch's SDPA with and without a mask, in words."""
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
    compiling = torch.compiler.is_compiling()
    tap = None if compiling else _tap()
    if tap is not None:
        return _ruled(None, query, key, value, attn_mask, options, tap)
    if attn_mask is not None:
        if compiling and ledger is None and not torch.is_grad_enabled():
            return _opaque(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
        return _ruled(ledger, query, key, value, attn_mask, options)
    if not compiling:
        _ledger_of(ledger).rule(None, ())
    return _swapped.original(query, key, value, **options)


# What `sdpa` has seen outside any `certified_masks`.
LEDGER = MaskLedger()
_active: ContextVar[MaskLedger | None] = ContextVar("safe_dit_masks", default=None)
# Gives the tap of the model's current block, where a run's model call is under way and the block is one of those it knows.
_taps: ContextVar[Callable[[], Tap | None] | None] = ContextVar("safe_dit_tap", default=None)


def _tap() -> Tap | None:
    found = _taps.get()
    return None if found is None else found()


def active_ledger() -> MaskLedger | None:
    """The ledger that judges the masks of this thread; None: nobody does."""
    return _active.get()


def _ledger_of(given: MaskLedger | None) -> MaskLedger:
    return given or _active.get() or LEDGER


# A verdict traced into a compiled graph would be frozen there.
@torch.compiler.disable
def _ruled(
    given: MaskLedger | None, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, options: dict[str, Any], tap: Tap | None = None
) -> Tensor:
    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return _swapped.original(q, k, v, attn_mask=mask, **options)

    def scores(k: Tensor, _mask: Tensor | None) -> tuple[int, ...]:
        return (*q.shape[:-1], k.shape[-2])

    def kernels(k: Tensor, v: Tensor, mask: Tensor) -> str:
        return kernels_of(q, k, v, mask, options["enable_gqa"])

    plain = options["dropout_p"] == 0.0 and not options["is_causal"] and q.shape[0] == k.shape[0]
    return ruled_attention(
        attend, q, k, v, mask, ledger=_ledger_of(given), tap=tap, scores=scores if plain else None, scale=options["scale"],
        describe=("SDPA", kernels) if q.ndim == 4 else None, heads=q.shape[1] if q.ndim > 2 else 1,
    )  # fmt: skip


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
def attending(ledger: MaskLedger, tap: Callable[[], Tap | None] | None) -> Iterator[None]:
    """Put a run's `ledger` behind torch's SDPA for the length of one call of a model, and what `tap` gives; then torch is as it was."""
    _swapped.enter()
    token = _taps.set(tap)
    try:
        with judged(ledger):
            yield
    finally:
        _taps.reset(token)
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
