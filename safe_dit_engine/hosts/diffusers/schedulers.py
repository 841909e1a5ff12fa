"""What the schedulers of `diffusers` take a model to predict, at which noise levels they ask for it, and what they make of it.

A table by class name. With a scheduler that is not in it everything runs in full: the prediction of a skipped step must be put into the
scheduler's own words.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from torch import Tensor

from ...steps.plan import ScheduleConfig
from ...steps.samplers import EULER, SAMPLERS, Sampler

# A first level of pure noise is as far up as `diffusers` itself puts it (`EulerDiscreteScheduler`).
LEAST_SIGNAL = 2.0**-24


class Noise(Enum):
    """What a noise level sigma means."""

    EXPLODING = "x = x0 + sigma * noise"
    PRESERVING = "x = (x0 + sigma * noise) / sqrt(1 + sigma^2)"
    FLOW = "x = (1 - sigma) * x0 + sigma * noise"


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


Level = Callable[[Any, int], float]


def _given(scheduler: Any, index: int) -> float:
    level = float(scheduler.sigmas[index])
    return 1.0 - level if is_inverted(scheduler) else level


def _of_timestep(scheduler: Any, index: int) -> float:
    signal = max(float(scheduler.alphas_cumprod[int(scheduler.timesteps[index])]), LEAST_SIGNAL)
    return math.sqrt((1.0 - signal) / signal)


def _between(scheduler: Any, index: int) -> float:
    return math.sqrt(float(scheduler.sigmas[index - 1]) * float(scheduler.sigmas[index]))


def _interpolated(scheduler: Any, index: int) -> float:
    return float(scheduler.sigmas_interpol[index])


def _interpolated_before(scheduler: Any, index: int) -> float:
    return float(scheduler.sigmas_interpol[index - 1])


@dataclass(frozen=True)
class Known:
    """What is known of a class of schedulers.

    `level`: noise level of an evaluation. `second`: that of every second evaluation, where a step has two. `sampler`: what it makes of a
    prediction, and what presets may leave out. `forgets`: nothing but the prediction is left of a latent.
    """

    noise: Noise
    level: Level = _given
    second: Level | None = None
    sampler: Sampler = EULER
    forgets: bool = False

    @property
    def evaluations(self) -> int:
        """Model evaluations a step."""
        return 1 if self.second is None else 2

    @property
    def allows_skipped_steps(self) -> bool:
        """Whether a run with steps left out comes closer to the full one than one of fewer steps."""
        return self.evaluations == 1 and not self.forgets

    def levels(self, scheduler: Any, begin: int) -> list[float]:
        """Noise levels of the evaluations from the timestep `begin` on; a timestep at which nothing is left to do is no evaluation."""
        count = len(scheduler.timesteps)
        if self.level is _given:
            count = min(count, len(scheduler.sigmas) - 1)
        second = self.second or self.level
        return [(second if index % self.evaluations else self.level)(scheduler, index) for index in range(begin, count)]

    def end(self, scheduler: Any) -> float:
        """The noise level that the last step leads to."""
        return 0.0 if self.level is not _given else self.level(scheduler, min(len(scheduler.timesteps), len(scheduler.sigmas) - 1))


# By what was measured (docs/diffusers.md); multistep schedulers that were not are treated as DPM++ 2M.
STOCHASTIC = Sampler(stochastic=True, selective=0)
SECOND_ORDER = SAMPLERS["sample_dpmpp_2m"]
# Unlike dpmpp_2m_sde, whose noise comes from one path, so that runs of fewer steps come close: here these draw other noise.
SECOND_ORDER_SDE = Sampler(memory=1, stochastic=True, skipped=1, selective=0, reach=0.6, guided=True)
MULTISTEP = replace(SECOND_ORDER, corrector=False)
# Its last prediction corrects the step before as well, and with steps left out single pictures were up to 13 dB behind fewer steps.
UNIPC = Sampler(memory=2, forecast=True, skipped=0, selective=0)

SCHEDULERS = {
    "FlowMatchEulerDiscreteScheduler": Known(Noise.FLOW),
    "FlowMatchHeunDiscreteScheduler": Known(Noise.FLOW, second=_given),
    "FlowMatchLCMScheduler": Known(Noise.FLOW, sampler=STOCHASTIC, forgets=True),
    "LTXEulerAncestralRFScheduler": Known(Noise.FLOW, sampler=STOCHASTIC),
    "DPMSolverMultistepScheduler": Known(Noise.PRESERVING, sampler=SECOND_ORDER),
    "DPMSolverSinglestepScheduler": Known(Noise.PRESERVING, sampler=MULTISTEP),
    "UniPCMultistepScheduler": Known(Noise.PRESERVING, sampler=UNIPC),
    "DEISMultistepScheduler": Known(Noise.PRESERVING, sampler=MULTISTEP),
    "SASolverScheduler": Known(Noise.PRESERVING, sampler=SECOND_ORDER_SDE),
    "EulerDiscreteScheduler": Known(Noise.EXPLODING),
    "EulerAncestralDiscreteScheduler": Known(Noise.EXPLODING, sampler=STOCHASTIC),
    "LMSDiscreteScheduler": Known(Noise.EXPLODING, sampler=MULTISTEP),
    "HeunDiscreteScheduler": Known(Noise.EXPLODING, second=_given),
    "KDPM2DiscreteScheduler": Known(Noise.EXPLODING, second=_interpolated),
    "KDPM2AncestralDiscreteScheduler": Known(Noise.EXPLODING, second=_interpolated_before, sampler=STOCHASTIC),
    "DPMSolverSDEScheduler": Known(Noise.EXPLODING, second=_between, sampler=STOCHASTIC),
    "EDMDPMSolverMultistepScheduler": Known(Noise.EXPLODING, sampler=MULTISTEP),
    "CosineDPMSolverMultistepScheduler": Known(Noise.EXPLODING, sampler=SECOND_ORDER_SDE),
    "DDIMScheduler": Known(Noise.PRESERVING, level=_of_timestep),
    "CogVideoXDDIMScheduler": Known(Noise.PRESERVING, level=_of_timestep),
    "DDPMScheduler": Known(Noise.PRESERVING, level=_of_timestep, sampler=STOCHASTIC),
    "LCMScheduler": Known(Noise.PRESERVING, level=_of_timestep, sampler=STOCHASTIC, forgets=True),
}


def known_of(scheduler: Any) -> Known | None:
    """What is known of a scheduler as it is set; None where nothing is, or where it changes the latent's size on the way."""
    known = SCHEDULERS.get(type(scheduler).__name__)
    if known is None or getattr(scheduler, "_scale_factors", None):
        return None
    if scheduler.config.get("stochastic_sampling"):
        return replace(known, sampler=STOCHASTIC, forgets=True)
    sde = str(scheduler.config.get("algorithm_type")).startswith("sde")
    return replace(known, sampler=SECOND_ORDER_SDE) if sde else known


def suited(schedule: ScheduleConfig, known: Known) -> ScheduleConfig:
    """A schedule, of full steps alone where a scheduler does not allow others."""
    return schedule if known.allows_skipped_steps else replace(schedule, refresh_interval=1, coarse_steps=0, speedup=0.0)


def prediction_of(scheduler: Any, sigma: float) -> Prediction | None:
    """What a scheduler takes a model to predict at noise level `sigma`; None where that is not known."""
    known = known_of(scheduler)
    if known is None:
        return None
    if known.noise is Noise.FLOW:
        return Prediction(1.0, sigma if is_inverted(scheduler) else -sigma)
    kind = scheduler.config.get("prediction_type")
    if kind == "sample":
        return Prediction(0.0, 1.0)
    if "sigma_data" in scheduler.config:
        return _scaled(kind, sigma, scheduler.config.sigma_data)
    if kind == "flow_prediction":
        return Prediction(1.0, -sigma) if known.noise is Noise.PRESERVING and known.level is _given else None
    if known.noise is Noise.EXPLODING:
        return _exploding(kind, sigma)
    length = 1.0 if scheduler.config.get("use_flow_sigmas") else math.sqrt(1.0 + sigma**2)
    signal = (1.0 - sigma) if scheduler.config.get("use_flow_sigmas") else 1.0 / length
    return _preserving(kind, signal, sigma / length)


def _exploding(kind: str, sigma: float) -> Prediction | None:
    if kind == "epsilon":
        return Prediction(1.0, -sigma)
    return _scaled(kind, sigma, 1.0) if kind == "v_prediction" else None


def _preserving(kind: str, signal: float, noise: float) -> Prediction | None:
    """x = `signal` * x0 + `noise` * noise."""
    if kind == "epsilon":
        return Prediction(1.0 / signal, -noise / signal) if signal else None
    return Prediction(signal, -noise) if kind == "v_prediction" else None


def _scaled(kind: str, sigma: float, data: float) -> Prediction | None:
    """EDM's scaling, for latents of standard deviation `data`."""
    square = sigma**2 + data**2
    sign = {"epsilon": 1.0, "v_prediction": -1.0}.get(kind)
    return None if sign is None else Prediction(data**2 / square, sign * sigma * data / math.sqrt(square))


def flows(scheduler: Any) -> bool:
    """Whether x = (1 - sigma) * x0 + sigma * noise at its levels."""
    known = known_of(scheduler)
    return known is not None and (known.noise is Noise.FLOW or bool(scheduler.config.get("use_flow_sigmas")))


def is_inverted(scheduler: Any) -> bool:
    """Whether its levels rise from 0 to 1 (Mochi); ours fall all the same."""
    return bool(scheduler.config.get("invert_sigmas"))


@dataclass(frozen=True)
class Timetable:
    """The noise levels of a run: of its steps and its end; and of every evaluation, `per_step` of them in a step but perhaps the last."""

    steps: tuple[float, ...]
    evaluations: tuple[float, ...]
    per_step: int

    def step(self, index: int) -> int:
        """The step that an evaluation belongs to."""
        return index // self.per_step


def timetable_of(scheduler: Any, begin: int) -> Timetable | None:
    """From the timestep `begin` on; None where the scheduler is not known, or its noise levels do not fall."""
    known = known_of(scheduler)
    if known is None or begin % known.evaluations:
        return None
    evaluations = known.levels(scheduler, begin)
    steps = [*evaluations[:: known.evaluations], known.end(scheduler)]
    falling = all(before >= after for before, after in zip(steps, steps[1:], strict=False))
    if not evaluations or not falling or min(evaluations) <= 0.0 or prediction_of(scheduler, evaluations[0]) is None:
        return None
    return Timetable(tuple(steps), tuple(evaluations), known.evaluations)
