"""Calls of accelerated `diffusers` pipelines as they really go: begun in the middle, twice in one call, with two models, copies, errors."""

from __future__ import annotations

import copy
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.modular_pipelines import StableDiffusion3AutoBlocks
from torch import Tensor

from safe_dit_engine.hosts.diffusers.invocation import AGAIN, NOT_FINITE, NOT_READ, NOT_STEPPED
from safe_dit_engine.hosts.diffusers.pipeline import apply
from safe_dit_engine.hosts.diffusers.start import NOT_LEFT_OUT
from safe_dit_engine.presets import SafeConfig
from safe_dit_engine.steps.plan import ScheduleConfig
from safe_dit_engine.tokens.partition import PartitionConfig

from ..support.diffusers_pipelines import (
    FAR_APART,
    HEIGHT,
    MANY,
    SIDE,
    STEPS,
    WIDTH,
    Tiny,
    counted,
    euler,
    graph,
    noise,
    selective,
    text,
    tiny_of,
    weighted,
)

SKIPPING = SafeConfig(partition=PartitionConfig(warmup_steps=2), schedule=ScheduleConfig(refresh_interval=3, skipped_steps=2))
SKIPPED = "ww--r--r-r"
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}


def kinds(safe: Any) -> str:
    """The evaluations of the last call, a letter each."""
    return "".join(record.kind.letter for record in safe.report().evaluations)


def sample(tiny: Tiny, **changes: Any) -> Tensor:
    torch.manual_seed(0)  # SD3's pipeline gives its generator to no scheduler
    return tiny.sample(**changes)


def sd3_with(scheduler: Any) -> Tiny:
    tiny = tiny_of("sd3")
    tiny.pipe.scheduler = scheduler
    return tiny


# Schedulers


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.DDIMScheduler(), diffusers.DDPMScheduler(), diffusers.LMSDiscreteScheduler(), diffusers.LTXEulerAncestralRFScheduler(),
        diffusers.CogVideoXDDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"),
        diffusers.DPMSolverSinglestepScheduler(**FLOW), diffusers.SASolverScheduler(**FLOW), diffusers.EDMDPMSolverMultistepScheduler(),
        diffusers.DPMSolverMultistepScheduler(final_sigmas_type="sigma_min"), euler(invert_sigmas=True),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)  # fmt: skip
def test_known_schedulers_skip_steps(scheduler: Any) -> None:
    tiny = sd3_with(scheduler)
    plain = sample(tiny)
    with apply(tiny.pipe, SKIPPING) as safe, counted(tiny.pipe) as ran:
        found = sample(tiny)
        assert kinds(safe) == SKIPPED and len(ran) == 5 and safe.report().notes == [FAR_APART]
        assert torch.equal(sample(tiny), found), "the second call equals the first"
    assert torch.isfinite(found).all() and not torch.equal(found, plain) and torch.equal(sample(tiny), plain)


@pytest.mark.parametrize(
    ("scheduler", "evaluations"),
    [
        (diffusers.FlowMatchHeunDiscreteScheduler(), 19), (diffusers.HeunDiscreteScheduler(), 19), (diffusers.KDPM2DiscreteScheduler(), 19),
        (diffusers.FlowMatchLCMScheduler(), 10), (diffusers.LCMScheduler(), 10), (euler(stochastic_sampling=True), 10),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_where_fewer_steps_are_better_all_are_computed(scheduler: Any, evaluations: int) -> None:
    tiny = sd3_with(scheduler)
    plain = sample(tiny)
    with apply(tiny.pipe, SKIPPING) as safe:
        assert torch.equal(sample(tiny), plain)
    report = safe.report()
    assert report.notes == [NOT_LEFT_OUT.format(type(scheduler).__name__)]
    assert [record.step for record in report.evaluations] == [index * STEPS // evaluations for index in range(evaluations)]


@pytest.mark.parametrize(
    ("sigmas", "expected"),
    [([1.0, 0.9, 0.9, 0.7, 0.4, 0.4, 0.2, 0.1, 0.05, 0.02], "wwr-rr--rr"), (np.linspace(0.8, 0.1, STEPS), SKIPPED)],
    ids=["repeated", "even"],
)
def test_levels_of_the_users_own(sigmas: Any, expected: str) -> None:
    """Also repeated ones: every evaluation belongs to its own step, and none is left out into or out of which the level does not fall."""
    tiny = tiny_of("sd3")
    with apply(tiny.pipe, SKIPPING) as safe:
        found = sample(tiny, sigmas=sigmas)
    assert kinds(safe) == expected and [record.step for record in safe.report().evaluations] == list(range(STEPS))
    assert torch.isfinite(found).all() and safe.report().notes == [FAR_APART]


def test_timesteps_of_the_users_own() -> None:
    tiny = tiny_of("pixart")
    with apply(tiny.pipe, SKIPPING) as safe:
        tiny.sample(timesteps=[999, 900, 800, 640, 500, 380, 200, 90, 40, 10])
    assert kinds(safe) == SKIPPED and safe.report().notes == [FAR_APART]


def test_levels_that_rise_run_in_full() -> None:
    tiny = tiny_of("sd3")
    rising = np.linspace(0.1, 0.9, STEPS)
    plain = sample(tiny, sigmas=rising)
    with apply(tiny.pipe, SKIPPING) as safe:
        assert torch.equal(sample(tiny, sigmas=rising), plain)
    (note,) = safe.report().notes
    assert note == "Computed in full, because the scheduler `FlowMatchEulerDiscreteScheduler`, as it is set, is not known to the engine."


# Where a run begins, and that it is one


def test_a_pipeline_that_begins_in_the_middle_without_telling() -> None:
    """The first evaluation shows where it is; the run begins with the next."""
    sizes = {"block_out_channels": (8,), "norm_num_groups": 4, "latent_channels": 4, "sample_size": 32, "shift_factor": 0.0}
    scheduler = euler()
    pipe = diffusers.StableDiffusion3Img2ImgPipeline(
        tiny_of("sd3").pipe.transformer, scheduler, weighted(diffusers.AutoencoderKL(**sizes)), *[None] * 6
    )
    pipe.set_progress_bar_config(disable=True)
    tiny = Tiny(pipe, {**text(pooled=True), "image": noise(7, 1, 4, 16, 20), "strength": 0.75, "height": 16, "width": 20})
    call = {"height": 16, "width": 20, "num_inference_steps": 12}
    scheduler.set_begin_index = lambda index: None
    plain = sample(tiny, **call)
    with apply(pipe, SKIPPING) as safe:
        found = sample(tiny, **call)
    assert kinds(safe) == "ww--r--r" and safe.report().total_steps == 8 and safe.report().notes == []
    assert not torch.equal(found, plain) and torch.isfinite(found).all()


class Twice(diffusers.StableDiffusion3Pipeline):
    """A picture first, then one as asked for: two runs in one call."""

    first = 64

    def __call__(self, **call: Any) -> Any:
        super().__call__(**{**call, "height": self.first, "width": SIDE})
        return super().__call__(**{**call, "generator": torch.Generator().manual_seed(5)})


@pytest.mark.parametrize("height", [64, HEIGHT])
def test_two_runs_in_one_call(height: int) -> None:
    single = tiny_of("sd3")
    twice = Tiny(Twice(single.pipe.transformer, euler(shift=3.0), *[None] * 7), single.inputs)
    twice.pipe.first = height
    twice.pipe.set_progress_bar_config(disable=True)
    with apply(single.pipe, "balanced"):
        wanted = sample(single, num_inference_steps=MANY)
    with apply(twice.pipe, "balanced") as safe, counted(twice.pipe) as ran:
        assert torch.equal(sample(twice, num_inference_steps=MANY), wanted)
    assert len(ran) == 22 and len(safe.report().evaluations) == MANY and safe.report().notes == [AGAIN]


def test_nothing_is_reused_from_one_model_to_another() -> None:
    """Wan 2.2, where a step that would be skipped is the first of the second model: it is computed, and later ones reuse it alone."""
    first, second = tiny_of("wan"), tiny_of("wan")
    for weight in second.pipe.transformer.parameters():
        weight.data.mul_(1.05)
    pipe = diffusers.WanPipeline(
        None, None, None, first.pipe.scheduler, first.pipe.transformer, second.pipe.transformer, boundary_ratio=0.75
    )
    pipe.set_progress_bar_config(disable=True)
    steps: dict[bool, set[int]] = {False: set(), True: set()}
    for is_second, module in enumerate((pipe.transformer, pipe.transformer_2)):
        module.blocks[0].register_forward_pre_hook(
            lambda *_, is_second=bool(is_second): steps[is_second].add(pipe.scheduler.step_index or 0)
        )
    tiny = Tiny(pipe, first.inputs)
    with apply(pipe, SafeConfig()):
        tiny.sample()
    handed_over = min(steps[True])
    assert SKIPPED[handed_over] == "-", "the case is there"
    steps[True].clear()
    with apply(pipe, SKIPPING) as safe:
        tiny.sample()
    assert kinds(safe)[handed_over] == "r" and handed_over in steps[True]


# What a skipped step hands over


def test_latents_in_rows_without_places() -> None:
    """LTX-Video: packed latents, of whose places a transformer is told by numbers of rows alone."""
    sizes = {"num_attention_heads": 2, "attention_head_dim": 16, "cross_attention_dim": 32, "num_layers": 2, "caption_channels": WIDTH}
    transformer = weighted(diffusers.LTXVideoTransformer3DModel(in_channels=4, out_channels=4, **sizes))
    pipe = diffusers.LTXPipeline(euler(), None, None, None, transformer)
    pipe.set_progress_bar_config(disable=True)
    tiny = Tiny(pipe, {**text(masked=True), "num_frames": 9})
    plain = tiny.sample(height=64, width=96)
    with apply(pipe, SKIPPING) as safe:
        found = tiny.sample(height=64, width=96)
    assert kinds(safe) == SKIPPED and found.shape == plain.shape and not torch.equal(found, plain)
    assert (found - plain).square().mean() < plain.square().mean()


def test_a_learned_variance_is_handed_over() -> None:
    """A model of eight channels for latents of four, as DDPM takes it."""
    sizes = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16, "joint_attention_dim": WIDTH, "pooled_projection_dim": 16}
    model = diffusers.SD3Transformer2DModel(
        sample_size=8, in_channels=4, out_channels=8, caption_projection_dim=32, pos_embed_max_size=16, **sizes
    )
    scheduler = diffusers.DDPMScheduler(variance_type="learned_range", clip_sample=False)
    pipe = diffusers.StableDiffusion3Pipeline(weighted(model), scheduler, *[None] * 7)
    pipe.set_progress_bar_config(disable=True)
    tiny, given, step = Tiny(pipe, text(pooled=True)), [], scheduler.step

    def watched(model_output: Tensor, *args: Any, **kwargs: Any) -> Any:
        given.append(model_output)
        return step(model_output, *args, **kwargs)

    scheduler.step = watched
    with apply(pipe, SKIPPING) as safe:
        found = sample(tiny)
    assert kinds(safe) == SKIPPED and torch.isfinite(found).all()
    assert all(output.shape[1] == 8 for output in given)
    assert torch.equal(given[3][:, 4:], given[1][:, 4:]) and not torch.equal(given[3][:, :4], given[1][:, :4])


@pytest.mark.parametrize("changes", [{"guidance_scale": 1.0}, {"num_images_per_prompt": 2}], ids=["one cond", "two pictures"])
def test_batches_and_no_guidance(changes: dict[str, Any]) -> None:
    tiny = tiny_of("flux, true cfg" if "num_images_per_prompt" in changes else "sd3")
    with apply(tiny.pipe, SKIPPING) as safe, counted(tiny.pipe) as ran:
        found = sample(tiny, **changes)
    assert kinds(safe) == SKIPPED and len(ran) == 5 * (2 if "num_images_per_prompt" in changes else 1)
    assert len(found) == changes.get("num_images_per_prompt", 1) and torch.isfinite(found).all()


def test_a_picture_is_the_same_in_a_batch() -> None:
    tiny = tiny_of("sd3")
    latents = noise(8, 1, 4, HEIGHT // 8, SIDE // 8)
    two = {key: torch.cat([value, value]) for key, value in tiny.inputs.items()}
    with apply(tiny.pipe, SKIPPING):
        single = sample(tiny, latents=latents)
        both = sample(tiny, **two, latents=torch.cat([latents, noise(9, *latents.shape)]))
    assert (both[:1] - single).abs().max() <= 1e-4 * single.abs().max() and not torch.allclose(both[1:], single)


# Copies and other schedulers


def test_a_copy_of_the_scheduler_is_its_own() -> None:
    """Pipelines that also make sound step a copy of their scheduler, made within the call."""
    tiny = tiny_of("sd3")
    copies: list[Any] = []

    def step_a_copy(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        if step == 3:
            copies.append(copy.deepcopy(pipe.scheduler))
            copies[0].step(noise(1, 1, 4, 8, 8), copies[0].timesteps[4], noise(2, 1, 4, 8, 8))
        return values

    with apply(tiny.pipe, SKIPPING) as safe:
        alone = sample(tiny)
        assert torch.equal(sample(tiny, callback_on_step_end=step_a_copy), alone)
        assert kinds(safe) == SKIPPED and copies[0].step_index == 5
    assert copies[0].step.__self__ is copies[0]


def test_a_pipeline_that_steps_copies_alone_runs_in_full() -> None:
    """SkyReels' diffusion forcing has a scheduler for every frame."""
    sizes = {"num_attention_heads": 2, "attention_head_dim": 16, "text_dim": WIDTH, "freq_dim": 32, "ffn_dim": 32, "num_layers": 2}
    transformer = weighted(diffusers.SkyReelsV2Transformer3DModel(patch_size=(1, 2, 2), in_channels=4, out_channels=4, **sizes))
    scheduler = diffusers.UniPCMultistepScheduler(**FLOW, flow_shift=3.0)
    pipe = diffusers.SkyReelsV2DiffusionForcingPipeline(None, None, transformer, None, scheduler)
    pipe.set_progress_bar_config(disable=True)
    tiny = Tiny(pipe, {**text(), "prompt": None, "num_frames": 9, "base_num_frames": 9, "height": 64, "width": 64})
    call = {"height": 64, "width": 64}
    plain = tiny.sample(**call)
    with apply(pipe, SKIPPING) as safe:
        assert torch.equal(tiny.sample(**call), plain)
    assert safe.report().notes[-1] == NOT_STEPPED and safe.report().evaluations == []


class ChurningPipeline(diffusers.StableDiffusion3Pipeline):
    """Gives `step` more than the others do."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        scheduler = self.scheduler
        step = scheduler.step

        def churned(*args: Any, **kwargs: Any) -> Any:
            return step(*args, **kwargs, s_churn=0.5)

        scheduler.step = churned
        try:
            return super().__call__(*args, **kwargs)
        finally:
            scheduler.step = step


def test_levels_that_a_pipeline_gives_to_single_tokens() -> None:
    tiny = tiny_of("sd3")
    tiny.pipe.__class__ = ChurningPipeline
    plain = sample(tiny)
    with apply(tiny.pipe, SKIPPING) as safe:
        assert torch.equal(sample(tiny), plain)
    assert safe.report().notes == [NOT_READ]


# Extra evaluations


def test_perturbed_attention_guidance() -> None:
    """Its attention takes the batch apart: nothing is read there; steps are skipped all the same, and no part of the tokens is computed."""
    pipe = diffusers.StableDiffusion3PAGPipeline(
        tiny_of("sd3").pipe.transformer, euler(shift=3.0), *[None] * 7, pag_applied_layers=["blocks.1"]
    )
    pipe.set_progress_bar_config(disable=True)
    tiny = Tiny(pipe, {**text(pooled=True), "pag_scale": 2.0})
    plain = sample(tiny)
    with apply(pipe, SKIPPING) as safe:
        sample(tiny)
        assert kinds(safe) == SKIPPED and safe.report().notes == [FAR_APART]
    with apply(pipe, selective()) as safe:
        assert torch.equal(sample(tiny), plain)
    assert safe.report().notes == ["Computed in full, because perturbed-attention guidance attends to a part of the batch at a time."]


def modular(guider: Any) -> Any:
    blocks = StableDiffusion3AutoBlocks()
    for part in ("text_encoder", "decode"):
        blocks.sub_blocks.pop(part)
    pipe = blocks.init_pipeline()
    pipe.update_components(transformer=tiny_of("sd3").pipe.transformer, scheduler=euler(shift=3.0), guider=guider)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("guider", [diffusers.ClassifierFreeGuidance, diffusers.AdaptiveProjectedGuidance])
def test_modular_pipelines_and_their_guiders(guider: Any) -> None:
    pipe = modular(guider(guidance_scale=5.0))

    def made() -> Tensor:
        call = {"height": HEIGHT, "width": SIDE, "num_inference_steps": STEPS, "output": "latents"}
        latents: Tensor = pipe(**text(pooled=True), **call, generator=torch.Generator().manual_seed(5))
        return latents

    plain = made()
    with apply(pipe, SKIPPING) as safe, counted(pipe) as ran:
        found = made()
        assert kinds(safe) == SKIPPED and len(ran) == 10 and not torch.equal(found, plain)
        assert torch.equal(made(), found)
    assert torch.equal(made(), plain)


# Errors


@pytest.mark.parametrize("preset", ["balanced", "paper"])
def test_predictions_that_are_not_numbers_are_said_once(preset: str) -> None:
    tiny = tiny_of("sd3")
    with torch.no_grad():
        tiny.pipe.transformer.proj_out.weight[0] = float("nan")
    with apply(tiny.pipe, preset) as safe:
        sample(tiny)
    assert safe.report().notes.count(NOT_FINITE) == 1 and NOT_FINITE in safe.report().text()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, KeyboardInterrupt])
def test_after_an_error_all_is_as_before(error: type[BaseException]) -> None:
    tiny = tiny_of("sd3")
    plain, before = sample(tiny), graph(tiny.pipe)

    def fail(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        if step == 5:
            raise error
        return values

    with apply(tiny.pipe, SKIPPING) as safe:
        whole = sample(tiny)
        with pytest.raises(error):
            sample(tiny, callback_on_step_end=fail)
        assert kinds(safe) == SKIPPED[:6]
        assert torch.equal(sample(tiny), whole)
    assert graph(tiny.pipe) == before and torch.equal(sample(tiny), plain)


def test_memory_that_runs_out_in_the_model_is_the_callers() -> None:
    tiny = tiny_of("sd3")

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError

    with apply(tiny.pipe, SKIPPING):
        whole = sample(tiny)
        handle = tiny.pipe.transformer.transformer_blocks[1].register_forward_pre_hook(fail)
        with pytest.raises(torch.OutOfMemoryError):
            sample(tiny)
        handle.remove()
        assert torch.equal(sample(tiny), whole)
