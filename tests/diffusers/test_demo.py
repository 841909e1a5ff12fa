"""The demo model as a `diffusers` pipeline: the same network, the same pictures, and the engine on it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.demo_model.oracle import oracle_score
from benchmarks.demo_model.scenes import scene_from_seed
from safe_dit_engine.demo.sampling import caption_ids, sigma_schedule
from safe_dit_engine.demo.weights import DemoNetworks, load_networks
from safe_dit_engine.hosts.diffusers.demo import load_demo_pipeline, simple_levels, transformer_of
from safe_dit_engine.hosts.diffusers.pipeline import apply
from safe_dit_engine.presets import PRESETS
from safe_dit_engine.report import psnr_db

from ..support.diffusers_pipelines import graph

STEPS = 12
SCENE = scene_from_seed(5003)


@pytest.fixture(scope="module")
def networks() -> DemoNetworks:
    return load_networks()


@pytest.fixture(scope="module")
def pipe() -> Any:
    return load_demo_pipeline()


def sample(pipe: Any, **changes: Any) -> Any:
    call = {"num_inference_steps": STEPS, "generator": torch.Generator().manual_seed(7), "output_type": "latent"}
    return pipe(SCENE.caption, **{**call, **changes}).images


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(32, 32), (16, 24), (48, 40)])
def test_the_network_is_the_same(networks: DemoNetworks, height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(height)
    x = torch.randn(2, 16, height, width, generator=generator)
    sigma, text = torch.tensor([0.9, 0.3]), torch.randn(2, 40, 128, generator=generator)
    wanted = networks.dit(x, sigma, text, *networks.dit.rope(text.shape[1], height, width))
    found = transformer_of(networks.dit)(x, 1 - sigma, text, torch.ones(2, 40, dtype=torch.int64), return_dict=False)[0]
    assert wanted.std() > 0.1
    torch.testing.assert_close(-found, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("steps", [20, 30])
def test_noise_levels_are_those_of_simple(pipe: Any, steps: int) -> None:
    """Where the steps divide a thousand they are even, else within one level of that."""
    pipe.scheduler.set_timesteps(sigmas=simple_levels(steps))
    difference = (pipe.scheduler.sigmas - sigma_schedule(steps, 2.0)).abs().max()
    assert difference <= (1e-6 if steps == 20 else 2e-3)


@torch.no_grad()
def plain_latents(networks: DemoNetworks, size: int, cfg: float) -> torch.Tensor:
    """Euler and guidance written out, in float32 (`demo.sampling` runs in bfloat16)."""
    x = torch.randn(1, 16, size // 8, size // 8, generator=torch.Generator().manual_seed(7))
    context = networks.text(caption_ids([SCENE.caption, ""]))
    tables = networks.dit.rope(context.shape[1], *x.shape[2:])
    levels = [2 * level / (1 + level) for level in simple_levels(STEPS)] + [0.0]
    for now, after in zip(levels[:-1], levels[1:], strict=True):
        asked, plain = networks.dit(torch.cat([x, x]), torch.full((2,), now), context, *tables).chunk(2)
        x = x + (after - now) * (plain + cfg * (asked - plain))
    return x


@pytest.mark.parametrize(("size", "cfg"), [(256, 4.0), (192, 4.0), (256, 1.0)])
def test_the_picture_is_that_of_the_plain_sampler(networks: DemoNetworks, pipe: Any, size: int, cfg: float) -> None:
    found = sample(pipe, height=size, width=size, guidance_scale=cfg)
    torch.testing.assert_close(found, plain_latents(networks, size, cfg), atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("steps", [8, 12])
def test_without_guidance_presets_are_closer_than_fewer_steps(pipe: Any, steps: int) -> None:
    """As at 8 and 12 steps in ComfyUI, where they were behind."""
    full = sample(pipe, guidance_scale=1.0, num_inference_steps=steps)
    with apply(pipe, "balanced") as accelerated:
        ours = sample(pipe, guidance_scale=1.0, num_inference_steps=steps)
    fewer = math.floor(accelerated.report().rows_computed_share * steps + 1e-6)
    assert fewer < steps
    assert (ours - full).norm() < (sample(pipe, guidance_scale=1.0, num_inference_steps=fewer) - full).norm()


def test_the_oracle_sees_what_was_asked_for(pipe: Any) -> None:
    picture = sample(pipe, output_type="np", num_inference_steps=20)[0]
    assert picture.shape == (256, 256, 3) and 0.0 <= picture.min() and picture.max() <= 1.0
    assert oracle_score(picture, SCENE) == 1.0
    assert oracle_score(np.ascontiguousarray(picture[:, ::-1]), SCENE) < 1.0


def test_kinds_of_output_and_a_bad_size(pipe: Any) -> None:
    assert sample(pipe, output_type="pil", num_inference_steps=1, height=128, width=160)[0].size == (160, 128)
    assert isinstance(pipe([SCENE.caption] * 2, num_inference_steps=1, return_dict=False, output_type="pt")[0], torch.Tensor)
    with pytest.raises(ValueError, match="multiples of 16"):
        pipe(SCENE.caption, height=200)


def test_coarse_steps_draw_the_same_prompt(pipe: Any) -> None:
    size = {"height": 512, "width": 512, "num_inference_steps": 8, "output_type": "np"}
    plain = sample(pipe, **size)
    with apply(pipe, "express") as safe:
        found = sample(pipe, **size)
    report = safe.report()
    assert report.counts()["coarse"] >= 2 and report.rows_computed_share < 0.7
    assert psnr_db(found[0], plain[0]) > 15.0 and oracle_score(found[0], SCENE) >= oracle_score(plain[0], SCENE)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets(pipe: Any, preset: str) -> None:
    # Of 12 steps `draft` computes the same as `fast`, and `paper` most.
    steps = {"num_inference_steps": 20 if preset in ("draft", "paper") else STEPS}
    plain, before = sample(pipe, **steps), graph(pipe)
    with apply(pipe, preset) as safe:
        found = sample(pipe, **steps)
    report = safe.report()
    # A plan by budget cannot reach so much without coarse steps, for which the picture is too small, and says so.
    assert len(report.notes) == (2 if PRESETS[preset].schedule.speedup else 0) and report.backbone == "Lumina-Image 2"
    assert report.rows_computed_share < 0.8 and not torch.equal(found, plain)
    assert (found - plain).square().mean() < 0.15 * plain.square().mean()
    assert graph(pipe) == before and torch.equal(sample(pipe, **steps), plain)
