"""Videos: the map is one of frames, reference frames are kept, frames with a noise level of their own run in full."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ..support.families import FAMILIES, WAN, Family, configured
from .test_backbones import TinyFamily, frozen, largest

LATENT = (16, 3, 8, 12)
WAN_22 = {"image_model": "wan2.1", "model_type": "t2v", "in_dim": 48, "out_dim": 48, "text_dim": 4096, **WAN}
GRID = (3 * 4, 6)


def family(name: str) -> Family:
    return next(found for found in FAMILIES if found.name == name)


@pytest.fixture(scope="module")
def video(comfy: Any) -> TinyFamily:
    return TinyFamily(comfy, family("Wan"))


@pytest.mark.parametrize("preset", ["balanced", "paper"])
def test_presets(video: TinyFamily, preset: str) -> None:
    plain = video.sample(video.model, steps=20)
    values = {"keep_ratio": 0.25, "refresh_interval": 4, "warmup_steps": 2, "forecast": 0.0, "early_refresh": False}  # custom's, not read
    found = video.sample(video.comfy.execute("SafeDitAccelerate", model=video.model, preset=preset, **values)[0], steps=20)
    assert found.shape == plain.shape == (1, *LATENT)
    assert 0.0 < (found - plain).abs().max() < 1.5 * plain.abs().max()
    if preset == "paper":  # nobody reads a map where whole steps alone are skipped
        assert video.report().partition.grid.shape == GRID
        assert video.report().record()["w"] == 6 and video.report().record()["h"] == 12
    # Its shift is 8: four of the 20 steps of `paper` compute a quarter of the tokens, and none is skipped.
    share = video.report().rows_computed_share
    assert share == 0.85 if preset == "paper" else share < 0.75
    assert video.report().notes == []


def test_guidance_scales_follow_the_map_of_each_frame(video: TinyFamily) -> None:
    def weighted(context: float, sensitive: float) -> Tensor:
        model = video.comfy.execute("SafeDitSensitivityCFG", model=video.model, context_scale=context, sensitive_scale=sensitive)[0]
        return video.sample(model)

    plain = video.sample(video.model)
    assert torch.equal(weighted(video.family.cfg, video.family.cfg), plain)
    assert not torch.equal(weighted(2.0, 6.0), plain)
    assert video.report().guided and video.report().sensitivity.shape == (1, *GRID)


def test_a_painted_mask_holds_in_every_frame(video: TinyFamily) -> None:
    painted = torch.zeros(1, 64, 96)
    painted[:, :16, :32] = 1.0  # two tokens of the top row of a frame
    model = video.comfy.execute(
        "SafeDitPartitioner", model=video.model, keep_ratio=0.25, signal="attention", warmup_steps=2, smoothing=0.7, mask=painted
    )[0]
    video.sample(model)
    assert video.report().partition.sensitive.view(3, 4, 6)[:, 0, :2].all()


def test_the_report_draws_a_picture_of_each_frame(video: TinyFamily) -> None:
    latent = video.sample(video.accelerated())
    pictures, found = video.comfy.engine("tokens.pictures"), (video.report().sensitivity, video.report().partition)
    assert pictures.token_map(*found, latent.shape).shape == (3, 64, 96, 3)
    mask = pictures.sensitivity_mask(*found, latent.shape)
    assert torch.equal(mask[:, ::16, ::16].reshape(GRID), video.report().sensitivity[0].float())


# What stands beside the frames


def test_reference_frames_are_kept(video: TinyFamily) -> None:
    """Phantom's frames behind the video's own: nothing of them is kept, so nothing of them is computed."""
    references = torch.randn(1, 16, 1, 8, 12)
    positive, negative = (video.prompt(seed, 24, time_dim_concat=references) for seed in (1, 2))
    model, found = frozen(video.accelerated())
    video.sample(model, positive=positive, negative=negative)
    assert largest(found) == 0.0
    assert video.report().notes == []
    assert video.report().counts()["selective"] == 4


def test_the_clip_image_tells_nothing_of_the_prompt(comfy: Any) -> None:
    """Every row looks at the only text row alike; only the CLIP image's rows could tell them apart."""
    tiny = TinyFamily(comfy, family("Wan with CLIP image"))
    tiny.sample(tiny.accelerated(), (1, 1))
    assert tiny.report().sensitivity.eq(0.0).all()


# In full, and why


def reason_for_full(tiny: TinyFamily, *args: Any, **changes: Any) -> list[str]:
    """Notes of a run that must be computed in full."""
    assert torch.equal(tiny.sample(tiny.accelerated(), *args, **changes), tiny.sample(tiny.model, *args, **changes))
    assert "selective" not in tiny.report().counts()
    notes: list[str] = tiny.report().notes
    return notes


@pytest.mark.parametrize("name", ["Wan", "Cosmos-Predict2, video"])
def test_frames_with_their_own_noise_level_run_in_full(comfy: Any, name: str) -> None:
    """Wan 2.2 5B and Cosmos take frames that are given as free of noise."""
    tiny = TinyFamily(comfy, family(name))
    if name == "Wan":
        tiny.model = configured("WAN22_T2V", WAN_22, torch.float32)
    mask = torch.ones(1, 1, 3, 8, 12)
    mask[:, :, 0] = 0.0
    latent = {"samples": torch.zeros(1, 48 if name == "Wan" else 16, 3, 8, 12)}
    assert reason_for_full(tiny, latent_image={**latent, "noise_mask": mask}) == [
        "Computed in full, because the noise level differs from frame to frame."
    ]
    tiny.sample(tiny.accelerated(), latent_image=latent)
    assert tiny.report().counts()["selective"] == 4


def test_a_reference_image_before_the_video_runs_in_full(video: TinyFamily) -> None:
    positive = video.prompt(1, 24, reference_latents=[torch.randn(1, 16, 1, 8, 12)])
    assert "Computed in full, because a reference image stands before the video's rows." in reason_for_full(video, positive=positive)
