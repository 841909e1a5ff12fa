"""What makes a model call of ComfyUI run in full, in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ...backbones.base import CONTROLNET
from ...evaluation import CondCall, Fallback
from ...run import Run
from ..compiling import FROZEN, leaves_graphs
from .sampling import Sampling

OVERRIDE = "optimized_attention_override"

# Patches that want the image at full length after a block.
FULL_LENGTH_PATCHES = frozenset(
    {"double_block", "single_block", "noise_refiner", "attn1_patch", "attn1_output_patch", "attn2_patch", "post_input"}
)


def fallback_of(
    sampling: Sampling, conds: Sequence[CondCall], module: Any, control: Any, options: dict[str, Any], arguments: dict[str, Any]
) -> Fallback | None:
    """Why this call must run in full; None if it need not."""
    return _whose_call(sampling, conds, module, options) or _unless_compiled(sampling.run, module, control, options, arguments)


def _whose_call(sampling: Sampling, conds: Sequence[CondCall], module: Any, options: dict[str, Any]) -> Fallback | None:
    """Why a call is none that the run knows from its other steps; None if it is one."""
    if not conds:
        return Fallback("another node changed the list of conditionings of a model call")
    if not sampling.run.runs(module):
        return Fallback("the guider runs a second model")
    if sampling.changes_attention(conds, options.get(OVERRIDE)):
        return Fallback("it changes the model's attention")
    return None


def is_compiled(options: dict[str, Any]) -> bool:
    """Whether ComfyUI's TorchCompileModel node is on the model."""
    return bool(options.get("wrappers", {}).get("apply_model", {}).get("torch.compile"))


def _unless_compiled(run: Run, module: Any, control: Any, options: dict[str, Any], arguments: dict[str, Any]) -> Fallback | None:
    """Why this call must run at full length; None if it need not."""
    found = _reason(run, module, control, options, arguments)
    if not is_compiled(options):
        return found
    # Hooks cannot reach into a compiled graph: calls with hooks do without it, so there are none where nothing is left out.
    if found is not None:
        return replace(found, readable=False)
    return None if run.selects and leaves_graphs() else Fallback(FROZEN)


def _reason(run: Run, module: Any, control: Any, options: dict[str, Any], arguments: dict[str, Any]) -> Fallback | None:
    if options.get("context_window") is not None:
        return Fallback("context windows slide over the latent")
    if "multigpu_thread_device" in options:
        return Fallback("the model is split over several GPUs")
    if run.backbone is not None:
        refusal = run.backbone.refusal(arguments)
        if refusal is not None:
            return Fallback(refusal)
        if control is not None and run.tokens is not None and not run.backbone.can_cut(control, run.tokens.grid.tokens):
            return Fallback(CONTROLNET, readable=True)
    if options.get("patches_replace", {}).get("dit") and _lets_blocks_be_replaced(module):
        return Fallback("another node replaces blocks of the model", readable=True)
    patches = options.get("patches", {})
    found = sorted(FULL_LENGTH_PATCHES.intersection(name for name, functions in patches.items() if functions))
    if found:
        return Fallback(f"a model patch (`{found[0]}`) works on the image at full length", readable=True)
    return None


def _lets_blocks_be_replaced(module: Any) -> bool:
    """Whether a model looks for replacements of its blocks at all: some families never do, so there is nothing to be careful of."""
    functions = (function for kind in type(module).__mro__ for function in vars(kind).values())
    return any("patches_replace" in code.co_consts for function in functions if (code := getattr(function, "__code__", None)) is not None)
