"""Who guides a prediction of ComfyUI's: nobody, the guider alone, or another node as well."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

# Where other nodes put functions of their own.
FUNCTIONS = ("sampler_cfg_function", "sampler_pre_cfg_function", "sampler_calc_cond_batch_function")


def others_guide(model_options: Mapping[str, Any]) -> bool:
    """Whether another node works on the guidance."""
    after = model_options.get("sampler_post_cfg_function", ())
    foreign = any(not getattr(function, "safe_dit", False) for function in after)
    return foreign or any(model_options.get(name) for name in FUNCTIONS)


def unguided(guider: Any) -> bool:
    """Whether a prediction is the positive prompt's alone: CFG 1, or a guider without a negative prompt."""
    from comfy.samplers import CFGGuider

    plain = getattr(type(guider), "predict_noise", None) is CFGGuider.predict_noise  # others guide in ways of their own
    return plain and math.isclose(guider.cfg, 1.0) and not others_guide(guider.model_options)
