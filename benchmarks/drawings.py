"""Icon, banner and thumbnails without sampling: `python -m benchmarks drawings`.

Icon and banner show pictures that the demo model made for *quickstart* and the showcase, over the plan of the preset *balanced*. Thumbnails
of templates whose models are not at hand are diagrams: the nodes that the model goes through. All are written where the pack has them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from devtools.templates import FIRST, WORKFLOWS, template
from safe_dit_engine.cli.options import Parser
from safe_dit_engine.presets import DEFAULT_PRESET, PRESETS
from safe_dit_engine.steps.levels import even_progress
from safe_dit_engine.steps.plan import StepKind, plan_steps

from .comfy.showcase import GAP, STRIP, TEXT, TILE
from .comfy.workflows import MUTED
from .command import log

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
STEPS = 20
# What the model goes through on its way to the sampler.
CARRIED = ("MODEL", "GUIDER", "LATENT", "IMAGE", "VIDEO")
# Titles of the templates that ask for models of one's own, and what they show.
MODELS = {
    "flux": ("Flux.1 dev", "text to image"),
    "focus-words": ("Focus words", "Flux.1 dev, a map of some words"),
    "sd35": ("SD 3.5 Large", "text to image"),
    "controlnet": ("ControlNet", "SD 3.5 Large, edges of a picture"),
    "z-image": ("Z-Image Turbo", "text to image, 8 steps"),
    "qwen-image": ("Qwen-Image", "text to image"),
    "lens": ("Lens", "text to image"),
    "wan-video": ("Wan 2.1", "text to video"),
}
NAMES = {
    "UNETLoader": "Load Diffusion Model", "CheckpointLoaderSimple": "Load Checkpoint",
    "SafeDitAccelerate": "SAFE-DiT Accelerate", "SafeDitPartitioner": "Prompt Token Partitioner", "SafeDitReport": "SAFE-DiT Report",
    "VAEDecode": "VAE Decode", "SaveImage": "Save Image", "CreateVideo": "Create Video", "SaveVideo": "Save Video",
}  # fmt: skip
BACK, BOX, OURS, LINE, PALE, WHITE = "#16181d", "#2c3038", "#1f4e79", "#5b6270", "#a9b0bd", "#ffffff"
# As the node draws them (web/js/paint.js).
COLOURS = {StepKind.WARMUP: "#8a8f98", StepKind.REFRESH: "#e69f00", StepKind.SKIPPED: "#009e73"}


def main(argv: Sequence[str]) -> int:
    """Draw them all."""
    Parser("python -m benchmarks drawings", __doc__).parse_args(argv)
    icon().save(IMAGES / "icon.png", optimize=True)
    banner().save(IMAGES / "banner.png", optimize=True)
    for name, (title, about) in MODELS.items():
        workflow = json.loads(template(name).read_text(encoding="utf-8"))
        diagram(title, about, list(way(workflow))).save(template(name).with_suffix(".jpg"), quality=88, optimize=True)
    log.info("Written: icon and banner in %s, %d thumbnails in %s", IMAGES, len(MODELS), WORKFLOWS)
    return 0


# Icon and banner


def icon() -> Image.Image:
    """A corner of the picture of *quickstart* over the steps that make it."""
    picture = Image.open(template(FIRST).with_suffix(".jpg")).convert("RGB").crop((0, 0, 200, 200)).resize((256, 256))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 192, 256, 256), fill=BACK)
    bars(draw, 10, 248, 236, 46, planned())
    return flat(picture)


def banner() -> Image.Image:
    """Name, and one picture of the showcase in full and accelerated, each over its steps."""
    strip, columns = Image.open(IMAGES / "strip.jpg").convert("RGB"), list(STRIP.values())
    canvas = Image.new("RGB", (1050, 450), BACK)
    draw = ImageDraw.Draw(canvas)
    draw.text((44, 130), "SAFE-DiT", font=font(92), fill=WHITE)
    draw.text((48, 246), "diffusion transformers, sooner", font=font(25), fill=PALE)
    every = [StepKind.WARMUP] * STEPS
    for left, column, title, plan in ((508, "full", "every step", every), (784, DEFAULT_PRESET, DEFAULT_PRESET, planned())):
        begin = columns.index(column) * (TILE + GAP)
        canvas.paste(strip.crop((begin, TEXT, begin + TILE, TEXT + TILE)).resize((248, 248)), (left, 56))
        bars(draw, left, 370, 248, 44, plan)
        draw.text((left, 384), title, font=font(22), fill=PALE)
    return flat(canvas)


def planned() -> Sequence[StepKind]:
    """Steps of the preset that is set first."""
    preset = PRESETS[DEFAULT_PRESET]
    return plan_steps(even_progress(STEPS), preset.partition.warmup_steps, preset.schedule)


def bars(draw: ImageDraw.ImageDraw, left: int, bottom: int, width: int, height: int, plan: Sequence[StepKind]) -> None:
    """A bar a step: tall where the model runs."""
    for index, kind in enumerate(plan):
        begin, end = left + index * width // len(plan), left + (index + 1) * width // len(plan) - 3
        draw.rectangle((begin, bottom - (height if kind.full else height // 5), end, bottom), fill=COLOURS[kind])


def flat(picture: Image.Image) -> Image.Image:
    """In few colours, so that the file is small."""
    return picture.quantize(128, dither=Image.Dither.NONE)


# Diagrams


def way(workflow: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Title and setting of each node from the model's loader to what is saved, without those that are muted."""
    nodes = {node["id"]: node for node in workflow["nodes"] if node["mode"] != MUTED and hands_on(node)}
    targets = {(link[1], link[5], link[3]) for link in workflow["links"] if link[5] in CARRIED}
    front: int | None = next(key for key, node in nodes.items() if node["type"] in ("UNETLoader", "CheckpointLoaderSimple"))
    while front is not None:
        yield NAMES.get(nodes[front]["type"], nodes[front]["type"]), setting(nodes[front])
        after = [(CARRIED.index(kind), target) for source, kind, target in targets if source == front and target in nodes]
        front = min(after)[1] if after else None


def hands_on(node: Mapping[str, Any]) -> bool:
    """Whether what comes in goes on, or is saved."""
    kinds = [found["type"] for found in node.get("outputs") or []]
    return not kinds or any(kind in CARRIED for kind in kinds)


def setting(node: Mapping[str, Any]) -> str:
    """What of a node's values tells what the template does."""
    values = node.get("widgets_values") or []
    if node["type"] == "KSampler":
        return f"{values[2]} steps, {values[4]}"
    return str(values[0]) if node["type"] == "SafeDitAccelerate" else ""


def diagram(title: str, about: str, boxes: Sequence[tuple[str, str]]) -> Image.Image:
    """The nodes one under another, each as a box; nothing that could be taken for a picture of the model."""
    canvas = Image.new("RGB", (400, 400), BACK)
    draw = ImageDraw.Draw(canvas)
    draw.text((24, 18), title, font=font(32), fill=WHITE)
    draw.text((24, 60), about, font=font(16), fill=PALE)
    pitch = (400 - 96 - 8) // len(boxes)
    for index, (name, value) in enumerate(boxes):
        top = 96 + index * pitch
        ours = name in ("SAFE-DiT Accelerate", "Prompt Token Partitioner", "SafeDitSelectiveSampler")
        draw.rounded_rectangle((24, top, 376, top + pitch - 10), 6, fill=OURS if ours else BOX)
        middle = top + (pitch - 10) // 2
        draw.text((38, middle), name, font=font(17), fill=WHITE, anchor="lm")
        draw.text((362, middle), value, font=font(15), fill=PALE, anchor="rm")
        if index + 1 < len(boxes):
            draw.line((60, top + pitch - 10, 60, top + pitch), fill=LINE, width=3)
    return canvas


def font(size: int) -> Any:
    """The one that comes with Pillow."""
    return ImageFont.load_default(size)
