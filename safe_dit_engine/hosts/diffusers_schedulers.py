"""What the schedulers of `diffusers` take a model to predict, and how the denoised latent follows from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

# What schedulers mean by noise level sigma: x = x0 + sigma * noise, the same over sqrt(1 + sigma^2), or (1 - sigma) * x0 + sigma * noise.
EXPLODING = frozenset({"EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"})
PRESERVING = frozenset({"DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"})
FLOW = frozenset({"FlowMatchEulerDiscreteScheduler"})


@dataclass(frozen=True)
class Prediction:
    """How the denoised latent follows from the latent and what a model predicts: x0 = `of_latent` * x + `of_output` * output."""

    of_latent: float
    of_output: float

    def denoised(self, output: Tensor, x: Tensor) -> Tensor:
        """Denoised latent, float32."""
        return self.of_latent * x.float() + self.of_output * output.float()

    def output(self, denoised: Tensor, x: Tensor) -> Tensor:
        """What a model predicts where it finds this denoised latent."""
        return (denoised - self.of_latent * x.float()) / self.of_output


def prediction_of(scheduler: Any, sigma: float) -> Prediction | None:
    """What a scheduler takes a model to predict at noise level `sigma`; None where that is not known."""
    name = type(scheduler).__name__
    kind = "flow_prediction" if name in FLOW else scheduler.config.get("prediction_type")
    if kind == "flow_prediction" and (name in FLOW or name in PRESERVING):
        return Prediction(1.0, -sigma)
    if name not in EXPLODING and name not in PRESERVING:
        return None
    length = math.sqrt(1.0 + sigma**2)
    if kind == "epsilon":
        return Prediction(1.0 if name in EXPLODING else length, -sigma)
    if kind == "v_prediction":
        return Prediction(1.0 / (length**2 if name in EXPLODING else length), -sigma / length)
    return Prediction(0.0, 1.0) if kind == "sample" else None
