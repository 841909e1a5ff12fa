"""Does the sensitivity map follow the prompt? `python -m benchmarks sensitivity --out DIR`.

On held-out captions, the demo model is sampled through its warm-up steps and the map is compared with where the caption puts its shapes:
the area under the ROC curve (AUC) is the chance that a token of a shape scores higher than a background token (0.5: no information).
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from safe_dit_engine.cli.results import environment, markdown_table, save
from safe_dit_engine.tokens.partition import PartitionConfig, Signal

from ..demo_model.scenes import Scene, held_out_scenes, shape_distance
from .in_process import import_comfyui

log = logging.getLogger("safe_dit")

STEPS, CFG = 20, 4.0
COLUMNS = ("signal", "warmup_steps", "resolution", "prompts", "auc_mean", "auc_min", "map_deviation")


def main(argv: Sequence[str]) -> int:
    """Measure, print the table, write JSON and Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks sensitivity", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("output/sensitivity"))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--warmup", type=int, nargs="+", default=[1, 3])
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    import_comfyui(arguments.device)
    rows = [row for warmup in arguments.warmup for row in measure(held_out_scenes(arguments.prompts), arguments.size, warmup)]
    table = markdown_table(rows, COLUMNS)
    save(arguments.out, "sensitivity", {"environment": environment(arguments.device), "rows": rows}, table)
    log.info(table)
    return 0


def measure(scenes: list[Scene], size: int, warmup: int) -> list[dict[str, Any]]:
    """One row per signal."""
    from safe_dit_engine.hosts.comfy.demo import load_demo

    model, clip, _ = load_demo()
    truths = [shape_tokens(scene, size // 16) for scene in scenes]
    rows = []
    for signal in Signal:
        config = PartitionConfig(signal=signal, warmup_steps=warmup)
        maps = [sensitivity_map(model, clip, scene.caption, size, config, seed) for seed, scene in enumerate(scenes)]
        scores = [auc(found, truth) for found, truth in zip(maps, truths, strict=True)]
        row = {"signal": signal.value, "warmup_steps": warmup, "resolution": f"{size}x{size}", "prompts": len(scenes)}
        spread = float(np.mean([found.std() for found in maps]))
        rows.append({**row, "auc_mean": float(np.mean(scores)), "auc_min": min(scores), "map_deviation": spread})
    return rows


def sensitivity_map(model: Any, clip: Any, caption: str, size: int, config: PartitionConfig, seed: int) -> np.ndarray:
    """Map `[h, w]` after the warm-up steps of a run."""
    from comfy.sample import prepare_noise, sample_custom
    from comfy.samplers import calculate_sigmas, sampler_object
    from comfy_execution.utils import CurrentNodeContext

    from safe_dit_engine.hosts.comfy.live import report_upstream
    from safe_dit_engine.hosts.comfy.wrappers import configure

    prompts = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (caption, "")]
    latent = torch.zeros(1, 16, size // 8, size // 8)
    sigmas = calculate_sigmas(model.get_model_object("model_sampling"), "simple", STEPS)[: config.warmup_steps + 1]
    patched = configure(model, partition=config)
    with torch.inference_mode(), CurrentNodeContext("bench", "sampler"):
        sample_custom(patched, prepare_noise(latent, seed), CFG, sampler_object("euler"), sigmas, *prompts, latent, disable_pbar=True)
    report = report_upstream({"after": {"inputs": {"latent": ["sampler", 0]}}}, "after")
    assert report is not None and report.sensitivity is not None
    return report.sensitivity[0].cpu().numpy()


def shape_tokens(scene: Scene, grid: int) -> np.ndarray:
    """Bool `[grid, grid]`: tokens whose centre lies inside a shape of the scene."""
    centres = (np.arange(grid) + 0.5) / grid
    x, y = np.meshgrid(centres, centres)
    inside = [shape_distance(t.shape, (x - t.x) / t.radius, (y - t.y) / t.radius) < 0 for t in scene.things]
    return np.any(inside, axis=0)


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve by ranks; ties count half."""
    _, inverse, counts = np.unique(scores.ravel(), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    inside = positive.ravel()
    hits, misses = inside.sum(), (~inside).sum()
    return float((ranks[inside].sum() - hits * (hits + 1) / 2) / (hits * misses))
