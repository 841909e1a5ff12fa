"""Coarse steps (steps/coarse.py) in a pipeline: its transformer is called on a smaller latent, and gives the pipeline one of full size.

The pipeline combines what its conds gave pixel by pixel, so every pixel of a small prediction is handed to it four times; `step` of the
scheduler takes one of the four back. Possible with flow matching, where the noise level can be read off the `timestep`, and where the
transformer is given nothing else that has the latent's size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...evaluation import Evaluation
from ...steps.coarse import CoarseLevel, coarse_level, pool
from ...steps.levels import flow_parts
from .schedulers import Prediction, flows, is_inverted

# Tensors that have no pixels; with any other one that it does not know, a step runs in full.
NO_PICTURES = frozenset({
    "hidden_states", "timestep", "encoder_hidden_states", "encoder_attention_mask", "encoder_hidden_states_image", "pooled_projections",
    "guidance",
})  # fmt: skip
# A side that is no multiple of it is not the same after halving and doubling.
EDGES = 4


@dataclass(frozen=True)
class TimestepLaw:
    """What a transformer is told of a noise level: `offset` + `factor` * sigma."""

    factor: float
    offset: float = 0.0

    def __call__(self, sigma: float) -> float:
        return self.offset + self.factor * sigma


def law_of(scheduler: Any, module: nn.Module, arguments: Mapping[str, Any], sigma: float) -> TimestepLaw | None:
    """How the `timestep` follows from the noise level, seen at the first, `sigma`; None where no coarse step is possible."""
    x, timestep = arguments.get("hidden_states"), arguments.get("timestep")
    if not flows(scheduler) or is_inverted(scheduler) or not isinstance(x, Tensor):
        return None
    if not isinstance(timestep, Tensor) or timestep.ndim > 1:
        return None
    if x.ndim not in (4, 5) or any(side % EDGES for side in x.shape[-2:]) or not _gives_back(module) or any(_sized(arguments)):
        return None
    length = float(scheduler.config.num_train_timesteps)
    laws = (TimestepLaw(length), TimestepLaw(1.0), TimestepLaw(-1.0, 1.0))
    seen = float(timestep.flatten()[0])
    return next((law for law in laws if abs(law(sigma) - seen) <= 1e-3 * abs(law.factor)), None)


def _gives_back(module: nn.Module) -> bool:
    """Whether a model's latent holds no picture beside the one that it predicts."""
    config: Any = getattr(module, "config", {})
    given, gives = config.get("in_channels"), config.get("out_channels")
    return gives is None or given == gives


def _sized(arguments: Mapping[str, Any]) -> list[str]:
    """Names of arguments that may have the latent's size."""
    return [name for name, value in arguments.items() if name not in NO_PICTURES and _holds_tensors(value)]


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_holds_tensors(each) for each in value.values())
    if isinstance(value, list | tuple):
        return any(_holds_tensors(each) for each in value)
    return isinstance(value, Tensor)


@dataclass(frozen=True)
class Smaller:
    """An evaluation on a quarter of the pixels, at its own noise level."""

    level: CoarseLevel
    law: TimestepLaw

    def call(self, forward: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
        """`forward` on the smaller latent; what it gives has full size."""
        x = pool(arguments["hidden_states"]) * self.level.scale
        timestep = torch.full_like(arguments["timestep"], self.law(self.level.sigma))
        output = forward(**{**arguments, "hidden_states": x, "timestep": timestep})
        if isinstance(output, tuple):
            return (_spread(output[0]), *output[1:])
        return type(output)(sample=_spread(output.sample))

    def denoised(self, model_output: Tensor, x: Tensor) -> Tensor:
        """The denoised latent `[images, C, h, w]`, float32, of a prediction and a latent of full size."""
        return Prediction(1.0, -self.level.sigma).denoised(model_output[..., ::2, ::2], pool(x.float()) * self.level.scale)


def smaller(evaluation: Evaluation, x: Tensor, law: TimestepLaw | None) -> Smaller | None:
    """How an evaluation runs on less than the latents `x` `[images, C, H, W]`; None where it runs on them."""
    if law is None or evaluation.coarse(x, lambda sigma: None) is None:
        return None
    level = coarse_level(evaluation.sigma, flow_parts)
    assert level is not None, "the evaluation has just found it"
    return Smaller(level, law)


def _spread(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, -1).repeat_interleave(2, -2)
