"""Whether a coarse step (steps/coarse.py) sees what a full one would: what else in ComfyUI knows the size of the latent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from .conds import active_at
from .demo import ROPE_KEY
from .guidance import others_guide
from .sampler import KEY

# Of a cond: what has the latent's size, and what to call it.
SIZED = {"area": "a prompt has an area", "mask": "a prompt has a mask", "control": "a ControlNet is used", "gligen": "GLIGEN is used"}
# Of four dimensions, and no picture: text features of several layers.
TEXT = frozenset({"encoder_hidden_states_llama3"})
# Wrappers that are at home on any size: ours, the demo model's, ComfyUI's own for torch.compile.
ANY_SIZE = frozenset({KEY, ROPE_KEY, "torch.compile"})
WRAPPED = ("predict_noise", "calc_cond_batch", "apply_model", "diffusion_model")


def why_not_coarse(guider: Any, model_options: dict[str, Any], sigma: float, coarse_sigma: float) -> str | None:
    """Why an evaluation at `sigma` cannot run on a smaller latent at `coarse_sigma`, as the end of a sentence; None if it can."""
    conds = [cond for listed in guider.conds.values() for cond in listed or ()]
    if active_at(guider.conds, sigma) != active_at(guider.conds, coarse_sigma):
        return "prompts or ControlNets change at a noise level that it would pass"
    return next(_reasons(conds, model_options), None)


def _reasons(conds: list[Mapping[str, Any]], model_options: dict[str, Any]) -> Iterator[str]:
    yield from (reason for cond in conds for key, reason in SIZED.items() if cond.get(key) is not None)
    for cond in conds:
        yield from (f"the model is given a picture beside the latent (`{name}`)" for name in _pictures(cond.get("model_conds", {})))
    options = model_options.get("transformer_options", {})
    if model_options.get("context_handler") is not None:
        yield "context windows slide over the latent"
    if others_guide(model_options):
        yield "another node works on the guidance"
    if any(functions for functions in options.get("patches", {}).values()) or any(options.get("patches_replace", {}).values()):
        yield "another node patches blocks of the model"
    yield from (f"another node (`{key}`) is wrapped around the model" for key in _foreign_wrappers(model_options))


def _foreign_wrappers(model_options: dict[str, Any]) -> Iterator[str]:
    if model_options.get("model_function_wrapper"):
        yield "model_function_wrapper"
    wrappers = model_options.get("transformer_options", {}).get("wrappers", {})
    yield from (key for kind in WRAPPED for key, found in wrappers.get(kind, {}).items() if found and key not in ANY_SIZE)


def _pictures(model_conds: Mapping[str, Any]) -> Iterator[str]:
    for name, cond in model_conds.items():
        held = cond.cond if isinstance(cond.cond, list | tuple) else [cond.cond]
        if name not in TEXT and any(isinstance(each, Tensor) and each.ndim >= 4 for each in held):
            yield name
