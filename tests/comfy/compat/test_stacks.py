"""ComfyUI's own guidance nodes together with ours, and latents that are no pictures: keep ratio 1.0 changes nothing, the rest is near."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from .sentences import FAR

EXTRAS = ("nodes_nag.py", "nodes_cfg.py", "nodes_tcfg.py", "nodes_model_advanced.py", "nodes_perpneg.py")
GUIDANCE = {
    "NAGuidance": {"nag_scale": 2.0, "nag_alpha": 0.5, "nag_tau": 1.5},
    "CFGZeroStar": {},
    "CFGNorm": {"strength": 0.8},
    "TCFG": {},
    "RescaleCFG": {"multiplier": 0.7},
}


@pytest.fixture(scope="module")
def stacks(guests: Any) -> Any:
    """ComfyUI with its guidance nodes."""
    for name in EXTRAS:
        guests.load_extra(name)
    return guests


def near(found: Tensor, plain: Tensor) -> bool:
    return bool(0 < (found - plain).abs().max() < 0.6 * plain.abs().max())


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("name", GUIDANCE)
def test_guidance_nodes(tiny: Any, stacks: Any, name: str, before: bool) -> None:
    def stacked(**values: Any) -> Any:
        if before:
            return tiny.accelerated(model=stacks.execute(name, model=tiny.model, **GUIDANCE[name])[0], **values)
        return stacks.execute(name, model=tiny.accelerated(**values), **GUIDANCE[name])[0]

    plain = tiny.sample(stacks.execute(name, model=tiny.model, **GUIDANCE[name])[0])
    ignored = name == "NAGuidance"  # NextDiT asks for no such patch
    assert torch.equal(plain, tiny.sample(tiny.model)) == ignored
    assert torch.equal(tiny.sample(stacked(keep=1.0)), plain)
    assert near(tiny.sample(stacked(interval=2, skipped_steps=1)), plain) and tiny.report().counts()["skipped"] >= 2
    found = tiny.sample(stacked(interval=2, keep=0.8))
    if name == "NAGuidance":
        assert torch.equal(found, plain)
        assert tiny.report().notes == ["Computed in full, because a model patch (`attn1_output_patch`) works on the image at full length."]
    else:
        assert near(found, plain) and tiny.report().counts()["selective"] >= 2 and tiny.report().notes == []
    assert tiny.leftovers() == []


def dual(stacks: Any, tiny: Any, model: Any) -> Any:
    conds = {"cond1": tiny.prompt(1), "cond2": tiny.prompt(5), "negative": tiny.prompt(2)}
    return stacks.execute("DualCFGGuider", model=model, cfg_conds=4.0, cfg_cond2_negative=3.0, style="regular", **conds)[0]


def perp(stacks: Any, tiny: Any, model: Any) -> Any:
    conds = {"positive": tiny.prompt(1), "negative": tiny.prompt(2), "empty_conditioning": tiny.prompt(6)}
    return stacks.execute("PerpNegGuider", model=model, cfg=4.0, neg_scale=1.0, **conds)[0]


@pytest.mark.parametrize("guider", [dual, perp], ids=lambda guider: guider.__name__)
def test_guiders(custom: Any, stacks: Any, guider: Callable[..., Any]) -> None:
    tiny, sampler = custom.tiny, stacks.execute("KSamplerSelect", sampler_name="euler")[0]

    def sampled(model: Any) -> Tensor:
        found: Tensor = custom.sample(model, sampler, guider(stacks, tiny, model))
        return found

    plain = sampled(tiny.model)
    assert torch.equal(sampled(tiny.accelerated(keep=1.0)), plain)
    assert near(sampled(tiny.accelerated(interval=2, skipped_steps=1)), plain) and "-" in custom.kinds()
    assert near(sampled(tiny.accelerated(interval=2, keep=0.8)), plain) and "s" in custom.kinds()
    assert tiny.report().notes == []


# Latents that are no pictures


class Sound(torch.nn.Module):
    """A model of sound latents `[B, C, length]`, of no family that is known."""

    dtype = torch.float32

    def __init__(self) -> None:
        super().__init__()
        self.mix = torch.nn.Conv1d(16, 16, 3, padding=1)

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor, **_: Any) -> Tensor:
        """A smooth function of everything it is given."""
        return torch.tanh(self.mix(x)) + context.mean((1, 2)).view(-1, 1, 1) * timesteps.view(-1, 1, 1)


@pytest.fixture
def sound(tiny: Any) -> Any:
    """The tiny model's patcher around a model of sound."""
    bare = type(tiny)(tiny.comfy)
    torch.manual_seed(0)
    bare.model.model.diffusion_model = Sound().eval()
    bare.model.model.latent_format = importlib.import_module("comfy.latent_formats").LatentFormat()
    bare.model.model.latent_format.latent_channels = 16
    return bare


NEITHER = "The latent is neither a picture nor a video (it is sound, or several latents packed into one)"


@pytest.mark.parametrize("packed", [False, True])
def test_latents_that_are_no_pictures(sound: Any, packed: bool) -> None:
    latent: Any = torch.zeros(1, 16, 24)
    if packed:
        latent = importlib.import_module("comfy.nested_tensor").NestedTensor([torch.zeros(1, 16, 24), torch.zeros(1, 16, 8)])
        sound.model.model.diffusion_model.mix = torch.nn.Conv1d(1, 1, 3, padding=1)

    def sampled(model: Any) -> Tensor:
        found: Any = sound.sample(model, latent_image={"samples": latent})
        return torch.cat([part.flatten() for part in found.unbind()]) if packed else found

    plain, found = sampled(sound.model), sampled(sound.accelerated(interval=2, skipped_steps=1))
    assert sound.report().counts()["skipped"] >= 2
    assert sound.report().notes == [FAR]
    assert near(found, plain)
    assert torch.equal(sampled(sound.accelerated()), plain)
    assert sound.report().notes == [f"{NEITHER}; it runs in full."]
