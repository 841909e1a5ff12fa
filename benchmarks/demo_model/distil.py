"""Distil the demo model to 8 and to 4 steps without guidance, as LoRAs that any loader of LoRAs takes.

The teacher samples with `TEACHER_STEPS` Euler steps and CFG. A student of N steps learns, from the teacher's own latents at its N noise
levels, the one velocity that leads from each to the next: guidance and several steps in one call (progressive distillation, Salimans and
Ho, arXiv 2202.00512, over guided trajectories, Meng et al., arXiv 2210.03142). Both students share the trajectories and the network.
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

from safe_dit_engine.cli.options import Parser, at_least
from safe_dit_engine.demo.network import NextDiT, TextEncoder
from safe_dit_engine.demo.sampling import caption_ids, sigma_schedule
from safe_dit_engine.demo.weights import LORAS_FOLDER, SAMPLING, WEIGHTS_FOLDER, load_networks, lora_file, read_file

from .autoencoder import learning_rate_factor, log, set_rates, write_weights
from .scenes import random_scene

TEACHER_STEPS = 16
STUDENTS = (8, 4)
RANK = 12
LEARNING_RATE = 2e-3
# Pictures of a batch of trajectories and of a batch to learn from; odds of each size.
TEACHER_BATCH = {256: 16, 512: 4}
BATCH = {256: 24, 512: 8}
ODDS = {256: 0.6, 512: 0.4}
POOL = 40  # batches of trajectories kept of each size, the oldest replaced
DRAWS = 14  # batches of each student for a batch of trajectories
REPORT_EVERY_S = 120.0


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
    """Put a `LoRA` around every linear layer of the blocks and the head; returns them by the layer's name."""
    found = {name: layer for name, layer in dit.named_modules() if isinstance(layer, nn.Linear) and _adapted(name)}
    added = {}
    for name, layer in found.items():
        parent, _, last = name.rpartition(".")
        added[name] = LoRA(layer, rank)
        setattr(dit.get_submodule(parent), last, added[name])
    return added


def _adapted(name: str) -> bool:
    return name.split(".")[0] in ("layers", "noise_refiner", "final_layer")


def parameters_of(added: dict[str, LoRA]) -> dict[str, nn.Parameter]:
    """The trained tensors, by the keys that loaders of LoRAs expect."""
    return {f"diffusion_model.{name}.lora_{part}.weight": getattr(lora, part) for name, lora in added.items() for part in ("up", "down")}


@dataclass
class Trajectories:
    """The teacher's latents (levels, b, 16, g, g) at the levels of the student with most steps, and the captions' ids (b, rows)."""

    latents: Tensor
    ids: Tensor


class Teacher:
    """Samples trajectories of random captions."""

    def __init__(self, seed: int) -> None:
        self.networks, self.rng = load_networks(WEIGHTS_FOLDER), np.random.default_rng([seed, 2])
        self.sigmas = sigma_schedule(TEACHER_STEPS, SAMPLING["shift"]).tolist()

    @torch.no_grad()
    def sample(self, size: int) -> Trajectories:
        """A batch of `size` x `size` px."""
        count, grid, dit = TEACHER_BATCH[size], size // 8, self.networks.dit
        ids = caption_ids([random_scene(self.rng).caption for _ in range(count)])
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


class Pool:
    """Trajectories of both sizes."""

    def __init__(self, seed: int) -> None:
        self.teacher, self.rng = Teacher(seed), np.random.default_rng(seed)
        self.kept: dict[int, list[Trajectories]] = {size: [self.teacher.sample(size)] for size in ODDS}

    def size(self) -> int:
        """One of the sizes, by its odds."""
        return int(self.rng.choice(list(ODDS), p=list(ODDS.values())))

    def renew(self) -> None:
        """Add a batch, and drop the oldest of its size when there are enough."""
        size = self.size()
        self.kept[size] = [*self.kept[size][1 - POOL :], self.teacher.sample(size)]

    def draw(self, steps: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """For a student of so many steps: latents, those one of its steps later (b, 16, g, g), which step (b,), and ids (b, rows)."""
        size, stride = self.size(), max(STUDENTS) // steps
        kept, count = self.kept[size], TEACHER_BATCH[size]
        picked = [(kept[int(self.rng.integers(len(kept)))], int(self.rng.integers(count))) for _ in range(BATCH[size])]
        level = torch.from_numpy(self.rng.integers(0, steps, BATCH[size]))
        both = [(found.latents[at * stride, row], found.latents[(at + 1) * stride, row]) for (found, row), at in zip(picked, level)]
        x, after = (torch.stack(parts) for parts in zip(*both, strict=True))
        return x, after, level, torch.stack([found.ids[row] for found, row in picked])


class Objective(nn.Module):
    """Error of the velocity that leads from one level to the next; the unit that is compiled."""

    def __init__(self, dit: NextDiT, text: TextEncoder) -> None:
        super().__init__()
        self.dit, self.text = dit, text

    def forward(self, x: Tensor, target: Tensor, sigma: Tensor, ids: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        velocity = self.dit(x, sigma, self.text(ids), cos, sin)
        return (velocity.float() - target).square().mean()


class Network:
    """The frozen network with one LoRA, whose values are those of the student that learns."""

    def __init__(self, compiled: bool) -> None:
        networks = load_networks(WEIGHTS_FOLDER)
        for module in (networks.dit, networks.text):
            module.requires_grad_(False)
        self.dit = networks.dit
        self.parameters = parameters_of(add_lora(networks.dit, RANK))
        objective = Objective(networks.dit, networks.text)
        self._objective = torch.compile(objective, dynamic=False) if compiled else objective

    def gradients(self, values: Sequence[Tensor], x: Tensor, target: Tensor, sigma: Tensor, ids: Tensor) -> float:
        """Put the loss's gradients on `values`; returns the loss."""
        for parameter, value in zip(self.parameters.values(), values, strict=True):
            parameter.data, parameter.grad = value.data, None
        cos, sin = self.dit.rope(ids.shape[1], *x.shape[-2:])
        with torch.autocast("cpu", torch.bfloat16):
            loss = self._objective(x, target, sigma, ids, cos, sin)
        loss.backward()
        for parameter, value in zip(self.parameters.values(), values, strict=True):
            value.grad = parameter.grad
        return float(loss.item())


class Student:
    """Values of a LoRA for `steps` steps at CFG 1, and their average."""

    def __init__(self, steps: int, network: Network) -> None:
        self.steps, self.network, self.trained, self.loss = steps, network, 0, 0.0
        self.values = [parameter.detach().clone().requires_grad_() for parameter in network.parameters.values()]
        self.average = [value.detach().clone() for value in self.values]
        self.optimizer = torch.optim.AdamW(self.values, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0)
        self.sigmas = torch.tensor(sigma_schedule(steps, SAMPLING["shift"]).tolist())

    def resume(self, folder: Path) -> None:
        """Go on from the LoRA in `folder`."""
        state, _ = read_file(folder / lora_file(self.steps))
        for key, value, average in zip(self.network.parameters, self.values, self.average, strict=True):
            value.data, average.data = state[key].float(), state[key].float()

    def learn(self, pool: Pool, rate: float) -> None:
        """One batch at `rate` times the learning rate."""
        x, after, level, ids = pool.draw(self.steps)
        fall = (self.sigmas[level + 1] - self.sigmas[level])[:, None, None, None]
        found = self.network.gradients(self.values, x, (after - x) / fall, self.sigmas[level], ids)
        nn.utils.clip_grad_norm_(self.values, 1.0)
        set_rates([self.optimizer], rate)
        self.optimizer.step()
        self.trained += 1
        with torch.no_grad():
            torch._foreach_lerp_(self.average, [value.detach() for value in self.values], 1 - min(0.99, 1 - 1 / (0.1 * self.trained + 1)))
        self.loss = 0.98 * (self.loss or found) + 0.02 * found

    def save(self, folder: Path, minutes: float) -> None:
        """Write the averaged LoRA."""
        state = dict(zip(self.network.parameters, self.average, strict=True))
        teacher = {"teacher_steps": TEACHER_STEPS, "teacher_cfg": SAMPLING["cfg"]}
        training = {"busy_minutes": round(minutes, 1), "steps": self.trained, **teacher}
        fields = {"sampling": {**SAMPLING, "steps": self.steps, "cfg": 1.0}, "training": training}
        write_weights(folder / lora_file(self.steps), state, fields, torch.bfloat16)


def distil(minutes: float, folder: Path, seed: int, compiled: bool, resume: bool) -> None:
    """Train both students for so many minutes of a busy core, the trajectories' time included; `resume`: from the LoRAs in `folder`."""
    torch.manual_seed(seed)
    network, pool, reported = Network(compiled), Pool(seed), 0.0
    students, began = [Student(steps, network) for steps in STUDENTS], time.process_time()
    for student in students if resume else ():
        student.resume(folder)
    while (used := time.process_time() - began) < 60 * minutes:
        pool.renew()
        for _ in range(DRAWS):
            for student in students:
                student.learn(pool, learning_rate_factor(used / (60 * minutes), used))
        if used - reported > REPORT_EVERY_S:
            reported = used
            _save(students, folder, used / 60, minutes)
    _save(students, folder, minutes, minutes)


def _save(students: Sequence[Student], folder: Path, minutes: float, budget: float) -> None:
    for student in students:
        student.save(folder, minutes)
    done = ", ".join(f"{student.steps} steps: {student.trained} batches, loss {student.loss:.4f}" for student in students)
    log.info("%.0f of %.0f min, %s", minutes, budget, done)


def main(argv: Sequence[str]) -> int:
    """Entry of `python -m benchmarks distil`."""
    parser = Parser("python -m benchmarks distil", "Distil the demo model to 8 and to 4 steps, as LoRAs.")
    parser.add_argument("--minutes", type=at_least(0, float), default=100.0, help="minutes of one busy core")
    parser.add_argument("--folder", type=Path, default=LORAS_FOLDER, help="where the LoRAs go")
    parser.add_argument("--threads", type=at_least(1), default=1, help="CPU threads")
    parser.add_argument("--seed", type=int, default=1, help="seed of captions, noise and batches")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="compile the training step")
    parser.add_argument("--resume", action="store_true", help="go on from the LoRAs in the folder")
    args = parser.parse_args(argv)
    log.setLevel(logging.INFO)
    torch.set_num_threads(args.threads)
    distil(args.minutes, args.folder, args.seed, args.compile, args.resume)
    return 0
