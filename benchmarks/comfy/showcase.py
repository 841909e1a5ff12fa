"""The demo: both shipped workflows through a real ComfyUI server, in full and accelerated: `python -m benchmarks showcase`.

Each prompt in turn, in one server after a warm-up: in full; quickstart with four presets; SAFE+SW (four nodes); and the simple rival, in
full with as many steps as `balanced` computes. Pictures are compared with the full one of the same seed.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from devtools.server import ComfyServer, RunResult
from devtools.templates import FIRST, template
from safe_dit_engine.cli.options import at_least, picture_edge
from safe_dit_engine.cli.results import environment, markdown_table

from ..command import log, parser_of, rounded, save
from ..demo_model.scenes import held_out_scenes
from ..measure.closeness import judge, row_of
from ..measure.in_turn import Cell, Journal, Sample, Shot, make_in_turn
from ..measure.methods import Method
from .workflows import Prompt, bypassed, changed, feeding, find, load_prompt

COLUMNS = (
    "method", "setting", "steps", "seconds", "speedup", "rows_computed_share", "psnr_db", "psnr_db_objects", "ssim", "oracle_score",
)  # fmt: skip
PRESETS = ("quality", "balanced", "draft", "express")
RIVAL, RIVALS = "fewer steps", "balanced"  # what the rival is called, and the preset that computes as many steps
TITLES = ("dense", *PRESETS, "safe sw", RIVAL, "token map")
# The columns of the strip, with what stands above each.
STRIP = {"dense": "full", **{name: name for name in PRESETS}, RIVAL: RIVAL}
FIRST_SCENE = 1000  # apart from the scenes other benches look at
TILE, LINE = 256, 18
GAP, TEXT, TEXT_SIZE = 8, 26, 17


def main(argv: Sequence[str]) -> int:
    """Run, write pictures, sheet and report."""
    parser = parser_of("showcase", __doc__, "2 prompts, 256 px")
    parser.set_defaults(out=Path("output/demo"))
    parser.add_argument("--prompts", type=at_least(1), default=8, help="how many captions")
    parser.add_argument("--size", type=picture_edge, default=512, help="edge in pixels")
    parser.add_argument("--steps", type=at_least(2), default=20, help="sampling steps")
    arguments = parser.parse_args(argv)
    count, size = (2, 256) if arguments.small else (arguments.prompts, arguments.size)
    shots = [Shot((scene,), (arguments.seed + number,)) for number, scene in enumerate(held_out_scenes(count, FIRST_SCENE))]
    log.info("Starting ComfyUI ...")
    # ComfyUI's default attention on the CPU is slower and would flatter us.
    with ComfyServer(cpu=arguments.device == "cpu", extra_args=["--use-pytorch-cross-attention"]) as server:
        log.info("ComfyUI is up; %d prompts at %d x %d, %d steps.", count, size, size, arguments.steps)
        showcase, cell = Showcase(server), Cell(size, arguments.steps, "euler")
        rows = showcase.measure(cell, shots)
        version = server.get_json("/system_stats")["system"]["comfyui_version"]
    table = markdown_table(rounded(rows), COLUMNS)
    save(arguments.out, "report", {"environment": environment(arguments.device, comfyui=version), "rows": rows}, table)
    save_pictures(arguments.out, showcase.pictures, shots)
    strip_of(showcase.pictures, rows, shots[0].seeds[0]).save(arguments.out / "strip.jpg", quality=88)
    log.info("%s\nPictures, sheet.png, strip.jpg and report.json are in %s", table, arguments.out)
    return 0


class Showcase:
    """A server, the shipped workflows as methods whose change makes a prompt of a cell and a shot, and the pictures by column and seed."""

    def __init__(self, server: ComfyServer) -> None:
        self._server = server
        info = server.get_json("/object_info")
        quick, four = (load_prompt(template(name), info) for name in (FIRST, "four-nodes"))
        accelerate = find(quick, "SafeDitAccelerate")
        self._plain = partial(asked, bypassed(quick, accelerate))
        presets = {name: partial(asked, changed(quick, {accelerate: {"preset": name}})) for name in PRESETS}
        self._methods = [
            Method("dense", "all steps", self._plain),
            *(Method(name, "quickstart", change) for name, change in presets.items()),
            Method("safe_sw", "four nodes", partial(asked, four)),
        ]
        self.pictures: dict[str, dict[int, np.ndarray]] = {title: {} for title in TITLES}

    def measure(self, cell: Cell, shots: Sequence[Shot]) -> list[dict[str, Any]]:
        """A row a method. The warm-up tells how many steps `balanced` computes: the rival has as many, and so about the same time."""
        warm_up, journal = Journal(), Journal()
        before = [Shot(tuple(held_out_scenes(1, FIRST_SCENE - 1)), (0,))]
        make_in_turn(self.sample, judge, self._methods, cell, before, warm_up)
        balanced = next(method for method in self._methods if method.name == RIVALS)
        (found,) = warm_up.records(balanced, cell, before)
        rival = Method("fewer_steps", f"as many as {RIVALS} computes", self._plain, found["rows_computed_share"])
        methods = [*self._methods, rival]
        make_in_turn(self.sample, judge, methods, cell, shots, journal)
        rows = []
        for method in methods:
            found = row_of(journal.records(method, cell, shots), compared=True)
            counts = {"steps": method.steps(cell.steps), "prompts": len(shots), "speedup": 1 / found["seconds_over_dense"]}
            rows.append({**cell.described(), **method.described(), **counts, **found})
        return rows

    def sample(self, method: Method, cell: Cell, shot: Shot) -> Sample:
        """A caption through the server."""
        prompt, sampler = method.change((cell, method.steps(cell.steps), shot))
        result = self._server.run(prompt)
        steps = float(method.steps(cell.steps))
        if records := result.output(find(prompt, "SafeDitReport")).get("safe_dit"):
            steps *= float((records[0] or {}).get("rows_computed_share", 1.0))
        if method.name == "safe_sw":
            # The other workflow leaves out whole steps, and has no map.
            self._keep("token map", shot, picture_of(self._server, result, find(prompt, "PreviewImage")))
        picture = picture_of(self._server, result, find(prompt, "SaveImage"))
        self._keep(method.name.replace("_", " "), shot, picture)
        return Sample(picture[None], result.node_seconds[sampler], steps, None)

    def _keep(self, title: str, shot: Shot, picture: np.ndarray) -> None:
        self.pictures[title][shot.seeds[0]] = picture


def asked(prompt: Prompt, wanted: tuple[Cell, int, Shot]) -> tuple[Prompt, str]:
    """The prompt with a size, a number of steps, a caption and a seed; and the id of its sampler."""
    cell, steps, shot = wanted
    size = {"width": cell.size, "height": cell.size, "batch_size": 1}
    if any(node["class_type"] == "KSampler" for node in prompt.values()):
        reader = sampler = find(prompt, "KSampler")
        own = {sampler: {"seed": shot.seeds[0], "steps": steps}}
    else:
        sampler = find(prompt, "SamplerCustomAdvanced")
        reader, noise = feeding(prompt, sampler, "guider"), feeding(prompt, sampler, "noise")
        own = {noise: {"noise_seed": shot.seeds[0]}, find(prompt, "BasicScheduler"): {"steps": steps}}
    text = {feeding(prompt, reader, "positive"): {"text": shot.captions[0]}}
    return changed(prompt, {find(prompt, "EmptySD3LatentImage"): size, **text, **own}), sampler


def picture_of(server: ComfyServer, result: RunResult, node_id: str) -> np.ndarray:
    """Picture a node saved, `[H, W, 3]` in [0, 1]."""
    image = result.output(node_id)["images"][0]
    data = server.view(image["filename"], image["subfolder"], image["type"])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.float32) / 255.0


def save_pictures(folder: Path, pictures: dict[str, dict[int, np.ndarray]], shots: Sequence[Shot]) -> None:
    """Every picture on its own, and all side by side."""
    sheet = Image.new("RGB", (TILE * len(TITLES), (TILE + LINE) * len(shots) + LINE), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(TITLES):
        draw.text((column * TILE + 4, 3), title, fill="black")
        for row, shot in enumerate(shots):
            tile = Image.fromarray((pictures[title][shot.seeds[0]] * 255).round().astype(np.uint8))
            tile.save(folder / f"{row + 1:02d}-{title.replace(' ', '-')}.png")
            sheet.paste(tile.resize((TILE, TILE)), (column * TILE, LINE + row * (TILE + LINE)))
            draw.text((4, LINE + row * (TILE + LINE) + TILE + 3), shot.captions[0], fill="black")
    sheet.save(folder / "sheet.png")


def strip_of(pictures: dict[str, dict[int, np.ndarray]], rows: Sequence[dict[str, Any]], seed: int) -> Image.Image:
    """The pictures of one seed beside each other: above each how it was made, below it the seconds, the median of all prompts."""
    found = {row["method"].replace("_", " "): row for row in rows}
    strip = Image.new("RGB", ((TILE + GAP) * len(STRIP) - GAP, TILE + 2 * TEXT), "white")
    draw, font = ImageDraw.Draw(strip), ImageFont.load_default(TEXT_SIZE)
    for column, (title, above) in enumerate(STRIP.items()):
        left, row = column * (TILE + GAP), found[title]
        tile = Image.fromarray((pictures[title][seed] * 255).round().astype(np.uint8))
        strip.paste(tile.resize((TILE, TILE)), (left, TEXT))
        draw.text((left + TILE / 2, TEXT / 2), above, "black", font, "mm")
        draw.text((left + TILE / 2, TEXT * 1.5 + TILE), f"{row['seconds']:.1f} s, {row['steps']} steps", "black", font, "mm")
    return strip
