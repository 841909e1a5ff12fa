"""Distil the demo model to 8 and to 4 steps without guidance, as LoRAs that any loader of LoRAs takes.

The teacher samples with `TEACHER_STEPS` Euler steps and CFG. A student of N steps learns, from the teacher's own latents at its N noise
levels, the one velocity that leads from each to the next: guidance and several steps in one call (progressive distillation, Salimans and
Ho, arXiv 2202.00512, over guided trajectories, Meng et al., arXiv 2210.03142). Both students share the trajectories.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from safe_dit_engine.demo.network import NextDiT
from safe_dit_engine.demo.sampling import caption_ids, sigma_schedule
from safe_dit_engine.demo.weights import SAMPLING, WEIGHTS_FOLDER, DemoNetworks, load_networks

from .autoencoder import save_weights
from .scenes import random_scene

log = logging.getLogger("safe_dit.demo")

TEACHER_STEPS = 24
STUDENTS = (8, 4)
RANK = 12
LEARNING_RATE = 2e-3
# Pictures of a batch and odds of each size.
SIZES = {128: (64, 0.15), 256: (24, 0.6), 512: (6, 0.25)}
POOL = 24  # batches of trajectories kept, the oldest replaced
DRAWS = 6  # steps of each student a batch of trajectories
KEEP_EVERY_S = 300.0


class LoRA(nn.Module):
    """A frozen linear layer plus a trained product of two thin matrices."""

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        super().__init__()
        self.layer = layer
        self.down = nn.Parameter(torch.randn(rank, layer.in_features) / layer.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output with the product's added."""
        return cast(Tensor, self.layer(x) + x @ self.down.T @ self.up.T)


def add_lora(dit: NextDiT, rank: int) -> dict[str, LoRA]:
    """Put a `LoRA` around every linear layer of the blocks; returns them by the layer's name."""
    found = {name: layer for name, layer in dit.named_modules() if isinstance(layer, nn.Linear) and _in_block(name)}
    added = {}
    for name, layer in found.items():
        parent, _, last = name.rpartition(".")
        added[name] = LoRA(layer, rank)
        setattr(dit.get_submodule(parent), last, added[name])
    return added


def _in_block(name: str) -> bool:
    return name.split(".")[0] in ("layers", "noise_refiner", "final_layer")


def lora_state(added: dict[str, LoRA]) -> dict[str, Tensor]:
    """Keys and tensors as loaders of LoRAs expect them."""
    keys = {f"diffusion_model.{name}": lora for name, lora in added.items()}
    return {f"{key}.lora_{part}.weight": getattr(lora, part) for key, lora in keys.items() for part in ("up", "down")}


@dataclass
class Trajectories:
    """The teacher's latents (levels, b, 16, g, g) at the levels of the student with most steps, and the captions' ids."""

    latents: Tensor
    ids: Tensor

    @property
    def size(self) -> int:
        """Edge of the pictures in pixels."""
        return self.latents.shape[-1] * 8


class Teacher:
    """Samples trajectories of random captions."""

    def __init__(self, networks: DemoNetworks, seed: int) -> None:
        self.networks, self.rng = networks, np.random.default_rng([seed, 2])
        self.sigmas = sigma_schedule(TEACHER_STEPS, SAMPLING["shift"]).tolist()

    @torch.no_grad()
    def sample(self) -> Trajectories:
        """A batch at a size drawn by its odds."""
        size = int(self.rng.choice(list(SIZES), p=[odds for _, odds in SIZES.values()]))
        count, grid, dit = SIZES[size][0], size // 8, self.networks.dit
        captions = [random_scene(self.rng).caption for _ in range(count)]
        ids = caption_ids(captions)
        x = torch.from_numpy(self.rng.standard_normal((count, dit.config.in_channels, grid, grid), np.float32))
        kept = [x]
        with torch.autocast("cpu", torch.bfloat16):
            context = self.networks.text(torch.cat([ids, caption_ids([""] * count)]))
            cos, sin = dit.rope(context.shape[1], grid, grid)
            for step, (now, after) in enumerate(zip(self.sigmas[:-1], self.sigmas[1:])):
                asked, plain = dit(torch.cat([x, x]), torch.full((2 * count,), now), context, cos, sin).float().chunk(2)
                x = x + (after - now) * (plain + SAMPLING["cfg"] * (asked - plain))
                if (step + 1) % (TEACHER_STEPS // max(STUDENTS)) == 0:
                    kept.append(x)
        return Trajectories(torch.stack(kept), ids)


class Student:
    """A LoRA for `steps` steps at CFG 1, in training for `seconds`."""

    def __init__(self, steps: int, folder: Path, seconds: float) -> None:
        self.steps, self.networks, self._folder = steps, load_networks(WEIGHTS_FOLDER), folder
        for module in (self.networks.dit, self.networks.text):
            module.requires_grad_(False)
        self.lora = add_lora(self.networks.dit, RANK)
        parameters = [p for lora in self.lora.values() for p in (lora.up, lora.down)]
        self.average = [p.detach().clone() for p in parameters]
        self.parameters, self.seconds, self.trained, self.loss = parameters, seconds, 0, 0.0
        self.optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0)
        self.sigmas = torch.tensor(sigma_schedule(steps, SAMPLING["shift"]).tolist())

    def learn(self, given: Trajectories, share: float) -> None:
        """One step on a level drawn for every picture; `share` of the time is over."""
        count, stride = len(given.ids), max(STUDENTS) // self.steps
        level = torch.randint(0, self.steps, (count,))
        rows = torch.arange(count)
        x, after = given.latents[level * stride, rows], given.latents[(level + 1) * stride, rows]
        fall = (self.sigmas[level + 1] - self.sigmas[level])[:, None, None, None]
        with torch.autocast("cpu", torch.bfloat16):
            context = self.networks.text(given.ids)
            cos, sin = self.networks.dit.rope(context.shape[1], *given.latents.shape[-2:])
            velocity = self.networks.dit(x, self.sigmas[level], context, cos, sin).float()
        loss = (velocity - (after - x) / fall).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (self.trained + 1) / 50) * (1.0 if share < 0.5 else 1.0 - 0.98 * (share - 0.5) / 0.5)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.trained += 1
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.parameters, 1 - min(0.99, 1 - 1 / (0.1 * self.trained + 1)))
        self.loss = 0.98 * (self.loss or loss.item()) + 0.02 * loss.item()

    def save(self, minutes: float) -> None:
        """Write the averaged LoRA."""
        averaged = dict(zip(map(id, self.parameters), self.average, strict=True))
        state = {key: averaged[id(value)] for key, value in lora_state(self.lora).items()}
        teacher = {"teacher_steps": TEACHER_STEPS, "teacher_cfg": SAMPLING["cfg"]}
        training = {"busy_minutes": round(minutes, 1), "steps": self.trained, **teacher}
        fields = {"sampling": {**SAMPLING, "steps": self.steps, "cfg": 1.0}, "training": training}
        save_weights(f"lora_{self.steps}_steps", state, fields, torch.bfloat16, self._folder)


def distil(minutes: float, folder: Path, seed: int) -> None:
    """Train both students for `minutes`, the trajectories' time included."""
    torch.manual_seed(seed)
    began = time.monotonic()
    teacher, students = Teacher(load_networks(WEIGHTS_FOLDER), seed), [Student(steps, folder, 60 * minutes) for steps in STUDENTS]
    rng, pool, kept_at = np.random.default_rng(seed), list[Trajectories](), 0.0
    while (used := time.monotonic() - began) < 60 * minutes:
        pool = [*pool[1 - POOL :], teacher.sample()]
        for _ in range(DRAWS):
            for student in students:
                student.learn(pool[int(rng.integers(len(pool)))], used / (60 * minutes))
        if used - kept_at > KEEP_EVERY_S:
            kept_at = used
            for student in students:
                student.save(used / 60)
            log.info("%.0f min, %s", used / 60, ", ".join(f"{s.steps} steps: {s.trained} batches, loss {s.loss:.4f}" for s in students))
    for student in students:
        student.save(minutes)


def main(argv: Sequence[str]) -> int:
    """Entry of `python -m benchmarks distil`."""
    parser = argparse.ArgumentParser(prog="distil", description="Distil the demo model to 8 and to 4 steps at CFG 1, as LoRAs.")
    parser.add_argument("--minutes", type=float, default=75.0, help="time for trajectories and training (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=WEIGHTS_FOLDER, help="where the LoRAs go (default: beside the weights)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves the default")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.threads:
        torch.set_num_threads(args.threads)
    distil(args.minutes, args.folder, args.seed)
    return 0
