"""Published models in their true sizes with random weights, in `diffusers`' own pipelines, as data; and the same scaled down for a CPU.

What a step costs does not depend on the weights. No text encoder and no VAE: prompts are random embeddings, latents are the result.

| model | where its numbers are from |
| --- | --- |
| Lumina-Next | `scripts/convert_lumina_to_diffusers.py` ("Lumina-Next-SFT 2B"); the pipeline's steps and guidance, as in the paper |
| SD3-Medium | `scripts/convert_sd3_to_diffusers.py`; 24 blocks, as many heads; positions to 192 "for sd3.0"; 77 CLIP and 256 T5 tokens |
| FLUX.1-dev | defaults of `FluxTransformer2DModel`; guidance embedded and shift by size, as the dev model is published; 512 T5 tokens |
| PixArt-Sigma | `scripts/convert_pixart_sigma_to_diffusers.py`; 300 T5 tokens, padded |
| Z-Image | defaults of `ZImageTransformer2DModel` and of its pipeline; shift 3 as in ComfyUI's model table |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

PIXELS_A_TOKEN = 16
# A sentence of fifty words, and what is left of an empty prompt: the first token. Z-Image puts both into a chat's frame.
WORDS, EMPTY, EMPTY_CHAT = 64, 1, 16


@dataclass(frozen=True)
class PromptShape:
    """Embeddings `[1, rows, width]` of which `valid` are words. `negative`: words of the negative prompt; None: there is none.

    `masked`: the pipeline takes masks. `listed`: it takes a list of `[valid, width]`. `pooled`: width of the pooled embedding.
    """

    rows: int
    width: int
    valid: int
    negative: int | None = None
    pooled: int | None = None
    masked: bool = False
    listed: bool = False

    def random(self, device: str, dtype: torch.dtype, generator: torch.Generator) -> dict[str, Any]:
        """Arguments of a pipeline."""
        found: dict[str, Any] = {}
        for prefix, valid in (("", self.valid), ("negative_", self.negative)):
            if valid is not None:
                found |= self._one(prefix, valid, {"device": device, "dtype": dtype, "generator": generator})
        return found

    def _one(self, prefix: str, valid: int, options: dict[str, Any]) -> dict[str, Any]:
        if self.listed:
            return {f"{prefix}prompt_embeds": [torch.randn(valid, self.width, **options)]}
        found: dict[str, Any] = {f"{prefix}prompt_embeds": torch.randn(1, self.rows, self.width, **options)}
        if self.pooled is not None:
            found[f"{prefix}pooled_prompt_embeds"] = torch.randn(1, self.pooled, **options)
        if self.masked:
            found[f"{prefix}prompt_attention_mask"] = (torch.arange(self.rows, device=options["device"]) < valid).long()[None]
        return found


@dataclass(frozen=True)
class Stack:
    """A list of blocks, and in each the layer before attention and the last of its feed-forward: what runs only where the block does."""

    path: str
    attention: str
    feed_forward: str


@dataclass(frozen=True)
class SpeedModel:
    """One published model. `small`: what of its configuration is smaller on a CPU; `call`: the pipeline's arguments."""

    name: str
    pipeline: str
    transformer: str
    scheduler: str
    steps: int
    prompt: PromptShape
    stacks: tuple[Stack, ...]
    config: Mapping[str, Any]
    small: Mapping[str, Any]
    small_prompt: PromptShape
    scheduling: Mapping[str, Any] = field(default_factory=dict)
    call: Mapping[str, Any] = field(default_factory=dict)

    def scaled_down(self) -> SpeedModel:
        """The same architecture, with fewer and narrower blocks."""
        return replace(self, config={**self.config, **self.small}, prompt=self.small_prompt)


_EULER = "FlowMatchEulerDiscreteScheduler"
_DIFFUSERS_BLOCKS = "transformer_blocks"

LUMINA_NEXT = SpeedModel(
    name="lumina-next",
    pipeline="LuminaPipeline",
    transformer="LuminaNextDiT2DModel",
    scheduler=_EULER,
    steps=30,
    prompt=PromptShape(WORDS, 2048, WORDS, EMPTY, masked=True),
    stacks=(Stack("layers", "attn1.to_q", "feed_forward.linear_2"),),
    config={
        "sample_size": 128, "patch_size": 2, "in_channels": 4, "hidden_size": 2304, "num_layers": 24, "num_attention_heads": 32,
        "num_kv_heads": 8, "multiple_of": 256, "norm_eps": 1e-5, "learn_sigma": True, "qk_norm": True, "cross_attention_dim": 2048,
    },
    # Heads of 72 channels and four to a key-value head as in the true one: 768 px are then as heavy in attention as its 2048 px.
    small={"hidden_size": 288, "num_layers": 3, "num_attention_heads": 4, "num_kv_heads": 1, "cross_attention_dim": 256},
    small_prompt=PromptShape(WORDS, 256, WORDS, EMPTY, masked=True),
    call={"prompt": None, "guidance_scale": 4.0},
)  # fmt: skip

SD3_MEDIUM = SpeedModel(
    name="sd3-medium",
    pipeline="StableDiffusion3Pipeline",
    transformer="SD3Transformer2DModel",
    scheduler=_EULER,
    scheduling={"shift": 3.0},
    steps=28,
    prompt=PromptShape(77 + 256, 4096, 77 + 256, 77 + 256, pooled=2048),
    stacks=(Stack(_DIFFUSERS_BLOCKS, "attn.to_q", "ff.net.2"),),
    config={
        "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 24, "num_attention_heads": 24,
        "attention_head_dim": 64, "joint_attention_dim": 4096, "caption_projection_dim": 1536, "pooled_projection_dim": 2048,
        "pos_embed_max_size": 192,
    },
    small={
        "num_layers": 3, "num_attention_heads": 4, "joint_attention_dim": 256, "caption_projection_dim": 256, "pooled_projection_dim": 64,
    },
    small_prompt=PromptShape(WORDS, 256, WORDS, WORDS, pooled=64),
    call={"guidance_scale": 7.0},
)  # fmt: skip

FLUX1_DEV = SpeedModel(
    name="flux1-dev",
    pipeline="FluxPipeline",
    transformer="FluxTransformer2DModel",
    scheduler=_EULER,
    scheduling={"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15},
    steps=28,
    prompt=PromptShape(512, 4096, 512, pooled=768),
    stacks=(Stack(_DIFFUSERS_BLOCKS, "attn.to_q", "ff.net.2"), Stack("single_transformer_blocks", "attn.to_q", "proj_mlp")),
    config={
        "in_channels": 64, "num_layers": 19, "num_single_layers": 38, "num_attention_heads": 24, "attention_head_dim": 128,
        "joint_attention_dim": 4096, "pooled_projection_dim": 768, "guidance_embeds": True, "axes_dims_rope": (16, 56, 56),
    },
    small={"num_layers": 1, "num_single_layers": 2, "num_attention_heads": 2, "joint_attention_dim": 256, "pooled_projection_dim": 64},
    small_prompt=PromptShape(WORDS, 256, WORDS, pooled=64),
    call={"guidance_scale": 3.5},
)  # fmt: skip

PIXART_SIGMA = SpeedModel(
    name="pixart-sigma",
    pipeline="PixArtSigmaPipeline",
    transformer="PixArtTransformer2DModel",
    scheduler="DPMSolverMultistepScheduler",
    steps=20,
    prompt=PromptShape(300, 4096, WORDS, EMPTY, masked=True),
    stacks=(Stack(_DIFFUSERS_BLOCKS, "attn1.to_q", "ff.net.2"),),
    config={
        "sample_size": 128, "patch_size": 2, "in_channels": 4, "out_channels": 8, "num_layers": 28, "num_attention_heads": 16,
        "attention_head_dim": 72, "cross_attention_dim": 1152, "caption_channels": 4096, "interpolation_scale": 2,
        "use_additional_conditions": False,
    },
    small={"num_layers": 3, "num_attention_heads": 4, "cross_attention_dim": 288, "caption_channels": 256},
    small_prompt=PromptShape(WORDS, 256, WORDS // 2, EMPTY, masked=True),
    # Without binning the size asked for is the size made.
    call={"guidance_scale": 4.5, "negative_prompt": None, "use_resolution_binning": False},
)  # fmt: skip

Z_IMAGE = SpeedModel(
    name="z-image",
    pipeline="ZImagePipeline",
    transformer="ZImageTransformer2DModel",
    scheduler=_EULER,
    scheduling={"shift": 3.0},
    steps=50,
    prompt=PromptShape(WORDS, 2560, WORDS + EMPTY_CHAT, EMPTY_CHAT, listed=True),
    stacks=(Stack("layers", "attention.to_q", "feed_forward.w2"),),
    config={
        "in_channels": 16, "dim": 3840, "n_layers": 30, "n_refiner_layers": 2, "n_heads": 30, "n_kv_heads": 30, "cap_feat_dim": 2560,
        "axes_dims": [32, 48, 48], "axes_lens": [1024, 512, 512],
    },
    small={"dim": 256, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": 256},
    small_prompt=PromptShape(WORDS, 256, WORDS + EMPTY_CHAT, EMPTY_CHAT, listed=True),
    call={"guidance_scale": 5.0},
)  # fmt: skip

MODELS = {model.name: model for model in (LUMINA_NEXT, SD3_MEDIUM, FLUX1_DEV, PIXART_SIGMA, Z_IMAGE)}


@dataclass(frozen=True)
class Subject:
    """A model in its pipeline, and the prompt it is given."""

    model: SpeedModel
    pipe: Any
    prompt: dict[str, Any]
    device: str

    def picture(self, size: int, steps: int, seed: int) -> Tensor:
        """Latents of one square picture, as the pipeline leaves them."""
        generator = torch.Generator(self.device).manual_seed(seed)
        asked = {"height": size, "width": size, "num_inference_steps": steps, "output_type": "latent", "return_dict": False}
        latents: Any = self.pipe(**self.model.call, **self.prompt, **asked, generator=generator)[0]
        return torch.stack(latents) if isinstance(latents, list) else latents

    def blocks(self) -> list[tuple[Stack, nn.Module]]:
        """Every block, in the order they run."""
        transformer: nn.Module = self.pipe.transformer
        return [(stack, block) for stack in self.model.stacks for block in transformer.get_submodule(stack.path).children()]


def subject_of(model: SpeedModel, device: str, dtype: torch.dtype, seed: int) -> Subject:
    """The model with random weights in the real pipeline, made on the device and in the type it runs in."""
    import diffusers

    from safe_dit_engine.hosts.diffusers.loading import made_on, pipeline_of

    generator = torch.Generator(device).manual_seed(seed)
    make = partial(getattr(diffusers, model.transformer), **model.config)
    transformer = _random(made_on(device, dtype, make), generator)
    parts = {"transformer": transformer, "scheduler": getattr(diffusers, model.scheduler)(**model.scheduling)}
    pipe = pipeline_of(getattr(diffusers, model.pipeline), parts)
    pipe.set_progress_bar_config(disable=True)
    return Subject(model, pipe, model.prompt.random(device, dtype, generator), device)


@torch.no_grad()
def _random(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """Weights that keep the size of what passes; norms and gates around what they begin with, since some gates begin with zero."""
    for weight in module.parameters():
        if weight.ndim > 1:
            weight.normal_(std=weight.shape[1:].numel() ** -0.5, generator=generator)
        else:
            weight.add_(torch.empty_like(weight).normal_(std=0.1, generator=generator))
    return module.requires_grad_(False)


def attention_share(config: Mapping[str, Any], size: int) -> float:
    """Multiply-adds of self-attention / all of a Lumina-Next block, for the image rows of a square picture of `size` pixels."""
    width, group = config["hidden_size"], config["num_attention_heads"] // config["num_kv_heads"]
    multiple = config["multiple_of"]
    inner = multiple * -(-int(8 * width / 3) // multiple)
    # Queries of image and text, and the output; keys and values; the three layers of the feed-forward.
    linear = (3 + 2 / group) * width**2 + 3 * width * inner
    attention = 2 * image_tokens(size) * width
    return attention / (attention + linear)


def image_tokens(size: int) -> int:
    """Tokens of a square picture; all these models take 16 pixels a token."""
    return (size // PIXELS_A_TOKEN) ** 2
