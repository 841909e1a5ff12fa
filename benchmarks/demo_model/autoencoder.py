"""Training of the demo model's autoencoder, and what both phases of training share: a clock, learning rates, checkpoints, weight files."""

from __future__ import annotations

import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from safe_dit_engine.cli.time_left import in_words
from safe_dit_engine.demo.autoencoder import LATENT_CHANNELS, fit_code
from safe_dit_engine.demo.weights import FILES, WEIGHTS_FOLDER, DemoNetworks

from .scenes import held_out_scenes, random_scene, scene_from_seed

log = logging.getLogger("safe_dit.demo")

VERSION = "1"
STEP_CAP_S = 6.0  # a longer step was a pause or a compilation, not work
REPORT_EVERY_S, SAVE_EVERY_S = 20.0, 240.0
NOISE = 0.06


class BusyClock:
    """Seconds of work against a budget; what takes longer than `STEP_CAP_S` counts as that."""

    def __init__(self, minutes: float) -> None:
        self.budget_s, self.used_s = 60 * minutes, 0.0

    def work(self, step: Callable[[], None], every: Mapping[Callable[[], None], float]) -> None:
        """Call `step` until the budget is used, and in between the others, each every so many busy seconds; their time does not count."""
        due = {call: self.used_s + seconds for call, seconds in every.items()}
        while self.share < 1.0:
            started = time.monotonic()
            step()
            self.used_s += min(time.monotonic() - started, STEP_CAP_S)
            for call in [call for call, moment in due.items() if self.used_s >= moment]:
                call()
                due[call] = self.used_s + every[call]

    @property
    def share(self) -> float:
        """Used part of the budget, 0 to 1."""
        return min(1.0, self.used_s / max(self.budget_s, 1e-9))


def learning_rate_factor(share: float, used_s: float, warm_s: float = 60.0, hold: float = 0.55) -> float:
    """Short warm-up, constant until `hold` of the budget, then a line down to 2 %."""
    decay = 1.0 if share < hold else 1.0 - 0.98 * (share - hold) / (1.0 - hold)
    return min(1.0, 0.02 + used_s / warm_s) * decay


def set_rates(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    """Scale every group's own base rate."""
    for group in (g for optimizer in optimizers for g in optimizer.param_groups):
        group["lr"] = group.setdefault("base_lr", group["lr"]) * factor


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint so that an interrupt leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)


def save_weights(name: str, state: dict[str, Tensor], fields: dict[str, Any], dtype: torch.dtype) -> None:
    """Write one of the demo model's weight files."""
    write_weights(WEIGHTS_FOLDER / FILES[name], state, fields, dtype)


def write_weights(path: Path, state: Mapping[str, Tensor], fields: dict[str, Any], dtype: torch.dtype) -> None:
    """Write a file of tensors with JSON in its metadata; it appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt", "version": VERSION, **{key: json.dumps(value) for key, value in fields.items()}}
    part = path.with_suffix(".part")
    save_file({key: value.detach().to("cpu", dtype).contiguous() for key, value in state.items()}, part, metadata)
    part.chmod(0o644)
    os.replace(part, path)


def to_tensor(picture: np.ndarray) -> Tensor:
    """(h, w, 3) array -> (3, h, w) tensor."""
    return torch.from_numpy(picture).permute(2, 0, 1).contiguous()


# The autoencoder


class CropPool:
    """Ring buffer of rendered pictures of mixed sizes, from which square crops are cut."""

    def __init__(self, capacity: int, seed: int, sizes: tuple[int, ...] = (128, 256, 256, 512)) -> None:
        self.rng = np.random.default_rng([seed, 1])
        self.sizes = sizes
        self.pictures: deque[Tensor] = deque(maxlen=capacity)

    def draw(self, count: int, crop: int, fresh: int) -> Tensor:
        """Crops, (count, 3, crop, crop), on 8 px steps."""
        missing = int(self.pictures.maxlen or 0) - len(self.pictures)
        self.pictures.extend(to_tensor(random_scene(self.rng).render(int(self.rng.choice(self.sizes)))) for _ in range(missing or fresh))
        return torch.stack([self._crop(self.pictures[i], crop) for i in self.rng.integers(0, len(self.pictures), count)])

    def _crop(self, picture: Tensor, crop: int) -> Tensor:
        y, x = (8 * int(self.rng.integers(0, (picture.shape[1] - crop) // 8 + 1)) for _ in range(2))
        return picture[:, y : y + crop, x : x + crop]


def fit_autoencoder_code(networks: DemoNetworks, seed: int, count: int = 160) -> None:
    """Set the linear code from rendered scenes of every size and write it into the encoder."""
    scenes = [scene_from_seed(seed + i) for i in range(count)]
    code, offset = fit_code([to_tensor(s.render(size))[None] for s in scenes for size in (128, 256, 512)])
    networks.vae.code.copy_(code)
    networks.vae.offset.copy_(offset)
    networks.vae.install_code()


@torch.inference_mode()
def autoencoder_psnr(networks: DemoNetworks, size: int, count: int = 8) -> float:
    """Mean PSNR in dB of whole held-out pictures."""
    device = next(networks.vae.parameters()).device
    target = torch.stack([to_tensor(s.render(size)) for s in held_out_scenes(count)]).to(device)
    with torch.autocast(device.type, torch.bfloat16):
        decoded = networks.vae.decode(networks.vae.encode(target)).float().clamp(0, 1)
    return float((-10 * (decoded - target).square().mean(dim=(1, 2, 3)).log10()).mean())


def train_autoencoder(networks: DemoNetworks, minutes: float, folder: Path, device: torch.device, seed: int) -> None:
    """Train the decoder on the fixed code, from the checkpoint in `folder` if there is one."""
    decoder = networks.vae.taesd_decoder
    nn.utils.convert_conv2d_weight_memory_format(decoder, torch.channels_last)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.0)
    clock, losses = BusyClock(minutes), list[float]()
    if (folder / "vae.pt").is_file():
        saved = torch.load(folder / "vae.pt", map_location=device)
        networks.vae.load_state_dict(saved["vae"])
        optimizer.load_state_dict(saved["optimizer"])
        clock.used_s, losses = saved["used_s"], saved["losses"]
    pool = CropPool(240, seed + len(losses))

    def step() -> None:
        set_rates([optimizer], learning_rate_factor(clock.share, clock.used_s, warm_s=15.0, hold=0.3))
        losses.append(_decoder_step(networks, optimizer, pool.draw(16, 64, 2).to(device)))

    def report() -> None:
        ahead = in_words(clock.budget_s - clock.used_s)
        log.info("vae step %d, %.1f busy min, %s left, loss %.4f", len(losses), clock.used_s / 60, ahead, np.mean(losses[-33:]))

    def keep() -> None:
        state = {"vae": networks.vae.state_dict(), "optimizer": optimizer.state_dict(), "used_s": clock.used_s, "losses": losses}
        save_checkpoint(folder / "vae.pt", state)
        training = {"busy_minutes": round(clock.used_s / 60, 1), "steps": len(losses)}
        save_weights("vae", networks.vae.stock_state(), {"latent_channels": LATENT_CHANNELS, "training": training}, torch.float16)
        log.info("vae psnr 128/256/512 px: %s dB", " / ".join(f"{autoencoder_psnr(networks, s):.1f}" for s in (128, 256, 512)))

    clock.work(step, {report: REPORT_EVERY_S, keep: SAVE_EVERY_S / 2})
    keep()


def _decoder_step(networks: DemoNetworks, optimizer: torch.optim.Optimizer, crops: Tensor) -> float:
    with torch.no_grad():
        latents = networks.vae.encode(crops)
        latents = latents + NOISE * torch.rand(len(crops), 1, 1, 1, device=crops.device) * torch.randn_like(latents)
    with torch.autocast(crops.device.type, torch.bfloat16):
        decoded = networks.vae.decode(latents.contiguous(memory_format=torch.channels_last))
    error = decoded.float() - crops
    edges = (error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()) * 0.5
    loss = error.abs().mean() + 2 * error.square().mean() + edges
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(networks.vae.taesd_decoder.parameters(), 1.0)
    optimizer.step()
    return loss.item()
