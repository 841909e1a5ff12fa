"""The demo model in ComfyUI's own classes: same numbers as in training, and it draws what it is asked for."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.demo_model.oracle import judge_pictures
from benchmarks.demo_model.scenes import held_out_scenes
from safe_dit_engine.demo.network import rope_options
from safe_dit_engine.demo.sampling import caption_ids
from safe_dit_engine.demo.weights import FILES, SAMPLING, WEIGHTS_FOLDER, load_networks
from safe_dit_engine.demo.words import TEXT_LENGTH

CAPTION = "a large red circle left of a small dotted blue star on a checkered green background"


@pytest.fixture(scope="module")
def demo(comfy: Any) -> SimpleNamespace:
    """The loaded demo model beside the training networks with the same weights."""
    loader = comfy.engine("hosts.comfy.demo")
    model, clip, vae = loader.load_demo()
    return SimpleNamespace(comfy=comfy, loader=loader, model=model, clip=clip, vae=vae, networks=load_networks())


@torch.inference_mode()
def test_text_features_equal_the_training_network(demo: SimpleNamespace) -> None:
    features = demo.clip.encode_from_tokens(demo.clip.tokenize(CAPTION))
    assert features.shape == (1, TEXT_LENGTH, 128)
    assert torch.allclose(features, demo.networks.text(caption_ids([CAPTION])), atol=1e-2)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 64), (32, 48)])
@torch.inference_mode()
def test_stock_transformer_equals_the_training_network(demo: SimpleNamespace, height: int, width: int) -> None:
    from comfy.model_management import load_models_gpu

    load_models_gpu([demo.model])
    torch.manual_seed(0)
    x, sigma = torch.randn(2, 16, height, width), torch.tensor([0.8, 0.3])
    context = demo.networks.text(caption_ids([CAPTION, ""]))
    velocity = demo.networks.dit(x, sigma, context, *demo.networks.dit.rope(TEXT_LENGTH, height, width))
    options = {"wrappers": demo.model.wrappers}
    denoised = demo.model.model.apply_model(x, sigma, c_crossattn=context, num_tokens=TEXT_LENGTH, transformer_options=options)
    assert torch.allclose(denoised, x - sigma[:, None, None, None] * velocity, atol=1e-3)


def test_positions_are_set_on_a_copy_and_yield_to_the_user(demo: SimpleNamespace) -> None:
    (place,) = demo.model.wrappers["apply_model"][demo.loader.ROPE_KEY]
    seen: list[dict[str, Any]] = []

    def executor(x: Any, t: Any, concat: Any, context: Any, control: Any, options: dict[str, Any]) -> None:
        seen.append(options)

    mine: dict[str, Any] = {}
    place(executor, torch.zeros(1, 16, 64, 64), None, None, None, None, mine)
    place(executor, torch.zeros(1, 16, 64, 64), None, None, None, None, {"rope_options": {"scale_x": 9.0}})
    assert mine == {}
    assert seen[0]["rope_options"] == rope_options(32, 32)
    assert seen[1]["rope_options"] == {"scale_x": 9.0}


def test_unknown_words_are_named_once(demo: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        tokens = demo.clip.tokenize("a majestic (red:1.2) elephant, circle")
    (record,) = [r for r in caplog.records if "closed vocabulary" in r.getMessage()]
    assert "`majestic`, `elephant`" in record.getMessage()
    assert len(tokens["demo"]) == 1 and len(tokens["demo"][0]) == TEXT_LENGTH


def test_long_prompts_are_cut_with_a_warning(demo: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        tokens = demo.clip.tokenize("a red circle and " * 20)
    assert any("at most 38 words" in record.getMessage() for record in caplog.records)
    assert [len(row) for row in tokens["demo"]] == [TEXT_LENGTH]


def test_a_missing_file_is_named(demo: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="demo_dit.safetensors"):
        demo.loader.load_demo(tmp_path)


@torch.inference_mode()
def test_the_vae_file_loads_the_stock_way(demo: SimpleNamespace) -> None:
    from comfy.sd import VAE
    from comfy.utils import load_torch_file

    state, metadata = load_torch_file(str(WEIGHTS_FOLDER / FILES["vae"]), return_metadata=True)
    vae = VAE(sd=state, metadata=metadata)
    picture = torch.from_numpy(held_out_scenes(1)[0].render(256))[None]
    error = (vae.decode(vae.encode(picture)) - picture).square().mean()
    assert -10 * error.log10() > 28


@torch.inference_mode()
def test_it_draws_what_it_is_asked_for(demo: SimpleNamespace) -> None:
    scenes = held_out_scenes(6)
    prompts = [scene.caption for scene in scenes]
    pictures = [_sample(demo, prompt, seed) for seed, prompt in enumerate(prompts)]
    rates = judge_pictures([picture.numpy() for picture in pictures], scenes)
    assert rates.colour >= 0.8 and rates.position >= 0.8, str(rates)


def _sample(demo: SimpleNamespace, prompt: str, seed: int) -> torch.Tensor:
    positive, negative = (demo.comfy.execute("CLIPTextEncode", clip=demo.clip, text=text)[0] for text in (prompt, ""))
    (latent,) = demo.comfy.execute(
        "KSampler", model=demo.model, seed=seed, steps=SAMPLING["steps"], cfg=SAMPLING["cfg"], denoise=1.0,
        sampler_name=SAMPLING["sampler"], scheduler=SAMPLING["scheduler"], positive=positive, negative=negative,
        latent_image={"samples": torch.zeros(1, 16, 32, 32)},
    )
    return demo.vae.decode(latent["samples"])[0]
