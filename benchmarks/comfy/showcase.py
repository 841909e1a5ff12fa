"""The demo: both shipped workflows through a real ComfyUI server, dense and accelerated: `python -m benchmarks showcase`.

Four runs of each prompt, interleaved in one server after a warm-up: dense; SAFE-Core (quickstart, default preset); SAFE+SW (four nodes);
and the simple rival, dense with as many steps as fit into SAFE-Core's time. Pictures are compared with the dense one of the same seed.
"""

from __future__ import annotations

import argparse
import io
import logging
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from devtools.server import PACK_ROOT, ComfyServer, RunResult
from safe_dit_engine.cli.results import environment, markdown_table, psnr_db, save, ssim

from ..demo_model.oracle import oracle_score
from ..demo_model.scenes import Scene, held_out_scenes
from ..measure.closeness import objects_psnr
from .workflows import Prompt, bypassed, changed, feeding, find, load_prompt

log = logging.getLogger("safe_dit")

NAMES = ("dense", "safe_core", "safe_sw", "fewer_steps")
TITLES = {"dense": "dense", "safe_core": "SAFE-Core", "safe_sw": "SAFE+SW", "fewer_steps": "fewer steps"}
COLUMNS = ("name", "steps", "sampling_seconds", "speedup", "rows_computed_share", "psnr_db", "psnr_db_objects", "ssim", "oracle_score")
FIRST_SCENE = 1000  # apart from the scenes other benches look at
TILE = 256


@dataclass
class Method:
    """One of the four runs: its prompt, the nodes to read, and what was seen."""

    name: str
    prompt: Prompt
    sampler: str
    steps: int
    seconds: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    pictures: list[np.ndarray] = field(default_factory=list)


def main(argv: Sequence[str]) -> int:
    """Run, write pictures, sheet and report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks showcase", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("output/demo"))
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    scenes = held_out_scenes(arguments.prompts, FIRST_SCENE)
    # ComfyUI's default attention on the CPU is slower and would flatter us.
    with ComfyServer(extra_args=["--use-pytorch-cross-attention"]) as server:
        log.info("ComfyUI is up; %d prompts at %d x %d, %d steps.", len(scenes), arguments.size, arguments.size, arguments.steps)
        methods, maps = sample_all(server, scenes, arguments.size, arguments.steps)
        version = server.get_json("/system_stats")["system"]["comfyui_version"]
    runs = [summary(method, methods[0], scenes) for method in methods]
    result = {"environment": environment(comfyui=version), "resolution": [arguments.size] * 2, "prompts": len(scenes), "runs": runs}
    table = markdown_table(runs, COLUMNS)
    save(arguments.out, "report", result, table)
    save_pictures(arguments.out, methods, maps, scenes)
    log.info("%s\nPictures, sheet.png and report.json are in %s", table, arguments.out)
    return 0


def sample_all(server: ComfyServer, scenes: list[Scene], size: int, steps: int) -> tuple[list[Method], list[np.ndarray]]:
    """All runs of all prompts, and the token maps of SAFE-Core."""
    methods = make_methods(server, size, steps)
    warm_up(server, methods)
    maps = []
    for seed, scene in enumerate(scenes):
        for method in methods:
            result = run_once(server, method, scene.caption, seed)
            if method.name == "safe_core":
                maps.append(picture_of(server, result, find(method.prompt, "PreviewImage")))
        log.info("%d of %d: %s", seed + 1, len(scenes), scene.caption)
    return methods, maps


def make_methods(server: ComfyServer, size: int, steps: int) -> list[Method]:
    """The four runs, from the shipped workflow files."""
    info = server.get_json("/object_info")
    quick, four = (load_prompt(PACK_ROOT / "workflows" / f"{name}.json", info) for name in ("quickstart", "four-nodes"))
    sampler, scheduler = find(quick, "KSampler"), find(four, "BasicScheduler")
    size_of = {"width": size, "height": size, "batch_size": 1}
    quick = changed(quick, {find(quick, "EmptySD3LatentImage"): size_of, sampler: {"steps": steps}})
    four = changed(four, {find(four, "EmptySD3LatentImage"): size_of, scheduler: {"steps": steps}})
    dense = bypassed(quick, find(quick, "SafeDitAccelerate"))
    return [
        Method("dense", dense, sampler, steps),
        Method("safe_core", quick, sampler, steps),
        Method("safe_sw", four, find(four, "SamplerCustomAdvanced"), steps),
        Method("fewer_steps", dense, sampler, steps),
    ]


def warm_up(server: ComfyServer, methods: list[Method], rounds: int = 3) -> None:
    """Load everything, and find the number of dense steps that fits into SAFE-Core's time (rounded up, in the rival's favour)."""
    dense, core, _, fewer = methods
    caption = held_out_scenes(1, FIRST_SCENE - 1)[0].caption
    for seed in range(rounds):
        for method in methods[:3]:
            run_once(server, method, caption, seed)
    share = statistics.median(core.seconds[1:]) / statistics.median(dense.seconds[1:])
    fewer.steps = min(dense.steps, math.ceil(share * dense.steps))
    fewer.prompt = changed(dense.prompt, {dense.sampler: {"steps": fewer.steps}})
    for method in methods:
        method.seconds, method.shares, method.pictures = [], [], []


def run_once(server: ComfyServer, method: Method, caption: str, seed: int) -> RunResult:
    """One prompt through the server; notes seconds, share of rows and the picture."""
    result = server.run(with_caption(method, caption, seed))
    method.seconds.append(result.node_seconds[method.sampler])
    records = result.output(find(method.prompt, "SafeDitReport")).get("safe_dit", [])
    method.shares.append(float(records[0]["rows_computed_share"]) if records and records[0] else 1.0)
    method.pictures.append(picture_of(server, result, find(method.prompt, "SaveImage")))
    return result


def with_caption(method: Method, caption: str, seed: int) -> Prompt:
    """The method's prompt for a caption and a seed."""
    prompt, sampler = method.prompt, method.sampler
    if prompt[sampler]["class_type"] == "KSampler":
        positive = feeding(prompt, sampler, "positive")
        return changed(prompt, {positive: {"text": caption}, sampler: {"seed": seed}})
    guider, noise = feeding(prompt, sampler, "guider"), feeding(prompt, sampler, "noise")
    return changed(prompt, {feeding(prompt, guider, "positive"): {"text": caption}, noise: {"noise_seed": seed}})


def picture_of(server: ComfyServer, result: RunResult, node_id: str) -> np.ndarray:
    """Picture a node saved, `[H, W, 3]` in [0, 1]."""
    image = result.output(node_id)["images"][0]
    data = server.view(image["filename"], image["subfolder"], image["type"])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.float32) / 255.0


def summary(method: Method, dense: Method, scenes: list[Scene]) -> dict[str, Any]:
    """One row of the report: medians of time, means of the rest."""
    pairs = list(zip(method.pictures, dense.pictures, strict=True))
    reference = method is dense
    judged = [oracle_score(picture, scene) for picture, scene in zip(method.pictures, scenes, strict=True)]
    inside = [objects_psnr(picture, target, scene) for (picture, target), scene in zip(pairs, scenes, strict=True)]
    return {
        "name": method.name,
        "steps": method.steps,
        "sampling_seconds": statistics.median(method.seconds),
        "speedup": statistics.median(dense.seconds) / statistics.median(method.seconds),
        "rows_computed_share": statistics.mean(method.shares) * method.steps / dense.steps,
        "psnr_db": None if reference else statistics.mean(psnr_db(*pair) for pair in pairs),
        "psnr_db_objects": None if reference else statistics.mean(inside),
        "ssim": 1.0 if reference else statistics.mean(ssim(*pair) for pair in pairs),
        "oracle_score": statistics.mean(judged),
    }


def save_pictures(folder: Path, methods: list[Method], maps: list[np.ndarray], scenes: list[Scene]) -> None:
    """Every picture on its own, and all side by side with the token map."""
    columns = [(TITLES[method.name], method.pictures) for method in methods] + [("token map", maps)]
    sheet = Image.new("RGB", (TILE * len(columns), (TILE + 18) * len(scenes) + 18), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (title, pictures) in enumerate(columns):
        draw.text((column * TILE + 4, 3), title, fill="black")
        for row, picture in enumerate(pictures):
            tile = Image.fromarray((picture * 255).round().astype(np.uint8))
            tile.save(folder / f"{row + 1:02d}-{title.lower().replace(' ', '-').replace('+', '-')}.png")
            sheet.paste(tile.resize((TILE, TILE)), (column * TILE, 18 + row * (TILE + 18)))
    for row, scene in enumerate(scenes):
        draw.text((4, 18 + row * (TILE + 18) + TILE + 3), scene.caption, fill="black")
    sheet.save(folder / "sheet.png")
