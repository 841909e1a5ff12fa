"""What keeping keys and values takes, and what 8 bits change: `python -m benchmarks memory --out DIR`.

Selective steps by the paper's rule on the demo model in real ComfyUI, keys and values kept exactly and in 8 bits, beside dense;
those of context rows alone, as where memory is scarce.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from safe_dit_engine.cli.results import environment, markdown_table, psnr_db, save
from safe_dit_engine.presets import PRESETS
from safe_dit_engine.selective import memory as planning
from safe_dit_engine.steps.plan import CacheMode

from ..demo_model.scenes import held_out_scenes
from ..measure.journal import Cell, Shot
from .in_process import import_comfyui
from .peers import DENSE, Method, configured
from .side_by_side import Bench

log = logging.getLogger("safe_dit.bench")

NAME = "memory"
COLUMNS = ("cache", "resolution", "steps", "prompts", "predicted_bytes", "cache_bytes", "psnr_db", "psnr_db_to_exact")
MODES = (CacheMode.EXACT, CacheMode.EIGHT_BIT)


def main(argv: Sequence[str]) -> int:
    """Measure, print the table, write JSON and Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks memory", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("output") / NAME)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--small", action="store_true", help="256 px, two prompts")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    import_comfyui(arguments.device)
    rows = measure(arguments)
    save(arguments.out, NAME, {"environment": environment(arguments.device), "rows": rows}, markdown_table(rows, COLUMNS))
    log.info(markdown_table(rows, COLUMNS))
    return 0


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a way of keeping keys and values."""
    cell = Cell(256 if arguments.small else 512, 20, "euler")
    shots = [Shot(scene, arguments.seed + i) for i, scene in enumerate(held_out_scenes(2 if arguments.small else 8))]
    bench, paper = Bench(arguments.device), PRESETS["paper"]
    planning.PLENTY = 0.0
    found: dict[CacheMode, list[dict[str, Any]]] = {mode: [] for mode in MODES}
    for shot in shots:
        dense = bench.sample(DENSE, cell, shot).picture
        pictures: dict[CacheMode, np.ndarray] = {}
        for mode in MODES:
            patch = configured(partition=paper.partition(), schedule=replace(paper.schedule(), cache=mode))
            sizes, pictures[mode] = sampled(bench, Method(NAME, mode.value, patch), cell, shot)
            exact = pictures[CacheMode.EXACT]
            to_exact = None if mode is CacheMode.EXACT else psnr_db(pictures[mode], exact)
            found[mode].append({**sizes, "psnr_db": psnr_db(pictures[mode], dense), "psnr_db_to_exact": to_exact})
        log.info("picture %s of %s", len(found[CacheMode.EXACT]), len(shots))
    names = {"resolution": f"{cell.size}x{cell.size}", "steps": cell.steps, "prompts": len(shots)}
    return [{"cache": mode.value, **names, **_mean(rows)} for mode, rows in found.items()]


def sampled(bench: Bench, method: Method, cell: Cell, shot: Shot) -> tuple[dict[str, Any], np.ndarray]:
    """Bytes predicted and held at most, and the picture."""
    from comfy_execution.utils import CurrentNodeContext

    from safe_dit_engine.hosts.comfy.live import report_upstream

    with CurrentNodeContext(NAME, "sampler"):
        picture = bench.sample(method, cell, shot).picture
    report = report_upstream({"after": {"inputs": {"latent": ["sampler", 0]}}}, "after")
    assert report is not None
    return {"predicted_bytes": report.cache_predicted, "cache_bytes": report.cache_bytes}, picture


def _mean(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    keys = rows[0].keys()
    return {key: None if rows[0][key] is None else float(np.mean([row[key] for row in rows])) for key in keys}
