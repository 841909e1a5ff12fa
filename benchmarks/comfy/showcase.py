"""The demo: both shipped workflows through a real ComfyUI server, dense and accelerated: `python -m benchmarks showcase`.

Four runs of each prompt, interleaved in one server after a warm-up: dense; SAFE-Core (quickstart, default preset); SAFE+SW (four nodes);
and the simple rival, dense with as many steps as fit into SAFE-Core's time. Pictures are compared with the dense one of the same seed.
"""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from devtools.server import PACK_ROOT, ComfyServer, RunResult
from safe_dit_engine.cli.results import environment, markdown_table, psnr_db, ssim

from ..command import log, parser_of, save
from ..demo_model.oracle import oracle_score
from ..demo_model.scenes import Scene, held_out_scenes
from ..measure.closeness import objects_psnr
from .workflows import Prompt, bypassed, changed, feeding, find, load_prompt

TITLES = {"dense": "dense", "safe_core": "SAFE-Core", "safe_sw": "SAFE+SW", "fewer_steps": "fewer steps"}
COLUMNS = ("name", "steps", "sampling_seconds", "speedup", "rows_computed_share", "psnr_db", "psnr_db_objects", "ssim", "oracle_score")
FIRST_SCENE = 1000  # apart from the scenes other benches look at
WARM_UP_ROUNDS = 3
TILE = 256


@dataclass
class Way:
    """One of the four ways to run a prompt: the prompt, the sampler's node, and what was seen."""

    name: str
    prompt: Prompt
    sampler: str
    steps: int
    seconds: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    pictures: list[np.ndarray] = field(default_factory=list)

    def run(self, server: ComfyServer, caption: str, seed: int) -> RunResult:
        """A caption through the server; notes seconds, share of rows and the picture."""
        result = server.run(self._with(caption, seed))
        self.seconds.append(result.node_seconds[self.sampler])
        records = result.output(find(self.prompt, "SafeDitReport")).get("safe_dit", [])
        self.shares.append(float(records[0]["rows_computed_share"]) if records and records[0] else 1.0)
        self.pictures.append(picture_of(server, result, find(self.prompt, "SaveImage")))
        return result

    def _with(self, caption: str, seed: int) -> Prompt:
        prompt, sampler = self.prompt, self.sampler
        if prompt[sampler]["class_type"] == "KSampler":
            return changed(prompt, {feeding(prompt, sampler, "positive"): {"text": caption}, sampler: {"seed": seed}})
        guider, noise = feeding(prompt, sampler, "guider"), feeding(prompt, sampler, "noise")
        return changed(prompt, {feeding(prompt, guider, "positive"): {"text": caption}, noise: {"noise_seed": seed}})


def main(argv: Sequence[str]) -> int:
    """Run, write pictures, sheet and report."""
    parser = parser_of("showcase", __doc__, "2 prompts, 256 px")
    parser.set_defaults(out=Path("output/demo"))
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args(argv)
    count, size = (2, 256) if arguments.small else (arguments.prompts, arguments.size)
    scenes = held_out_scenes(count, FIRST_SCENE)
    # ComfyUI's default attention on the CPU is slower and would flatter us.
    with ComfyServer(cpu=arguments.device == "cpu", extra_args=["--use-pytorch-cross-attention"]) as server:
        log.info("ComfyUI is up; %d prompts at %d x %d, %d steps.", count, size, size, arguments.steps)
        ways, maps = sample_all(server, scenes, size, arguments.steps, arguments.seed)
        version = server.get_json("/system_stats")["system"]["comfyui_version"]
    runs = [summary(way, ways[0], scenes) for way in ways]
    machine, table = environment(arguments.device, comfyui=version), markdown_table(runs, COLUMNS)
    save(arguments.out, "report", {"environment": machine, "resolution": f"{size}x{size}", "prompts": count, "runs": runs}, table)
    save_pictures(arguments.out, ways, maps, scenes)
    log.info("%s\nPictures, sheet.png and report.json are in %s", table, arguments.out)
    return 0


def sample_all(server: ComfyServer, scenes: list[Scene], size: int, steps: int, first_seed: int) -> tuple[list[Way], list[np.ndarray]]:
    """All runs of all prompts, and the token maps of SAFE-Core."""
    ways = ways_of(server, size, steps)
    warm_up(server, ways)
    maps = []
    for number, scene in enumerate(scenes):
        for way in ways:
            result = way.run(server, scene.caption, first_seed + number)
            if way.name == "safe_core":
                maps.append(picture_of(server, result, find(way.prompt, "PreviewImage")))
        log.info("%d of %d: %s", number + 1, len(scenes), scene.caption)
    return ways, maps


def ways_of(server: ComfyServer, size: int, steps: int) -> list[Way]:
    """The four ways, from the shipped workflow files."""
    info = server.get_json("/object_info")
    quick, four = (load_prompt(PACK_ROOT / "workflows" / f"{name}.json", info) for name in ("quickstart", "four-nodes"))
    sampler, scheduler = find(quick, "KSampler"), find(four, "BasicScheduler")
    size_of = {"width": size, "height": size, "batch_size": 1}
    quick = changed(quick, {find(quick, "EmptySD3LatentImage"): size_of, sampler: {"steps": steps}})
    four = changed(four, {find(four, "EmptySD3LatentImage"): size_of, scheduler: {"steps": steps}})
    dense = bypassed(quick, find(quick, "SafeDitAccelerate"))
    return [
        Way("dense", dense, sampler, steps),
        Way("safe_core", quick, sampler, steps),
        Way("safe_sw", four, find(four, "SamplerCustomAdvanced"), steps),
        Way("fewer_steps", dense, sampler, steps),
    ]


def warm_up(server: ComfyServer, ways: list[Way]) -> None:
    """Load everything, and find the number of dense steps that fits into SAFE-Core's time (rounded up, in the rival's favour)."""
    dense, core, _, fewer = ways
    caption = held_out_scenes(1, FIRST_SCENE - 1)[0].caption
    for seed in range(WARM_UP_ROUNDS):
        for way in ways[:3]:
            way.run(server, caption, seed)
    share = statistics.median(core.seconds[1:]) / statistics.median(dense.seconds[1:])
    fewer.steps = min(dense.steps, math.ceil(share * dense.steps))
    fewer.prompt = changed(dense.prompt, {dense.sampler: {"steps": fewer.steps}})
    for way in ways:
        way.seconds, way.shares, way.pictures = [], [], []


def picture_of(server: ComfyServer, result: RunResult, node_id: str) -> np.ndarray:
    """Picture a node saved, `[H, W, 3]` in [0, 1]."""
    image = result.output(node_id)["images"][0]
    data = server.view(image["filename"], image["subfolder"], image["type"])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.float32) / 255.0


def summary(way: Way, dense: Way, scenes: list[Scene]) -> dict[str, Any]:
    """One row of the report: medians of time, means of the rest."""
    pairs = list(zip(way.pictures, dense.pictures, strict=True))
    reference = way is dense
    inside = [objects_psnr(*pair, scene) for pair, scene in zip(pairs, scenes, strict=True)]
    return {
        "name": way.name,
        "steps": way.steps,
        "sampling_seconds": statistics.median(way.seconds),
        "speedup": statistics.median(dense.seconds) / statistics.median(way.seconds),
        "rows_computed_share": statistics.mean(way.shares) * way.steps / dense.steps,
        "psnr_db": None if reference else statistics.mean(psnr_db(*pair) for pair in pairs),
        "psnr_db_objects": None if reference else statistics.mean(inside),
        "ssim": 1.0 if reference else statistics.mean(ssim(*pair) for pair in pairs),
        "oracle_score": statistics.mean(oracle_score(picture, scene) for (picture, _), scene in zip(pairs, scenes, strict=True)),
    }


def save_pictures(folder: Path, ways: list[Way], maps: list[np.ndarray], scenes: list[Scene]) -> None:
    """Every picture on its own, and all side by side with the token map."""
    columns = [(TITLES[way.name], way.pictures) for way in ways] + [("token map", maps)]
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
