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
    """One published model: what of its configuration is not the class's default, or is read here; `call`: the pipeline's arguments.

    `small`, `small_prompt`: what is smaller on a CPU.
    """

    name: str
    pipeline: str
    transformer: str
    steps: int
    stacks: tuple[Stack, ...]
    config: Mapping[str, Any]
    small: Mapping[str, Any]
    prompt: PromptShape
    small_prompt: Mapping[str, Any]
    call: Mapping[str, Any]
    scheduling: Mapping[str, Any] = field(default_factory=dict)
    scheduler: str = "FlowMatchEulerDiscreteScheduler"

    def scaled_down(self) -> SpeedModel:
        """The same architecture, with fewer and narrower blocks."""
        return replace(self, config={**self.config, **self.small}, prompt=replace(self.prompt, **self.small_prompt))


_BLOCKS = Stack("transformer_blocks", "attn.to_q", "ff.net.2")
LUMINA_NEXT = SpeedModel(
    "lumina-next", "LuminaPipeline", "LuminaNextDiT2DModel", 30, (Stack("layers", "attn1.to_q", "feed_forward.linear_2"),),
    config={"hidden_size": 2304, "num_layers": 24, "num_attention_heads": 32, "num_kv_heads": 8, "multiple_of": 256},
    # Heads of 72 channels and four to a key-value head as in the true one: 768 px are then as heavy in attention as its 2048 px.
    small={"hidden_size": 288, "num_layers": 3, "num_attention_heads": 4, "num_kv_heads": 1, "cross_attention_dim": 256},
    prompt=PromptShape(WORDS, 2048, WORDS, EMPTY, masked=True), small_prompt={"width": 256},
    call={"prompt": None, "guidance_scale": 4.0},
)  # fmt: skip
SD3_MEDIUM = SpeedModel(
    "sd3-medium", "StableDiffusion3Pipeline", "SD3Transformer2DModel", 28, (_BLOCKS,),
    config={"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 192},
    small={
        "num_layers": 3, "num_attention_heads": 4, "joint_attention_dim": 256, "caption_projection_dim": 256, "pooled_projection_dim": 64,
    },
    prompt=PromptShape(77 + 256, 4096, 77 + 256, 77 + 256, pooled=2048),
    small_prompt={"rows": WORDS, "width": 256, "valid": WORDS, "negative": WORDS, "pooled": 64},
    call={"guidance_scale": 7.0}, scheduling={"shift": 3.0},
)  # fmt: skip
FLUX1_DEV = SpeedModel(
    "flux1-dev", "FluxPipeline", "FluxTransformer2DModel", 28, (_BLOCKS, Stack("single_transformer_blocks", "attn.to_q", "proj_mlp")),
    config={"num_layers": 19, "num_single_layers": 38, "guidance_embeds": True},
    small={"num_layers": 1, "num_single_layers": 2, "num_attention_heads": 2, "joint_attention_dim": 256, "pooled_projection_dim": 64},
    prompt=PromptShape(512, 4096, 512, pooled=768), small_prompt={"rows": WORDS, "width": 256, "valid": WORDS, "pooled": 64},
    call={"guidance_scale": 3.5}, scheduling={"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15},
)  # fmt: skip
PIXART_SIGMA = SpeedModel(
    "pixart-sigma", "PixArtSigmaPipeline", "PixArtTransformer2DModel", 20, (Stack("transformer_blocks", "attn1.to_q", "ff.net.2"),),
    config={"num_layers": 28, "caption_channels": 4096, "interpolation_scale": 2, "use_additional_conditions": False},
    small={"num_layers": 3, "num_attention_heads": 4, "cross_attention_dim": 288, "caption_channels": 256},
    prompt=PromptShape(300, 4096, WORDS, EMPTY, masked=True), small_prompt={"rows": WORDS, "width": 256, "valid": WORDS // 2},
    # Without binning the size asked for is the size made.
    call={"guidance_scale": 4.5, "negative_prompt": None, "use_resolution_binning": False}, scheduler="DPMSolverMultistepScheduler",
)  # fmt: skip
Z_IMAGE = SpeedModel(
    "z-image", "ZImagePipeline", "ZImageTransformer2DModel", 50, (Stack("layers", "attention.to_q", "feed_forward.w2"),),
    config={"n_layers": 30},
    small={"dim": 256, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": 256},
    prompt=PromptShape(WORDS, 2560, WORDS + EMPTY_CHAT, EMPTY_CHAT, listed=True), small_prompt={"width": 256},
    call={"guidance_scale": 5.0}, scheduling={"shift": 3.0},
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
