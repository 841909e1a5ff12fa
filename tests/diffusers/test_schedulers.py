"""Every scheduler the engine knows: what it takes a model to predict, at which noise levels, and what a run on it does."""

from __future__ import annotations

import inspect
import math
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from safe_dit_engine.hosts.diffusers.schedulers import SCHEDULERS, Noise, Prediction, prediction_of, timetable_of

from ..support.diffusers_pipelines import noise

STEPS = 8
KINDS = ("epsilon", "v_prediction", "sample", "flow_prediction")
# Settings of a class that change what its levels or predictions mean.
SETTINGS: dict[str, tuple[dict[str, Any], ...]] = {
    "FlowMatchEulerDiscreteScheduler": ({"shift": 3.0}, {"stochastic_sampling": True}, {"invert_sigmas": True}),
    "DPMSolverMultistepScheduler": ({"algorithm_type": "sde-dpmsolver++"}, {"use_karras_sigmas": True}, {"use_flow_sigmas": True}),
    "UniPCMultistepScheduler": ({"use_karras_sigmas": True}, {"use_flow_sigmas": True}),
    "EulerDiscreteScheduler": ({"use_beta_sigmas": True}, {"rescale_betas_zero_snr": True}),
    "KDPM2DiscreteScheduler": ({"use_karras_sigmas": True},),
    "CogVideoXDDIMScheduler": ({"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},),
}  # fmt: skip
REFUSED = {
    ("EDMDPMSolverMultistepScheduler", "sample"), ("CosineDPMSolverMultistepScheduler", "sample"),
    ("EulerAncestralDiscreteScheduler", "sample"), ("KDPM2DiscreteScheduler", "sample"), ("KDPM2AncestralDiscreteScheduler", "sample"),
    ("DPMSolverSDEScheduler", "sample"),
}  # fmt: skip


def parameters(name: str) -> frozenset[str]:
    return frozenset(inspect.signature(getattr(diffusers, name).__init__).parameters)


def kinds(name: str) -> list[str]:
    """What a class can be told that the model predicts."""
    known = parameters(name)
    if "prediction_type" not in known:
        return ["flow_prediction"]
    return [kind for kind in KINDS if (name, kind) not in REFUSED and (kind != "flow_prediction" or "use_flow_sigmas" in known)]


CASES = [
    (name, kind, settings)
    for name in SCHEDULERS
    for kind in kinds(name)
    for settings in ({}, *SETTINGS.get(name, ()))
    if not (kind == "flow_prediction" and "use_karras_sigmas" in settings)
    # Of a latent of noise alone, noise says nothing about the picture.
    if not (kind == "epsilon" and "rescale_betas_zero_snr" in settings and name.startswith("CogVideoX"))
]
DEFINED = [case for case in CASES if set(case[2]) <= {"invert_sigmas"}]


def title(value: object) -> str:
    return "-".join(value) if isinstance(value, dict) else str(value)


def made(name: str, kind: str, settings: dict[str, Any]) -> Any:
    known = parameters(name)
    options = {"prediction_type": kind, "use_flow_sigmas": kind == "flow_prediction", "clip_sample": False, "noise_sampler_seed": 0}
    scheduler = getattr(diffusers, name)(**{option: value for option, value in options.items() if option in known} | settings)
    scheduler.set_timesteps(STEPS)
    return scheduler


def shares(scheduler: Any, level: float) -> tuple[float, float]:
    """What a latent at a noise level has of the picture and of noise."""
    meaning = SCHEDULERS[type(scheduler).__name__].noise
    if meaning is Noise.FLOW or scheduler.config.get("use_flow_sigmas"):
        return 1.0 - level, level
    length = math.sqrt(1.0 + level**2)
    return (1.0, level) if meaning is Noise.EXPLODING else (1.0 / length, level / length)


def predicted(kind: str, picture: Tensor, grain: Tensor, signal: float, level: float) -> Tensor:
    """What a model predicts by the definition of each kind."""
    v = signal * grain - level * picture
    return {"epsilon": grain, "v_prediction": v, "sample": picture, "flow_prediction": grain - picture}[kind]


def stepped(scheduler: Any, output: Tensor, index: int, x: Tensor) -> Tensor:
    timestep = scheduler.timesteps[index]
    if hasattr(scheduler, "scale_model_input"):
        scheduler.scale_model_input(x, timestep)
    options = inspect.signature(scheduler.step).parameters
    generator = {"generator": torch.Generator().manual_seed(100 + index)} if "generator" in options else {}
    moved: Tensor = scheduler.step(output, timestep, x, return_dict=False, **generator)[0]
    return moved


@pytest.mark.parametrize(("name", "kind", "settings"), CASES, ids=title)
def test_a_scheduler_takes_a_prediction_for_what_the_table_says(name: str, kind: str, settings: dict[str, Any]) -> None:
    """A model that knows the picture leads the scheduler along the levels of the table: every latent holds just so much of it."""
    scheduler = made(name, kind, settings)
    timetable = timetable_of(scheduler, 0)
    assert timetable is not None and len(timetable.evaluations) == len(scheduler.timesteps)
    assert len(timetable.steps) == STEPS + 1
    picture, grain = noise(1, 1, 4, 64, 64), noise(2, 1, 4, 64, 64)
    signal, level = shares(scheduler, timetable.evaluations[0])
    x = signal * picture + level * grain
    levels = (*timetable.evaluations[1:], timetable.steps[-1])
    for index, (at, after) in enumerate(zip(timetable.evaluations, levels, strict=True)):
        prediction = prediction_of(scheduler, at)
        assert prediction is not None
        x = stepped(scheduler, prediction.output(picture, x), index, x)
        signal, level = shares(scheduler, after)
        rest = x - signal * picture
        assert abs(float((rest * picture).mean())) < 0.03 * max(level, 0.05)
        assert abs(float(rest.std()) - level) <= 0.03 * level + 2e-3
    assert torch.isfinite(x).all()


@pytest.mark.parametrize(("name", "kind", "settings"), DEFINED, ids=title)
def test_the_denoised_latent_is_the_picture(name: str, kind: str, settings: dict[str, Any]) -> None:
    scheduler = made(name, kind, settings)
    timetable = timetable_of(scheduler, 0)
    assert timetable is not None
    picture, grain = noise(1, 1, 4, 8, 8), noise(2, 1, 4, 8, 8)
    for at in timetable.evaluations[1:]:
        signal, level = shares(scheduler, at)
        x, prediction = signal * picture + level * grain, prediction_of(scheduler, at)
        assert prediction is not None
        if kind in ("epsilon", "v_prediction") and "sigma_data" in parameters(name):
            data = scheduler.config.sigma_data
            skip, scale = data**2 / (at**2 + data**2), at * data / math.sqrt(at**2 + data**2)
            output = (picture - skip * x) / (scale if kind == "epsilon" else -scale)
        elif scheduler.config.get("prediction_type") == "v_prediction" and SCHEDULERS[name].noise is Noise.EXPLODING:
            length = math.sqrt(1.0 + at**2)  # defined on the latent as it goes into the model
            output = predicted(kind, picture, grain, 1.0 / length, at / length)
        else:
            output = predicted(kind, picture, grain, signal, level)
            if kind == "v_prediction" and scheduler.config.get("use_flow_sigmas"):
                continue  # no definition for such latents: the scheduler's own rule is tested above
        if scheduler.config.get("invert_sigmas"):
            output = -output
        torch.testing.assert_close(prediction.denoised(output, x), picture, rtol=1e-4, atol=2e-3)
        torch.testing.assert_close(prediction.output(picture, x), output, rtol=1e-3, atol=2e-2)


def test_a_wrong_prediction_would_be_seen() -> None:
    scheduler = made("EulerDiscreteScheduler", "epsilon", {})
    wrong, right = Prediction(1.0, -1.1 * float(scheduler.sigmas[0])), prediction_of(scheduler, float(scheduler.sigmas[0]))
    assert right is not None
    picture, x = noise(1, 1, 4, 64, 64), noise(2, 1, 4, 64, 64) * float(scheduler.sigmas[0])
    moved = [stepped(made("EulerDiscreteScheduler", "epsilon", {}), each.output(picture, x), 0, x) for each in (right, wrong)]
    assert (moved[0] - moved[1]).abs().max() > 0.1
