"""Checkpoint files of a few MB with random weights, under the names that artists have."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from .families import FLUX, LENS, NEXTDIT, QWEN, WAN, Z_IMAGE, Weights, operations, random_weights

TEXT_WIDTH = 48
POOLED_WIDTH = 2048  # what the ControlNet for SD3.5 is built for, whatever the size of the rest
# What stock loaders do not read: the stand-in for a text encoder needs no file, and real ones are there to be chosen.
TEXT_ENCODERS = (
    "clip_l.safetensors", "t5xxl_fp16.safetensors", "qwen_3_4b.safetensors", "qwen_2.5_vl_7b_fp8_scaled.safetensors",
    "umt5_xxl_fp8_e4m3fn_scaled.safetensors", "gpt_oss_20b_nvfp4.safetensors",
)  # fmt: skip
# For the stand-in loader: families of which the stock loader knows the real width only.
SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "z_image_turbo_bf16.safetensors": ("ZImage", NEXTDIT | Z_IMAGE),
    "qwen_image_fp8_e4m3fn.safetensors": ("QwenImage", QWEN),
}


def write_checkpoints(folder: Path) -> dict[str, list[Path]]:
    """Every file the workflows of the model families ask for, by the folder in `models/` it belongs in."""
    for place in ("diffusion_models", "vae", "controlnet", "checkpoints", "text_encoders"):
        (folder / place).mkdir(parents=True)
    _write_diffusion_models(folder / "diffusion_models")
    _write_autoencoders(folder / "vae")
    sd3, decoder = _sd3(), _small_autoencoder()
    everything = {**_under("model.diffusion_model.", sd3), **_under("first_stage_model.", decoder)}
    save_file(everything, folder / "checkpoints" / "sd3.5_large_fp8_scaled.safetensors")
    save_file(_sd3_control(), folder / "controlnet" / "sd3.5_large_controlnet_canny.safetensors")
    for name in TEXT_ENCODERS:
        save_file({"nothing": torch.zeros(1)}, folder / "text_encoders" / name)
    return {place.name: sorted(place.iterdir()) for place in folder.iterdir()}


def _write_diffusion_models(folder: Path) -> None:
    flux, wan, lens = (importlib.import_module(f"comfy.ldm.{name}.model") for name in ("flux", "wan", "lens"))
    sizes = {**FLUX, "context_in_dim": TEXT_WIDTH, "vec_in_dim": TEXT_WIDTH}
    save_file(random_weights(flux.Flux(**sizes, operations=operations())), folder / "flux1-dev.safetensors")
    sizes = {**WAN, "text_dim": TEXT_WIDTH}
    weights = random_weights(wan.WanModel(model_type="t2v", **sizes, operations=operations()))
    save_file(weights, folder / "wan2.1_t2v_1.3B_fp16.safetensors", {"config": json.dumps({"transformer": {"text_dim": TEXT_WIDTH}})})
    save_file(random_weights(lens.LensTransformer2DModel(**LENS, operations=operations())), folder / "lens_bf16.safetensors")
    for name, (config_class, options) in SIZES.items():
        save_file(random_weights(_of_config(config_class, options)), folder / name)


def _of_config(config_class: str, options: dict[str, Any]) -> torch.nn.Module:
    config = getattr(importlib.import_module("comfy.supported_models"), config_class)(dict(options))
    config.set_inference_dtype(torch.float32, None)
    module: torch.nn.Module = config.get_model({}, "").diffusion_model
    return module


def _write_autoencoders(folder: Path) -> None:
    save_file(_small_autoencoder(), folder / "ae.safetensors")
    video = importlib.import_module("comfy.ldm.wan.vae").WanVAE(
        dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[], temperal_downsample=[False, True, True]
    )
    for name in ("wan_2.1_vae.safetensors", "qwen_image_vae.safetensors"):
        save_file(random_weights(video), folder / name)
    # Of this one the loader knows small decoders, but no small encoder: it is left out, and nothing here encodes.
    decoder = importlib.import_module("comfy.ldm.modules.diffusionmodules.model").Decoder(
        ch=32, out_ch=3, ch_mult=[1, 2, 4, 4], num_res_blocks=2, attn_resolutions=[], in_channels=3, resolution=256, z_channels=32
    )
    statistics = {"bn.running_mean": torch.zeros(128), "bn.running_var": torch.ones(128)}
    mixing = {"post_quant_conv.weight": torch.eye(32)[..., None, None].contiguous(), "post_quant_conv.bias": torch.zeros(32)}
    save_file({**_under("decoder.", random_weights(decoder)), **statistics, **mixing}, folder / "flux2-vae.safetensors")


def _small_autoencoder() -> Weights:
    module: torch.nn.Module = importlib.import_module("comfy.taesd.taesd").TAESD(latent_channels=16)
    return random_weights(module)


def _sd3() -> Weights:
    embedder = {"target": "torch.nn.Linear", "params": {"in_features": TEXT_WIDTH, "out_features": 128}}
    module: torch.nn.Module = importlib.import_module("comfy.ldm.modules.diffusionmodules.mmdit").OpenAISignatureMMDITWrapper(
        input_size=None, depth=2, in_channels=16, adm_in_channels=POOLED_WIDTH, context_embedder_config=embedder, num_patches=1024,
        pos_embed_max_size=32, qk_norm="rms", operations=operations(),
    )  # fmt: skip
    return random_weights(module)


def _sd3_control() -> Weights:
    module: torch.nn.Module = importlib.import_module("comfy.cldm.dit_embedder").ControlNetEmbedder(
        img_size=None, patch_size=2, in_chans=16, attention_head_dim=64, num_attention_heads=2, adm_in_channels=POOLED_WIDTH, num_layers=2,
        main_model_double=2, double_y_emb=False, device=None, dtype=torch.float32, operations=operations(),
    )  # fmt: skip
    return {**random_weights(module), "control_type": torch.ones(1)}


def _under(prefix: str, weights: Weights) -> Weights:
    return {prefix + name: value for name, value in weights.items()}
