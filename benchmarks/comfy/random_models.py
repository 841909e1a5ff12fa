"""Models of published architectures with random weights, small enough for a CPU, through ComfyUI's own classes and loader.

What a step costs does not depend on the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

TEXT_ROWS, TEXT_WIDTH, POOLED = 64, 64, 32
FLUX = {
    "in_channels": 16, "out_channels": 16, "vec_in_dim": POOLED, "context_in_dim": TEXT_WIDTH, "hidden_size": 384, "mlp_ratio": 4.0,
    "num_heads": 3, "depth": 2, "depth_single_blocks": 4, "axes_dim": [16, 56, 56], "theta": 10000, "patch_size": 2, "qkv_bias": True,
    "guidance_embed": True, "txt_ids_dims": [],
}  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """A model and what one call of it with two prompts in a batch is given besides latent and noise level."""

    name: str
    patcher: Any
    channels: int
    text: Tensor
    arguments: dict[str, Any]


def random_subject(name: str) -> Subject:
    """`flux` or `sd3`, on the CPU or wherever ComfyUI runs models."""
    from comfy.model_management import load_models_gpu
    from comfy.sd import load_diffusion_model_state_dict

    patcher = load_diffusion_model_state_dict(_random_weights(_BUILDERS[name]()))
    load_models_gpu([patcher])
    generator = torch.Generator().manual_seed(1)
    text = torch.randn(2, TEXT_ROWS, TEXT_WIDTH, generator=generator).to(patcher.load_device)
    arguments: dict[str, Any] = {"y": torch.randn(2, POOLED, generator=generator).to(patcher.load_device)}
    if name == "flux":
        arguments["guidance"] = torch.full((2,), 3.5, device=patcher.load_device)
    return Subject(name, patcher, 16, text, arguments)


def _flux() -> nn.Module:
    from comfy.ldm.flux.model import Flux
    from comfy.ops import disable_weight_init

    module: nn.Module = Flux(**FLUX, operations=disable_weight_init)
    return module


def _sd3() -> nn.Module:
    from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper
    from comfy.ops import disable_weight_init

    depth = 6  # and as many heads of 64
    embedder = {"target": "torch.nn.Linear", "params": {"in_features": TEXT_WIDTH, "out_features": 64 * depth}}
    module: nn.Module = OpenAISignatureMMDITWrapper(
        input_size=None, depth=depth, in_channels=16, adm_in_channels=POOLED, context_embedder_config=embedder, num_patches=4096,
        pos_embed_max_size=64, operations=disable_weight_init,
    )  # fmt: skip
    return module


_BUILDERS: dict[str, Callable[[], nn.Module]] = {"flux": _flux, "sd3": _sd3}


def _random_weights(module: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(value.shape, generator=generator) * 0.02 for name, value in module.state_dict().items()}
