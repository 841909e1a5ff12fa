"""A plain sampler for the demo model, so that training can look at its own pictures."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .weights import SAMPLING, DemoNetworks
from .words import token_ids


def sigma_schedule(steps: int, shift: float) -> Tensor:
    """Noise levels from 1 to 0, (steps + 1,), denser where the shift puts them."""
    even = torch.linspace(1, 0, steps + 1)
    return shift * even / (1 + (shift - 1) * even)


def caption_ids(captions: list[str], device: torch.device | str = "cpu") -> Tensor:
    """Token ids, (captions, rows)."""
    return torch.tensor([token_ids(caption) for caption in captions], device=device)


@torch.inference_mode()
def sample_latents(
    networks: DemoNetworks, captions: list[str], size: int, seed: int = 0, steps: int = 20, cfg: float = 4.0, shift: float | None = None
) -> Tensor:
    """Euler sampling with classifier-free guidance; latents (captions, 16, size / 8, size / 8)."""
    device = next(networks.dit.parameters()).device
    count, grid = len(captions), size // 8
    noise = torch.randn(count, networks.dit.config.in_channels, grid, grid, generator=torch.Generator().manual_seed(seed))
    sigmas = sigma_schedule(steps, SAMPLING["shift"] if shift is None else shift)
    with torch.autocast(device.type, torch.bfloat16):
        context = networks.text(caption_ids(captions + [""] * count, device))
        cos, sin = networks.dit.rope(context.shape[1], grid, grid, device)
        x = noise.to(device)
        for now, after in zip(sigmas[:-1].tolist(), sigmas[1:].tolist()):
            both = networks.dit(torch.cat([x, x]), torch.full((2 * count,), now, device=device), context, cos, sin).float()
            asked, plain = both.chunk(2)
            x = x + (after - now) * (plain + cfg * (asked - plain))
    return x


@torch.inference_mode()
def sample_pictures(networks: DemoNetworks, captions: list[str], size: int, seed: int = 0, **options: Any) -> Tensor:
    """Sampled pictures, (captions, 3, size, size) in [0, 1] on the CPU."""
    latents = sample_latents(networks, captions, size, seed, **options)
    with torch.autocast(latents.device.type, torch.bfloat16):
        return networks.vae.decode(latents).float().clamp(0, 1).cpu()
