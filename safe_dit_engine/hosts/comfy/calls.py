"""APPLY_MODEL: one call of the model, with hooks, the attention override, and what becomes of it."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from ...backbones import BACKBONES, mask_source_of
from ...evaluation import CondCall
from ...masks.ledger import MaskLedger, MaskMode
from ...masks.sdpa import judged
from ...masks.sources import tracked
from ...run import Run
from ...selective.model_call import ModelCall
from ..compiling import UNCOMPILED
from .attention import AttentionOverride
from .compiled import compiled_override, name_functions
from .fallbacks import OVERRIDE, fallback_of, is_compiled
from .sampler import RUN
from .sampling import Sampling

Executor = Callable[..., Any]


def sampling_of(model_options: dict[str, Any]) -> Sampling | None:
    """The pack's state of the sampling run these options are of; None where it has none, or none any more."""
    sampling: Sampling | None = model_options.get("transformer_options", {}).get(RUN)
    return None if sampling is None or sampling.over else sampling


def apply_model(
    executor: Executor,
    x: Tensor,
    t: Tensor,
    c_concat: Tensor | None = None,
    c_crossattn: Tensor | None = None,
    control: Any = None,
    transformer_options: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    """One call of the model."""
    options = transformer_options if transformer_options is not None else {}
    sampling = sampling_of({"transformer_options": options})
    inputs = (x, t, c_concat, c_crossattn, control)
    if sampling is None:
        return executor(*inputs, options, **kwargs)
    run, conds = sampling.run, _conds_of(options)
    module = executor.class_obj.diffusion_model  # type: ignore[attr-defined]
    module = getattr(module, "_orig_mod", module)  # torch.compile's wrapper is not the model
    call = run.evaluation.begin_call(conds, x, fallback_of(sampling, conds, module, control, options, kwargs))
    composition = tuple(options.get("uuids", ()))
    if call is None and (run.ledger.mode is MaskMode.OFF or composition in sampling.unmasked):
        return executor(*inputs, options, **kwargs)
    # Such patches are handed the mask and may write to it: ComfyUI samples in inference mode.
    run.ledger.may_be_written_to(bool(options.get("patches_replace", {}).get("dit") or options.get("patches", {}).get("attn1_patch")))
    with _seen_masks(run.ledger, sampling, composition):
        return _with_enough_memory(executor, run, call, options, inputs, kwargs)


@contextmanager
def _seen_masks(ledger: MaskLedger, sampling: Sampling, composition: tuple[Any, ...]) -> Iterator[None]:
    """Remember conditionings whose calls attend without any mask."""
    calls, masked = ledger.calls, ledger.masked
    yield
    if ledger.mode is MaskMode.ELIDE and ledger.calls > calls and ledger.masked == masked:
        sampling.unmasked.add(composition)


def _with_enough_memory(
    executor: Executor, run: Run, call: ModelCall | None, options: dict[str, Any], inputs: tuple[Any, ...], arguments: dict[str, Any]
) -> Any:
    """The call; where memory runs out, once more in full with what was remembered freed."""
    try:
        return _call(executor, run, call, _with_override(run, call, options), inputs, arguments)
    except _memory_errors() as error:
        if not _is_out_of_memory(error) or not run.evaluation.ran_out_of_memory(call):
            raise
    # Outside of the handler: an exception being handled holds the failed call's tensors.
    return _call(executor, run, None, _with_override(run, None, options), inputs, arguments)


def _memory_errors() -> tuple[type[Exception], ...]:
    """What may say that memory ran out, by ComfyUI's own check."""
    import comfy.model_management as management

    return (management.OOM_EXCEPTION, management.ACCELERATOR_ERROR)


def _is_out_of_memory(error: Exception) -> bool:
    import comfy.model_management as management

    found: bool = management.is_oom(error)
    return found


def _conds_of(options: dict[str, Any]) -> list[CondCall]:
    """The conditionings of a model call; empty where their lists do not belong together any more."""
    identities, indices = options.get("uuids", ()), options.get("cond_or_uncond", ())
    return [CondCall(*pair) for pair in zip(identities, indices)] if len(identities) == len(indices) else []


def _call(
    executor: Executor, run: Run, call: ModelCall | None, options: dict[str, Any], inputs: tuple[Any, ...], arguments: dict[str, Any]
) -> Any:
    *tensors, control = inputs
    with ExitStack() as hooks:
        if call is not None and is_compiled(options):
            hooks.enter_context(torch.compiler.set_stance("force_eager"))
            run.note(UNCOMPILED)
        if call is None and is_compiled(options):
            run.ledger.run_compiled()
            hooks.enter_context(judged(run.ledger))
        elif run.ledger.mode is not MaskMode.OFF:
            module = executor.class_obj.diffusion_model  # type: ignore[attr-defined]
            hooks.enter_context(tracked(module, mask_source_of(module, BACKBONES), run.ledger))
        if call is not None:
            hooks.enter_context(call.hooks())
            control = control and call.gathered_control(control)
        if call is not None or not is_compiled(options):
            hooks.enter_context(_lent_attention(run, call))
        denoised = executor(*tensors, control, options, **arguments)
    if call is not None:
        run.evaluation.end_call(call)
    return denoised


def _with_override(run: Run, call: ModelCall | None, options: dict[str, Any]) -> dict[str, Any]:
    """A copy of a call's options with our attention in them, before that of another pack."""
    options, before = copy.copy(options), options.get(OVERRIDE)
    if call is not None or not is_compiled(options):
        options[OVERRIDE] = AttentionOverride(run.ledger, call, before)
    elif before is None:  # what is traced into a graph stays there: one function for all runs, and none around another pack's
        name_functions(_attention_functions())
        options[OVERRIDE] = compiled_override
    return options


def _attention_functions() -> dict[str, Callable[..., Tensor]]:
    """ComfyUI's attention functions as an override is given them."""
    from comfy.ldm.modules import attention

    named = {name: value for name, value in vars(attention).items() if name.startswith("attention")}
    return {name: value.__wrapped__ for name, value in named.items() if hasattr(value, "__wrapped__")}


@contextmanager
def _lent_attention(run: Run, call: ModelCall | None) -> Iterator[None]:
    """Families that give attention no options find another function in their module, for the length of one call."""
    name = None if run.backbone is None else run.backbone.lent_attention
    if name is None:
        yield
        return
    module = sys.modules[name]
    original = module.optimized_attention
    # No override of another node ever reached these models, and none is to reach them through us.
    override = AttentionOverride(run.ledger, call, None)

    def attention(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return override(original, q, k, v, *args, **kwargs)

    module.optimized_attention = attention  # type: ignore[attr-defined]
    try:
        yield
    finally:
        if module.optimized_attention is attention:  # else another pack has put its own there
            module.optimized_attention = original  # type: ignore[attr-defined]
