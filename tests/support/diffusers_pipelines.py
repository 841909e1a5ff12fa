"""Pipelines of `diffusers` with tiny random transformers, one of each family, and what the tests of the host do with them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from safe_dit_engine.masks.ledger import MaskMode
from safe_dit_engine.presets import SafeConfig
from safe_dit_engine.steps.plan import ScheduleConfig
from safe_dit_engine.tokens.partition import PartitionConfig

TEXT, WIDTH = 10, 24
HEIGHT, SIDE = 128, 160  # 8 x 10 tokens
STEPS = 10
MANY = 20  # so many that presets, which keep full steps close, leave out some of them (`lets_skip`)
FAR_APART = "Steps that are left out lie far apart; where the picture changes too much, take more steps or a preset."
BLOCKS = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16}


# Pipelines


def weighted(model: nn.Module) -> Any:
    """Random numbers for every weight: as they come, some gates are zero."""
    generator = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.3 if weight.ndim == 1 else weight.shape[-1] ** -0.5, generator=generator)
    return model.eval()


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def text(images: int = 1, pooled: bool = False, masked: bool = False) -> dict[str, Any]:
    """Embeddings of as many prompts and negative prompts, and what pipelines want beside them."""
    found: dict[str, Any] = {"prompt_embeds": noise(1, images, TEXT, WIDTH), "negative_prompt_embeds": noise(2, images, TEXT, WIDTH)}
    if pooled:
        found |= {"pooled_prompt_embeds": noise(3, images, 16), "negative_pooled_prompt_embeds": noise(4, images, 16)}
    if masked:
        mask = torch.ones(images, TEXT, dtype=torch.int64)
        found |= {"prompt_attention_mask": mask, "negative_prompt_attention_mask": mask}
    return found


def euler(**options: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**options)


def flux_transformer(channels: int = 4, guided: bool = False) -> Any:
    sizes = {**BLOCKS, "num_layers": 1, "num_single_layers": 2, "axes_dims_rope": (4, 4, 8), "guidance_embeds": guided}
    return weighted(diffusers.FluxTransformer2DModel(in_channels=channels, joint_attention_dim=WIDTH, pooled_projection_dim=16, **sizes))


def flux() -> tuple[Any, dict[str, Any]]:
    """Guidance-distilled: one call a step."""
    pipe = diffusers.FluxPipeline(euler(), None, None, None, None, None, flux_transformer(guided=True))
    return pipe, {name: value for name, value in text(pooled=True).items() if "negative" not in name}


def flux_cfg() -> tuple[Any, dict[str, Any]]:
    """True CFG: two calls a step."""
    return diffusers.FluxPipeline(euler(), None, None, None, None, None, flux_transformer()), {**text(pooled=True), "true_cfg_scale": 3.0}


def kontext() -> tuple[Any, dict[str, Any]]:
    """A reference picture's rows behind the image's."""
    pipe = diffusers.FluxKontextPipeline(euler(), None, None, None, None, None, flux_transformer(64))
    prompt = {name: value for name, value in text(pooled=True).items() if "negative" not in name}
    return pipe, {**prompt, "image": noise(5, 1, 16, 8, 12), "_auto_resize": False, "max_area": HEIGHT * SIDE}


def sd3() -> tuple[Any, dict[str, Any]]:
    """Cond and uncond in one batch; the first block attends a second time."""
    sizes = {**BLOCKS, "caption_projection_dim": 32, "joint_attention_dim": WIDTH, "pooled_projection_dim": 16, "pos_embed_max_size": 16}
    model = diffusers.SD3Transformer2DModel(sample_size=8, in_channels=4, out_channels=4, dual_attention_layers=(0,), **sizes)
    return diffusers.StableDiffusion3Pipeline(weighted(model), euler(shift=3.0), *[None] * 7), text(pooled=True)


def lumina() -> tuple[Any, dict[str, Any]]:
    """A mask of ones over the image; attention scaled by the number of rows; out of eight channels four are thrown away."""
    sizes = {"hidden_size": 32, "num_layers": 2, "num_attention_heads": 2, "num_kv_heads": 1, "multiple_of": 16}
    model = weighted(diffusers.LuminaNextDiT2DModel(sample_size=16, in_channels=4, cross_attention_dim=WIDTH, **sizes))
    return diffusers.LuminaPipeline(model, euler(), None, None, None), {**text(masked=True), "prompt": None}


def pixart() -> tuple[Any, dict[str, Any]]:
    """Noise is predicted, not velocity, and its variance too."""
    sizes = {**BLOCKS, "cross_attention_dim": 32, "caption_channels": WIDTH, "sample_size": 8}
    model = weighted(diffusers.PixArtTransformer2DModel(in_channels=4, out_channels=8, **sizes))
    pipe = diffusers.PixArtSigmaPipeline(None, None, None, model, diffusers.DPMSolverMultistepScheduler())
    return pipe, {**text(masked=True), "negative_prompt": None, "use_resolution_binning": False}


def lumina2() -> tuple[Any, dict[str, Any]]:
    sizes = {"hidden_size": 32, "num_layers": 2, "num_refiner_layers": 1, "num_attention_heads": 2, "num_kv_heads": 1, "multiple_of": 16}
    places = {"axes_dim_rope": (4, 4, 8), "axes_lens": (64, 64, 64)}
    model = diffusers.Lumina2Transformer2DModel(sample_size=16, in_channels=4, cap_feat_dim=WIDTH, **sizes, **places)
    return diffusers.Lumina2Pipeline(weighted(model), euler(), None, None, None), text(masked=True)


def z_image() -> tuple[Any, dict[str, Any]]:
    """80 image tokens are padded to 96, prompts of 40 and 10 to 64 and 32: the second has a mask in the batch."""
    sizes = {"dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2, "axes_dims": [4, 6, 6]}
    model = diffusers.ZImageTransformer2DModel(in_channels=4, cap_feat_dim=WIDTH, axes_lens=[256, 16, 16], **sizes)
    prompts = {"prompt_embeds": [noise(1, 40, WIDTH)], "negative_prompt_embeds": [noise(2, 10, WIDTH)]}
    return diffusers.ZImagePipeline(euler(), None, None, None, weighted(model)), prompts


def qwen() -> tuple[Any, dict[str, Any]]:
    """Packed latents; guidance is rescaled to the norm of the prompt's prediction."""
    sizes = {**BLOCKS, "joint_attention_dim": WIDTH, "axes_dims_rope": (4, 4, 8)}
    model = diffusers.QwenImageTransformer2DModel(in_channels=4, out_channels=1, **sizes)
    mask = torch.ones(1, TEXT, dtype=torch.int64)
    masks = {"prompt_embeds_mask": mask, "negative_prompt_embeds_mask": mask, "true_cfg_scale": 4.0}
    return diffusers.QwenImagePipeline(euler(), None, None, None, weighted(model)), {**text(), **masks}


def wan() -> tuple[Any, dict[str, Any]]:
    """A video of three frames. By Euler, because with Wan's own scheduler, UniPC, presets that keep the picture leave nothing out."""
    sizes = {**BLOCKS, "text_dim": WIDTH, "freq_dim": 32, "ffn_dim": 32, "rope_max_seq_len": 32}
    model = weighted(diffusers.WanTransformer3DModel(patch_size=(1, 2, 2), in_channels=4, out_channels=4, **sizes))
    scheduler = euler(shift=3.0)
    return diffusers.WanPipeline(None, None, None, scheduler, model), {**text(), "num_frames": 9}


FAMILIES = {
    "flux": flux, "flux, true cfg": flux_cfg, "kontext": kontext, "sd3": sd3, "lumina-next": lumina, "pixart": pixart, "lumina2": lumina2,
    "z-image": z_image, "qwen": qwen, "wan": wan,
}  # fmt: skip


@dataclass
class Tiny:
    """A pipeline and how it is called."""

    pipe: Any
    inputs: dict[str, Any]

    def sample(self, **changes: Any) -> Tensor:
        """Latents after a call of the pipeline."""
        sizes = {"height": HEIGHT, "width": SIDE, "num_inference_steps": STEPS}
        call = {**self.inputs, **sizes, "generator": torch.Generator().manual_seed(5), "output_type": "latent", "return_dict": False}
        latents: Tensor = self.pipe(**{**call, **changes})[0]
        return latents


def tiny_of(name: str) -> Tiny:
    pipe, inputs = FAMILIES[name]()
    pipe.set_progress_bar_config(disable=True)
    return Tiny(pipe, inputs)


def lets_skip(tiny: Tiny) -> None:
    """Put another scheduler where presets leave nothing out with the pipeline's own: DPM++ 2M at noise levels whose last step is long."""
    if isinstance(tiny.pipe.scheduler, diffusers.DPMSolverMultistepScheduler):
        tiny.pipe.scheduler = diffusers.EulerDiscreteScheduler()


def selective(keep: float = 0.25, interval: int = 4, masks: MaskMode = MaskMode.OFF) -> SafeConfig:
    """The paper's rule: nothing extrapolated, nothing corrected."""
    return SafeConfig(masks, PartitionConfig(keep_ratio=keep, warmup_steps=2), ScheduleConfig(refresh_interval=interval))


@contextmanager
def counted(pipe: Any) -> Iterator[list[nn.Module]]:
    """Every run of the last block."""
    ran: list[nn.Module] = []
    blocks = [module for module in pipe.transformer.children() if isinstance(module, nn.ModuleList)][-1]
    handle = blocks[-1].register_forward_hook(lambda module, args, output: ran.append(module))
    try:
        yield ran
    finally:
        handle.remove()


# Numbers and words may be the same object in many places; of what is behind a module or a logger, nothing belongs to a pipeline.
PLAIN = (int, float, str, type(None))
FOREIGN = (type, ModuleType, FunctionType, MethodType, logging.Logger)
# What a call of a pipeline does not make anew.
LASTING = (nn.Module, nn.Parameter, FunctionType, MethodType, partial)


def graph(root: Any, identity: bool = True) -> Counter[str]:
    """Every object a pipeline's modules and scheduler hold, by the path to it: its class, what is in that, and the object itself.

    Without `identity`: what is where, whether it is the same or made anew.
    """
    found: Counter[str] = Counter()
    waiting, seen = [("pipe", root)], set()
    while waiting:
        path, value = waiting.pop()
        if id(value) in seen:
            continue
        if not isinstance(value, PLAIN):
            seen.add(id(value))
        found[f"{path} {_described(value) if identity else type(value)}"] += 1
        waiting += [(f"{path}.{name}", part) for name, part in _parts(value).items()]
    return found


def _described(value: Any) -> str:
    members = hash(tuple((name, id(member)) for name, member in vars(type(value)).items())) if hasattr(value, "__dict__") else ""
    return f"{type(value)} {id(type(value))} {members} {id(value) if isinstance(value, LASTING) else ''}"


def _parts(value: Any) -> dict[Any, Any]:
    listed = value if isinstance(value, dict) else dict(enumerate(value)) if isinstance(value, (list, tuple)) else {}
    return {**listed, **({} if isinstance(value, FOREIGN) else getattr(value, "__dict__", {}))}
