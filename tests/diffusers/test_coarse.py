"""Coarse steps in pipelines of `diffusers`: against a reference by hand, and where they are not possible."""

from __future__ import annotations

from functools import wraps
from inspect import signature
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from safe_dit_engine.hosts.diffusers.coarse import TimestepLaw, law_of
from safe_dit_engine.hosts.diffusers.pipeline import apply
from safe_dit_engine.hosts.diffusers.start import NOT_LEFT_OUT
from safe_dit_engine.presets import SafeConfig
from safe_dit_engine.steps import coarse
from safe_dit_engine.steps.coarse import LATE, NOT_HERE, TOO_SMALL, enlarge, pool
from safe_dit_engine.steps.plan import ScheduleConfig
from safe_dit_engine.tokens.partition import PartitionConfig

from ..support.diffusers_pipelines import FAMILIES, MANY, Tiny, euler, noise, tiny_of

# What a pipeline hands over unpacked, with a scheduler that counts as flow matching does.
ABLE = ("sd3", "lumina2", "wan")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pictures of these tests are smaller than those that coarse steps are good for."""
    monkeypatch.setattr(coarse, "MIN_EDGE", 16)


def first_coarse(count: int = 1) -> SafeConfig:
    schedule = ScheduleConfig(refresh_interval=1, coarse_steps=count)
    return SafeConfig(partition=PartitionConfig(warmup_steps=count), schedule=schedule)


def calls_of(tiny: Tiny, config: SafeConfig, **changes: Any) -> tuple[Tensor, list[tuple[tuple[int, ...], float]], Any]:
    """Latents, shape and timestep of every call of the transformer, and the report."""
    seen: list[tuple[tuple[int, ...], float]] = []

    transformer = tiny.pipe.transformer
    forward = transformer.forward

    @wraps(forward)
    def look(*args: Any, **kwargs: Any) -> Any:
        named = dict(zip(signature(forward).parameters, args, strict=False)) | kwargs
        seen.append((tuple(named["hidden_states"].shape[-2:]), float(named["timestep"].flatten()[0])))
        return forward(*args, **kwargs)

    transformer.forward = look
    try:
        with apply(tiny.pipe, config) as safe:
            found = tiny.sample(**changes)
            return found, seen, safe.report()
    finally:
        del transformer.forward


@pytest.mark.parametrize("name", ABLE)
def test_the_first_step_runs_on_a_quarter_of_the_pixels(name: str) -> None:
    found, seen, report = calls_of(tiny_of(name), first_coarse())
    plain, dense, _ = calls_of(tiny_of(name), SafeConfig())
    half = tuple(side // 2 for side in dense[0][0])
    a_step = len(dense) // 10
    assert [shape for shape, _ in seen[:a_step]] == [half] * a_step and {shape for shape, _ in seen[a_step:]} == {dense[0][0]}
    assert report.counts()["coarse"] == 1 and report.notes == [] and torch.isfinite(found).all() and not torch.equal(found, plain)
    assert [at for _, at in seen[a_step:]] == [at for _, at in dense[a_step:]]


def test_a_coarse_step_by_hand() -> None:
    """SD3, both conds in one batch: two steps, the first of them coarse."""
    tiny = tiny_of("sd3")
    scale, steps = 5.0, 2
    found, _, report = calls_of(tiny, first_coarse(), num_inference_steps=steps, guidance_scale=scale)
    assert report.counts()["coarse"] == 1
    pipe = tiny_of("sd3").pipe
    pipe.scheduler.set_timesteps(steps)
    sigmas = pipe.scheduler.sigmas.tolist()
    x = torch.randn((1, 4, 16, 20), generator=torch.Generator().manual_seed(5))

    def guided(x: Tensor, sigma: float) -> Tensor:
        inputs = tiny.inputs
        texts = torch.cat([inputs["negative_prompt_embeds"], inputs["prompt_embeds"]])
        pooled = torch.cat([inputs["negative_pooled_prompt_embeds"], inputs["pooled_prompt_embeds"]])
        with torch.no_grad():
            both = pipe.transformer(torch.cat([x, x]), texts, pooled, torch.full((2,), 1000 * sigma), return_dict=False)[0]
        plain, asked = both.chunk(2)
        result: Tensor = plain + scale * (asked - plain)
        return result

    lower = (sigmas[0] / 2) / ((1 - sigmas[0]) + sigmas[0] / 2)
    little = pool(x) / ((1 - sigmas[0]) + sigmas[0] / 2)
    denoised = enlarge(little - lower * guided(little, lower), (16, 20))
    x = x + (sigmas[1] - sigmas[0]) * (x - denoised) / sigmas[0]
    x = x + (sigmas[2] - sigmas[1]) * guided(x, sigmas[1])
    assert torch.allclose(found, x, atol=2e-5 * float(x.abs().max()))


@pytest.mark.parametrize("name", ABLE)
def test_express_and_a_second_run(name: str) -> None:
    tiny = tiny_of(name)
    plain = tiny.sample(num_inference_steps=MANY)
    with apply(tiny.pipe, "express") as safe:
        found = tiny.sample(num_inference_steps=MANY)
        report = safe.report()
        assert torch.equal(tiny.sample(num_inference_steps=MANY), found)
    assert report.counts()["coarse"] >= 1 and report.evaluations[-1].kind.full and torch.isfinite(found).all()
    assert not any("No step is coarse" in sentence for sentence in report.notes)
    assert torch.equal(tiny.sample(num_inference_steps=MANY), plain)


@pytest.mark.parametrize("speedup", [2.0, 5.0])
def test_the_scheduler_of_wans_own_pipelines_saves_by_coarse_steps_alone(speedup: float) -> None:
    tiny, flow = tiny_of("wan"), {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    tiny.pipe.scheduler = diffusers.UniPCMultistepScheduler(**flow)
    plain = tiny.sample(num_inference_steps=MANY)
    with apply(tiny.pipe, SafeConfig(schedule=ScheduleConfig(speedup=speedup, corrector=True))) as safe:
        found = tiny.sample(num_inference_steps=MANY)
    assert set(safe.report().counts()) <= {"coarse", "warmup", "refresh"} and safe.report().counts()["coarse"] >= 2
    assert torch.isfinite(found).all() and torch.equal(tiny.sample(num_inference_steps=MANY), plain)


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - set(ABLE)))
def test_other_pipelines_say_that_no_step_is_coarse(name: str) -> None:
    tiny = tiny_of(name)
    with apply(tiny.pipe, "express") as safe:
        found = tiny.sample(num_inference_steps=MANY)
    assert f"No step is coarse, because {NOT_HERE}." in safe.report().notes
    assert "coarse" not in safe.report().counts() and torch.isfinite(found).all()


def test_pictures_that_are_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coarse, "MIN_EDGE", 64)
    report = calls_of(tiny_of("sd3"), first_coarse())[2]
    assert report.notes[0] == f"No step is coarse, because {TOO_SMALL.format(64)}."


def test_sides_that_are_no_multiple_of_four() -> None:
    report = calls_of(tiny_of("sd3"), first_coarse(), width=176)[2]
    assert report.notes[0] == f"No step is coarse, because {NOT_HERE}."


def test_a_run_that_begins_in_the_middle() -> None:
    report = calls_of(tiny_of("sd3"), first_coarse(), sigmas=[0.6, 0.4, 0.2], num_inference_steps=3)[2]
    assert report.notes[0] == f"No step is coarse, because {LATE}."


def test_a_scheduler_that_bears_no_step_left_out() -> None:
    tiny = tiny_of("sd3")
    tiny.pipe.scheduler = diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0)
    plain = tiny.sample()
    found, _, report = calls_of(tiny, first_coarse())
    assert torch.equal(found, plain) and report.notes == [NOT_LEFT_OUT.format("FlowMatchHeunDiscreteScheduler")]


@pytest.mark.parametrize("images", [1, 2])
def test_several_pictures_and_no_guidance(images: int) -> None:
    tiny = tiny_of("sd3")
    found, _, report = calls_of(tiny, first_coarse(2), num_images_per_prompt=images, guidance_scale=1.0)
    assert found.shape[0] == images and report.counts()["coarse"] == 2 and torch.isfinite(found).all()


@pytest.mark.parametrize(
    ("timestep", "law"), [(1000.0, TimestepLaw(1000.0)), (1.0, TimestepLaw(1.0)), (0.0, TimestepLaw(-1.0, 1.0)), (7.0, None)]
)
def test_the_noise_level_is_read_off_the_timestep(timestep: float, law: TimestepLaw | None) -> None:
    arguments = {"hidden_states": noise(1, 1, 4, 16, 16), "timestep": torch.tensor([timestep])}
    assert law_of(euler(), tiny_of("sd3").pipe.transformer, arguments, 1.0) == law


def test_what_has_the_size_of_the_latent_is_refused() -> None:
    model = tiny_of("sd3").pipe.transformer
    arguments = {"hidden_states": noise(1, 1, 4, 16, 16), "timestep": torch.tensor([1000.0])}
    assert law_of(euler(), model, {**arguments, "joint_attention_kwargs": {"scale": 1.0}}, 1.0) is not None
    for more in ({"block_controlnet_hidden_states": [noise(2, 1, 4)]}, {"attention_kwargs": {"mask": noise(2, 1, 4)}}):
        assert law_of(euler(), model, {**arguments, **more}, 1.0) is None
    assert law_of(euler(invert_sigmas=True), model, arguments, 1.0) is None
    assert law_of(diffusers.DPMSolverMultistepScheduler(), model, arguments, 1.0) is None
