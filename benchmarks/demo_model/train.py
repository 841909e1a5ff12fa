"""Train the demo model from nothing: first the autoencoder's decoder, then the transformer together with its text encoder.

One resumable command. Budgets are minutes of busy time: a pause of the process does not count, and the learning rate follows
the share of the budget that is used, so the same command fits a laptop and a GPU.
"""

from __future__ import annotations

import argparse
import copy
import logging
import textwrap
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from safe_dit_engine.cli.options import Parser, at_least, device, picture_edge
from safe_dit_engine.cli.time_left import TimeLeft, in_words
from safe_dit_engine.demo.autoencoder import Autoencoder
from safe_dit_engine.demo.network import NATIVE_GRID, NextDiT, TextConfig, TextEncoder
from safe_dit_engine.demo.sampling import caption_ids, sample_pictures
from safe_dit_engine.demo.weights import SAMPLING, WEIGHTS_FOLDER, DemoNetworks, load_networks
from safe_dit_engine.demo.words import ALIASES, TEXT_LENGTH, VOCABULARY, token_ids

from .autoencoder import (
    REPORT_EVERY_S,
    SAVE_EVERY_S,
    BusyClock,
    fit_autoencoder_code,
    learning_rate_factor,
    log,
    save_checkpoint,
    save_weights,
    set_rates,
    to_tensor,
    train_autoencoder,
)
from .oracle import Rates, judge_pictures
from .scenes import Scene, held_out_scenes, random_scene

LOOK_EVERY_S = 420.0
EMPTY_CAPTIONS = 0.1
BOX_WEIGHT = 2.0  # extra loss weight on things: they are a small part of the picture and all of the task


class SizePlan(NamedTuple):
    """How one picture size is trained: batch size, and the pool's capacity and fresh pictures a step."""

    batch: int
    capacity: int
    fresh: int


CPU_SIZES = {128: SizePlan(64, 2048, 16), 256: SizePlan(32, 1024, 8), 512: SizePlan(12, 512, 3)}
GPU_SIZES = {128: SizePlan(512, 16384, 64), 256: SizePlan(256, 8192, 32), 512: SizePlan(96, 2048, 12)}
# From which share of the budget on, which sizes are drawn with which odds.
CURRICULUM: tuple[tuple[float, dict[int, float]], ...] = ((0.0, {128: 1.0}), (0.28, {256: 1.0}), (0.50, {256: 0.35, 512: 0.65}))


def box_weights(scene: Scene, grid: int) -> Tensor:
    """Loss weight per latent cell, (1, grid, grid): 1 outside the things' boxes, more inside, 1 on average."""
    weights = torch.ones(1, grid, grid)
    for x0, y0, x1, y1 in (scene.boxes() * grid).tolist():
        rows, columns = slice(max(0, int(y0) - 1), int(y1) + 2), slice(max(0, int(x0) - 1), int(x1) + 2)
        weights[:, rows, columns] = 1.0 + BOX_WEIGHT
    return weights / weights.mean()


class LatentPool:
    """Ring buffer of encoded scenes of one size, each used a few times. Every draw replaces its oldest `fresh` items first."""

    def __init__(self, size: int, plan: SizePlan, coder: Autoencoder, seed: int) -> None:
        self.size, self.plan, self.coder = size, plan, coder
        self.rng = np.random.default_rng([seed, size])
        self.items: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=plan.capacity)

    def _fresh(self) -> tuple[Tensor, Tensor, Tensor]:
        scene = random_scene(self.rng)
        with torch.no_grad():
            latent = self.coder.encode(to_tensor(scene.render(self.size))[None])[0]
        return latent, torch.tensor(token_ids(scene.caption)), box_weights(scene, self.size // 8)

    def draw(self) -> list[Tensor]:
        """Latents (b, 16, g, g), token ids (b, rows) and loss weights (b, 1, g, g); the first call fills the buffer."""
        missing = self.plan.capacity - len(self.items)
        self.items.extend(self._fresh() for _ in range(missing or self.plan.fresh))
        picked = [self.items[index] for index in self.rng.integers(0, len(self.items), self.plan.batch)]
        return [torch.stack(parts) for parts in zip(*picked, strict=True)]


class Objective(nn.Module):
    """Flow-matching loss of transformer and text encoder together; the unit that is compiled."""

    def __init__(self, dit: NextDiT, text: TextEncoder) -> None:
        super().__init__()
        self.dit, self.text = dit, text

    def forward(self, latents: Tensor, noise: Tensor, sigma: Tensor, ids: Tensor, weights: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        level = sigma[:, None, None, None]
        velocity = self.dit((1 - level) * latents + level * noise, sigma, self.text(ids), cos, sin)
        return (weights * (velocity.float() - (noise - latents)).square()).mean()


def draw_sigma(count: int, shift: float = 2.0) -> Tensor:
    """Noise levels: 70 % logit-normal, 30 % uniform, pushed towards noise by the sampling shift."""
    u = torch.where(torch.rand(count) < 0.7, torch.randn(count).sigmoid(), torch.rand(count))
    return shift * u / (1 + (shift - 1) * u)


def make_optimizers(networks: DemoNetworks) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for everything else."""
    named = [*networks.dit.named_parameters(), *networks.text.named_parameters(prefix="text")]
    inner = [p for n, p in named if p.ndim == 2 and (".attention." in n or ".feed_forward." in n)]
    chosen = {id(p) for p in inner}
    rest = [p for _, p in named if id(p) not in chosen]
    muon = torch.optim.Muon(inner, lr=2e-3, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(rest, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)]


class Average:
    """Exponential moving average of the networks, short-sighted at first."""

    def __init__(self, networks: DemoNetworks, decay: float = 0.998) -> None:
        self.decay, self.steps = decay, 0
        self.networks = DemoNetworks(copy.deepcopy(networks.dit), copy.deepcopy(networks.text), networks.vae)
        self.mine: list[Tensor] = [*self.networks.dit.parameters(), *self.networks.text.parameters()]
        self.theirs: list[Tensor] = [*networks.dit.parameters(), *networks.text.parameters()]

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the networks as they are now."""
        self.steps += 1
        torch._foreach_lerp_(self.mine, self.theirs, 1 - min(self.decay, 1 - 1 / (0.1 * self.steps + 1)))


@dataclass
class Progress:
    """What a run has done so far; `loss`: smoothed, for each picture size on its own."""

    step: int = 0
    samples: int = 0
    loss: dict[int, float] = field(default_factory=dict)


class TransformerTraining:
    """State of the transformer phase and its loop."""

    def __init__(self, networks: DemoNetworks, minutes: float, folder: Path, device: torch.device, seed: int, compiled: bool) -> None:
        self.networks, self.folder, self.device, self.seed = networks, folder, device, seed
        self.average = Average(networks)
        self.modules = (networks.dit, networks.text, self.average.networks.dit, self.average.networks.text)
        self.optimizers = make_optimizers(networks)
        self.clock, self.progress = BusyClock(minutes), Progress()
        self.sizes = GPU_SIZES if device.type == "cuda" else CPU_SIZES
        self.coder = copy.deepcopy(networks.vae).cpu()
        self._resume()
        self.rng = np.random.default_rng([seed, self.progress.step])
        torch.manual_seed(seed + self.progress.step)
        objective = Objective(networks.dit, networks.text)
        self.objective = torch.compile(objective, dynamic=False) if compiled else objective
        self.pools: dict[int, LatentPool] = {}
        self.ropes: dict[int, tuple[Tensor, Tensor]] = {}

    def _resume(self) -> None:
        if not (self.folder / "dit.pt").is_file():
            return
        saved = torch.load(self.folder / "dit.pt", map_location=self.device)
        parts: list[Any] = [*self.modules, *self.optimizers]
        for part, state in zip(parts, (*saved["modules"], *saved["optimizers"]), strict=True):
            part.load_state_dict(state)
        self.average.steps, self.clock.used_s, self.progress = saved["average_steps"], saved["used_s"], Progress(**saved["progress"])
        log.info("resumed at step %d, %.1f busy min", self.progress.step, self.clock.used_s / 60)

    def save(self) -> None:
        """Checkpoint for resuming, and the averaged weights where the product finds them."""
        state: dict[str, Any] = {"modules": [m.state_dict() for m in self.modules], "optimizers": [o.state_dict() for o in self.optimizers]}
        state |= {"average_steps": self.average.steps, "used_s": self.clock.used_s, "progress": vars(self.progress)}
        save_checkpoint(self.folder / "dit.pt", state)
        training = {"busy_minutes": round(self.clock.used_s / 60, 1), "steps": self.progress.step, "samples": self.progress.samples}
        networks = self.average.networks
        dit = {"unet_config": networks.dit.config.unet_config(), "sampling": SAMPLING, "native_grid": NATIVE_GRID, "training": training}
        text = {"text_config": TextConfig().model_config(), "vocabulary": VOCABULARY, "aliases": ALIASES, "text_length": TEXT_LENGTH}
        save_weights("dit", networks.dit.state_dict(), dit, torch.bfloat16)
        save_weights("text", networks.text.state_dict(), text, torch.float16)

    def step(self) -> None:
        """One optimiser step at one picture size."""
        odds = [table for start, table in CURRICULUM if start <= self.clock.share][-1]
        size = int(self.rng.choice(list(odds), p=list(odds.values())))
        if size not in self.pools:
            self.pools[size] = LatentPool(size, self.sizes[size], self.coder, self.seed + self.progress.step)
        latents, captions, weights = self.pools[size].draw()
        if size not in self.ropes:
            self.ropes[size] = self.networks.dit.rope(captions.shape[1], size // 8, size // 8, self.device)
        set_rates(self.optimizers, learning_rate_factor(self.clock.share, self.clock.used_s))
        noise, sigma = torch.randn_like(latents), draw_sigma(len(captions))
        # Some captions are replaced by the empty one, for classifier-free guidance.
        ids = torch.where(torch.rand(len(captions), 1) < EMPTY_CAPTIONS, caption_ids([""]), captions)
        parts = (latents, noise, sigma, ids, weights)
        with torch.autocast(self.device.type, torch.bfloat16):
            loss = self.objective(*(p.to(self.device) for p in parts), *self.ropes[size])
        loss.backward()
        nn.utils.clip_grad_norm_([p for o in self.optimizers for g in o.param_groups for p in g["params"]], 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.average.update()
        done, found = self.progress, loss.item()
        done.step, done.samples = done.step + 1, done.samples + len(captions)
        done.loss[size] = 0.98 * done.loss.get(size, found) + 0.02 * found

    def run(self) -> None:
        """Train until the budget is used."""
        self.clock.work(self.step, {self._report: REPORT_EVERY_S, self.save: SAVE_EVERY_S, self._look: LOOK_EVERY_S})
        self.save()

    def _report(self) -> None:
        done = self.progress
        losses = ", ".join(f"{size} px {loss:.4f}" for size, loss in sorted(done.loss.items()))
        minutes, share = self.clock.used_s / 60, 100 * self.clock.share
        ahead = in_words(self.clock.budget_s - self.clock.used_s)
        log.info("dit step %d, %.1f busy min (%.0f %%, %s left), %d samples, %s", done.step, minutes, share, ahead, done.samples, losses)

    def _look(self) -> None:
        size = max(self.pools)
        rates = look(self.average.networks, 16 if size < 512 else 4, size, 16, self.folder / f"look_{self.progress.step:06d}.png")
        log.info("step %d at %d px: %s", self.progress.step, size, rates)


# Looking and judging


def look(networks: DemoNetworks, count: int, size: int, steps: int, path: Path, batch: int = 8) -> Rates:
    """Sample held-out captions, save the first pictures with their captions below, and say what the oracle reads."""
    scenes = held_out_scenes(count)
    starts = range(0, count, batch)
    parts, left = [], TimeLeft(f"pictures at {size} px", log.info)
    for number, start in enumerate(starts):
        captions = [scene.caption for scene in scenes[start : start + batch]]
        parts.append(sample_pictures(networks, captions, size, seed=number, steps=steps))
        left.tell(number + 1, len(starts) - number - 1)
    pictures = torch.cat(parts).permute(0, 2, 3, 1).numpy()
    side, columns, shown = 256, 4, min(count, 24)
    sheet = Image.new("RGB", (columns * side, -(-shown // columns) * (side + 40)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (picture, scene) in enumerate(zip(pictures[:shown], scenes)):
        x, y = i % columns * side, i // columns * (side + 40)
        sheet.paste(Image.fromarray((picture * 255).round().astype(np.uint8)).resize((side, side)), (x, y))
        draw.multiline_text((x + 2, y + side + 1), textwrap.fill(scene.caption, 42), fill="black", spacing=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return judge_pictures(pictures, scenes)


# The command


def main(argv: list[str] | None = None) -> int:
    """Entry of `python -m benchmarks train`."""
    args = _parser().parse_args(argv)
    _log_to(args.folder)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.evaluate:
        networks = load_networks(WEIGHTS_FOLDER)
        for size in args.sizes:
            rates = look(networks, args.evaluate, size, args.steps, args.folder / f"evaluation_{size}.png")
            log.info("evaluation at %d px: %s", size, rates)
        return 0
    device = torch.device(args.device)
    networks = _prepare(args.folder, device, args.seed)
    if args.phase in ("all", "vae"):
        train_autoencoder(networks, args.vae_minutes, args.folder, device, args.seed)
    if args.phase in ("all", "dit"):
        TransformerTraining(networks, args.minutes, args.folder, device, args.seed, args.compile).run()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser("python -m benchmarks train", "Train the demo model, or judge its weights.")
    parser.add_argument("--minutes", type=at_least(0, float), default=90.0, help="busy minutes for the transformer")
    parser.add_argument("--vae-minutes", type=at_least(0, float), default=12.0, help="busy minutes for the autoencoder")
    parser.add_argument("--phase", choices=("all", "vae", "dit"), default="all", help="what to train")
    parser.add_argument("--folder", type=Path, default=Path(".train"), help="checkpoints, log and sample grids")
    there = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=device, choices=["cpu", "cuda"], default=there, help="what to train on")
    parser.add_argument("--threads", type=at_least(0), default=0, help="CPU threads; 0 leaves as many as torch takes")
    parser.add_argument("--seed", type=int, default=1, help="of weights and scenes")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="use torch.compile, as is the default")
    parser.add_argument("--evaluate", type=at_least(0), default=0, metavar="N", help="only judge the weights, on N held-out captions")
    parser.add_argument("--sizes", type=picture_edge, nargs="+", default=[256, 512], help="picture sizes to judge")
    parser.add_argument("--steps", type=at_least(1), default=20, help="sampling steps for judging")
    return parser


def _log_to(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    handlers: list[logging.Handler] = [logging.StreamHandler(), logging.FileHandler(folder / "train.log")]
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


def _prepare(folder: Path, device: torch.device, seed: int) -> DemoNetworks:
    torch.manual_seed(seed)
    networks = DemoNetworks.create()
    if (folder / "vae.pt").is_file():
        networks.vae.load_state_dict(torch.load(folder / "vae.pt", map_location="cpu")["vae"])
    else:
        fit_autoencoder_code(networks, seed)
    for module in (networks.dit, networks.text, networks.vae):
        module.to(device)
    return networks
