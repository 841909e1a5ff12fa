"""A Selective Update Sampler inside another sampler, beside Accelerate, with two models, and in runs of one step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from .sentences import FAR, ONE_STEP

NO_MAP = "Computed in full, because the warm-up steps, which show where the prompt acts, did not run as planned."


@pytest.mark.parametrize("how", ["sample", "function"])
def test_the_schedule_and_the_painting_hold_inside_another_sampler(custom: Any, how: str) -> None:
    model, sampler = custom.partitioned(), custom.selective("8x8:20f2s")
    alone, kinds = custom.sample(model, sampler), custom.kinds()
    found = custom.sample(model, custom.comfy.execute("StandInSampler", sampler=sampler, how=how)[0])
    assert torch.equal(found, alone)
    assert custom.kinds() == kinds and "s" in kinds
    assert custom.tiny.report().partition.sensitive[0, 20:22].all()


def test_a_sampler_that_tells_other_noise_levels(custom: Any) -> None:
    """The first one lies below that of the second step, so that a warm-up step is missing: then it runs in full and says so."""
    sampler = custom.comfy.execute("StandInSampler", sampler=custom.selective(), how="lie")[0]
    plain = custom.sample(custom.tiny.model, sampler)
    found = custom.sample(custom.partitioned(), sampler)
    assert "s" in custom.kinds() or (torch.equal(found, plain) and custom.tiny.report().notes == [NO_MAP])


def test_a_sampler_that_is_called_step_by_step_has_one_run(custom: Any) -> None:
    model, sampler = custom.partitioned(), custom.selective()
    alone, kinds = custom.sample(model, sampler), custom.kinds()
    assert torch.equal(custom.sample(model, custom.comfy.execute("StandInSampler", sampler=sampler, how="stepwise")[0]), alone)
    assert custom.kinds() == kinds and "s" in kinds


def test_only_the_part_that_it_samples_is_accelerated(custom: Any) -> None:
    model, sampler = custom.partitioned(), custom.comfy.execute("StandInSampler", sampler=custom.selective(), how="half")[0]
    found = custom.sample(model, sampler, steps=16)
    assert custom.kinds().startswith("wws") and len(custom.kinds()) == custom.tiny.report().total_steps == 6
    assert torch.isfinite(found).all()
    plain = custom.sample(custom.tiny.model, sampler, steps=16)
    assert (found - plain).abs().max() < 0.5 * plain.abs().max()


def test_the_name_of_the_wrapped_function_stays(custom: Any) -> None:
    sampler = custom.selective()
    assert sampler.sampler_function.__name__ == sampler.sampler.sampler_function.__name__ == "sample_euler"


def test_the_schedule_of_the_sampler_is_followed_and_that_is_said(custom: Any) -> None:
    sampler = custom.selective()
    custom.sample(custom.partitioned(), sampler)
    kinds = custom.kinds()
    assert custom.tiny.report().notes == []
    custom.sample(custom.tiny.accelerated(interval=2), sampler)
    assert custom.kinds() == kinds
    assert custom.tiny.report().notes == ["The schedule of the Selective Update Sampler is followed, not that of SAFE-DiT Accelerate."]


@pytest.mark.parametrize("skipped", [0, 1])
def test_a_second_model_for_the_negative_prompt(custom: Any, skipped: int) -> None:
    tiny, comfy = custom.tiny, custom.comfy
    second = type(tiny)(comfy, n_layers=2).model
    sampler = comfy.execute("KSamplerSelect", sampler_name="euler")[0]

    def guider(model: Any) -> Any:
        prompts = {"positive": tiny.prompt(1), "negative": tiny.prompt(2)}
        return comfy.execute("DualModelGuider", model=model, model_negative=second, cfg=4.0, **prompts)[0]

    plain = custom.sample(tiny.model, sampler, guider(tiny.model))
    model = tiny.accelerated(interval=2, skipped_steps=skipped)
    found = custom.sample(model, sampler, guider(model))
    if skipped:
        assert "-" in custom.kinds() and tiny.report().notes == [FAR]
    else:
        assert torch.equal(found, plain)
        assert tiny.report().notes == ["Computed in full, because the guider runs a second model."]


def test_a_run_for_every_step_saves_nothing_and_says_so(tiny: Any, guests: Any) -> None:
    model, latent = tiny.accelerated(), {"samples": torch.zeros(1, 16, 16, 16)}
    settings = {"noise_seed": 3, "steps": 4, "cfg": 4.0, "sampler_name": "euler", "scheduler": "simple"}
    prompts = {"positive": tiny.prompt(1), "negative": tiny.prompt(2)}

    def sampled(model: Any) -> Any:
        found = latent
        for step in range(4):
            span = {"start_at_step": step, "end_at_step": step + 1, "return_with_leftover_noise": "enable"}
            with torch.inference_mode(), tiny.executing("sampler"):
                noise = "enable" if step == 0 else "disable"
                inputs = {"add_noise": noise, "latent_image": found, **span, **prompts, **settings}
                found = guests.execute("KSamplerAdvanced", model=model, **inputs)[0]
        return found["samples"]

    assert torch.equal(sampled(model), sampled(tiny.model))
    sampled(model)
    assert tiny.report().notes == [f"Every step is computed, so nothing is saved: {ONE_STEP}."]


def test_the_window_goes_by_the_patched_model(custom: Any) -> None:
    """What a node before ours made of the noise levels counts in the first run as in the second."""
    custom.comfy.load_extra("nodes_model_advanced.py")
    base = type(custom.tiny)(custom.comfy).model  # one that no run has patched yet
    model = custom.partitioned(custom.comfy.execute("ModelSamplingSD3", model=base, shift=12.0)[0])
    sampler = custom.selective(start_percent=0.3, end_percent=0.7)
    first, kinds = custom.sample(model, sampler, steps=10), custom.kinds()
    assert torch.equal(custom.sample(model, sampler, steps=10), first)
    assert custom.kinds() == kinds and "s" in kinds
