"""The demo model as a `diffusers` pipeline, so that everything made for `diffusers` can be tried on a model that really paints.

The transformer is `diffusers`' own `Lumina2Transformer2DModel` with the demo's weights under its names. What the demo does in another way
is replaced where it lies: positions (`NativePositions`), the scale of time, a small number in two norms. Text encoder and autoencoder are
the plain torch ones. Both conds run in one batch, negative prompt first, as most pipelines do and ComfyUI does; `Lumina2Pipeline` calls
its transformer for each, which some caches of `diffusers` cannot follow.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    ImagePipelineOutput,
    LTXEulerAncestralRFScheduler,
    Lumina2Transformer2DModel,
    SchedulerMixin,
)
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import Timesteps
from diffusers.models.transformers.transformer_lumina2 import Lumina2RotaryPosEmbed
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ...demo.autoencoder import Autoencoder
from ...demo.network import DiTConfig, NextDiT, TextEncoder, rope_angles, rope_options
from ...demo.sampling import caption_ids
from ...demo.weights import SAMPLING, WEIGHTS_FOLDER, load_networks

CELL = 8  # pixels a side of one latent cell
NOISE_LEVELS = 1000  # the levels ComfyUI picks from
TIME_FEATURES = 256
# Names of the demo's weights, and what they are called in `diffusers`.
NAMES = (
    (r"^t_embedder\.mlp\.0\.", "time_caption_embed.timestep_embedder.linear_1."),
    (r"^t_embedder\.mlp\.2\.", "time_caption_embed.timestep_embedder.linear_2."),
    (r"^cap_embedder\.", "time_caption_embed.caption_embedder."),
    (r"^final_layer\.adaLN_modulation\.1\.", "norm_out.linear_1."),
    (r"^final_layer\.linear\.", "norm_out.linear_2."),
    (r"^(.*)\.attention\.out\.", r"\1.attn.to_out.0."),
    (r"^(.*)\.attention\.q_norm\.", r"\1.attn.norm_q."),
    (r"^(.*)\.attention\.k_norm\.", r"\1.attn.norm_k."),
    (r"^((?:noise_refiner|layers)\.\d+)\.attention_norm1\.", r"\1.norm1.norm."),
    (r"^(context_refiner\.\d+)\.attention_norm1\.", r"\1.norm1."),
    (r"^(.*)\.attention_norm2\.", r"\1.norm2."),
    (r"^(.*)\.adaLN_modulation\.1\.", r"\1.norm1.linear."),
    (r"^(.*)\.feed_forward\.w([123])\.", r"\1.feed_forward.linear_\2."),
)


def load_demo_pipeline(folder: Path = WEIGHTS_FOLDER, device: str = "cpu") -> DemoPipeline:
    """The demo model from the weight files in `folder`, in float32."""
    networks = load_networks(folder)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SAMPLING["shift"])
    transformer = transformer_of(networks.dit).to(device)
    pipe = DemoPipeline(transformer, networks.text.to(device).eval(), networks.vae.to(device).eval(), scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def transformer_of(network: NextDiT) -> Lumina2Transformer2DModel:
    """The same network as `diffusers` has it: noise level `1 - timestep`, and picture - noise comes out."""
    config = network.config
    model = Lumina2Transformer2DModel(**_sizes(config))
    model.load_state_dict(dict(_renamed(network.state_dict())))
    model.rope_embedder = NativePositions(int(config.rope_theta), list(config.axes_dims), patch_size=config.patch_size)
    model.time_caption_embed.time_proj = Timesteps(TIME_FEATURES, True, 0.0, scale=int(config.time_scale))
    for module in model.modules():
        if isinstance(module, Attention):
            module.norm_q.eps = module.norm_k.eps = torch.finfo(torch.float32).eps
    return model.eval()


def _sizes(config: DiTConfig) -> dict[str, Any]:
    """The sizes in the words of `diffusers`, which counts the feed-forward layer's width in fours of the model's."""
    return {
        "sample_size": 32,
        "patch_size": config.patch_size,
        "in_channels": config.in_channels,
        "hidden_size": config.dim,
        "num_layers": config.n_layers,
        "num_refiner_layers": config.n_refiner_layers,
        "num_attention_heads": config.n_heads,
        "num_kv_heads": config.n_heads,
        "multiple_of": config.multiple_of,
        "ffn_dim_multiplier": config.ffn_dim / (4 * config.dim),
        "norm_eps": config.norm_eps,
        "axes_dim_rope": config.axes_dims,
        "cap_feat_dim": config.cap_feat_dim,
    }


def _renamed(state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, weight in state.items():
        if name.endswith(".attention.qkv.weight"):
            attention = name.removesuffix("attention.qkv.weight")
            yield from ((f"{attention}attn.to_{part}.weight", rows) for part, rows in zip("qkv", weight.chunk(3), strict=True))
            continue
        for pattern, replacement in NAMES:
            name = re.sub(pattern, replacement, name)
        yield name, weight


class NativePositions(Lumina2RotaryPosEmbed):
    """The demo's positions: text counts from 1, and every size of picture spans the range it was trained on."""

    def _get_freqs_cis(self, ids: Tensor) -> Tensor:
        """Rotations `[B, rows, head_dim / 2]`, complex, for whole positions `[B, rows, 3]`: of text, and of cells behind it."""
        height, width = (int(ids[..., axis].max()) + 1 for axis in (1, 2))
        options = rope_options(height, width)
        scale = ids.new_tensor([1.0, options["scale_y"], options["scale_x"]], dtype=torch.float32)
        shift = ids.new_tensor([1.0, options["shift_y"], options["shift_x"]], dtype=torch.float32)
        in_picture = ids[..., :1] == ids[..., 0].amax(1)[:, None, None]
        text_shift = ids.new_tensor([1.0, 0.0, 0.0], dtype=torch.float32)
        places = torch.where(in_picture, ids * scale + shift, ids + text_shift)
        angles = rope_angles(places.flatten(0, 1), tuple(self.axes_dim), self.theta).unflatten(0, ids.shape[:2])
        return torch.polar(torch.ones_like(angles), angles)


def simple_levels(steps: int) -> list[float]:
    """Noise levels before the shift, as ComfyUI's scheduler `simple` picks them from its thousand; without the last, 0."""
    return [(NOISE_LEVELS - int(step * NOISE_LEVELS / steps)) / NOISE_LEVELS for step in range(steps)]


def set_levels(scheduler: Any, steps: int, device: torch.device) -> None:
    """Noise levels as ComfyUI has them, where a scheduler of `diffusers` can be given any; else its own."""
    if "sigmas" in signature(scheduler.set_timesteps).parameters and not isinstance(scheduler, LTXEulerAncestralRFScheduler):
        scheduler.set_timesteps(sigmas=np.array(simple_levels(steps)), device=device)
    else:
        scheduler.set_timesteps(steps, device=device)


class DemoPipeline(DiffusionPipeline):
    """Caption to picture with the demo model."""

    def __init__(
        self,
        transformer: Lumina2Transformer2DModel,
        text_encoder: TextEncoder,
        vae: Autoencoder,
        scheduler: SchedulerMixin,
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, text_encoder=text_encoder, vae=vae, scheduler=scheduler)
        self.image_processor = VaeImageProcessor(do_normalize=False)

    def prepare_latents(self, count: int, height: int, width: int, generator: torch.Generator | None) -> Tensor:
        """Noise `[count, 16, height / 8, width / 8]`, the same as ComfyUI's for the same seed."""
        shape = (count, self.transformer.config.in_channels, height // CELL, width // CELL)
        return randn_tensor(shape, generator, self.transformer.device, torch.float32)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        negative_prompt: str = "",
        height: int = 256,
        width: int = 256,
        num_inference_steps: int = SAMPLING["steps"],
        guidance_scale: float = SAMPLING["cfg"],
        generator: torch.Generator | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Pictures of the captions: an `ImagePipelineOutput`, or a tuple; `output_type`: `pil`, `np`, `pt` or `latent`.

        ValueError where a side is no multiple of 16.
        """
        if height % (2 * CELL) or width % (2 * CELL):
            raise ValueError(f"`height` and `width` are {height} and {width}; give multiples of {2 * CELL}.")
        captions = [prompt] if isinstance(prompt, str) else prompt
        negatives = [] if guidance_scale == 1.0 else [negative_prompt] * len(captions)
        text = self.text_encoder(caption_ids(negatives + captions, self.transformer.device))
        latents = self.prepare_latents(len(captions), height, width, generator)
        set_levels(self.scheduler, num_inference_steps, self.transformer.device)
        for timestep in self.progress_bar(self.scheduler.timesteps):
            latents = self._next(latents, timestep, text, guidance_scale, generator)
        images = latents if output_type == "latent" else self.decode(latents, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images) if return_dict else (images,)

    def _next(self, latents: Tensor, timestep: Tensor, text: Tensor, guidance_scale: float, generator: torch.Generator | None) -> Tensor:
        conds = len(text) // len(latents)
        copies = torch.cat([latents] * conds)
        found = self.transformer(
            hidden_states=copies,
            timestep=(1 - timestep / self.scheduler.config.num_train_timesteps).expand(len(copies)),
            encoder_hidden_states=text,
            encoder_attention_mask=torch.ones(text.shape[:2], dtype=torch.int64, device=text.device),
            return_dict=False,
        )[0]
        *plain, asked = (-found).chunk(conds)
        guided = plain[0] + guidance_scale * (asked - plain[0]) if plain else asked
        # Schedulers that add noise take the generator, the others do not know it.
        options = {"generator": generator} if "generator" in signature(self.scheduler.step).parameters else {}
        return self.scheduler.step(guided, timestep, latents, return_dict=False, **options)[0]

    @torch.no_grad()
    def decode(self, latents: Tensor, output_type: str) -> Any:
        """Pictures of latents."""
        return self.image_processor.postprocess(self.vae.decode(latents).clamp(0, 1), output_type)
