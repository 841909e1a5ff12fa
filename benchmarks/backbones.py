"""What is known of every model family: `python -m benchmarks backbones --out DIR`.

Nothing is measured here. Families are read from their descriptions; how far a selective pass is from a dense one is what the test suite
found on small models (SAFE_DIT_WRITE_TABLES=1, tests/comfy/test_backbones.py); memory is that of the published sizes: keys and values in
bfloat16 for one cond and one picture, or one frame of a video's latent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safe_dit_engine.backbones import BACKBONES, LEFT_DENSE, Backbone, Extras, Layout
from safe_dit_engine.cli.results import environment, markdown_table

from .command import log, parser_of, save

NAME = "backbones"
DIFFERENCES = Path(__file__).with_name("subset_differences.json")
DOCUMENT = Path(__file__).parents[1] / "docs" / "backbones.md"
FLUX = Path(__file__).parents[1] / "safe_dit_engine" / "backbones" / "comfy" / "flux.py"  # shown there as the example
KEEP_RATIO = 0.25
SIDES = (1024, 2048)
DIFFERENCE_COLUMNS = ("family", "small model", "largest difference", "in bfloat16", "reason")
FAMILY_COLUMNS = ("family", "class_names", "hooks", "mask", "prompt_signal", "controlnet", "references", "compile", "subset_max_diff")
SIZE_COLUMNS = ("family", "model", *(f"{side}_{rows}" for side in SIDES for rows in ("all_rows", "context_rows")))
DENSE_COLUMNS = ("class_name", "reason")

NEVER = "none"
PADDED = "text padding, where the encoder left it in"
MASKS = {
    "Flux": "none (a Redux bias per query runs dense)",
    "Chroma": "none (a Redux bias per query runs dense)",
    "Lens": "always, all zeros where nothing is padded",
    "Qwen-Image": PADDED,
    "Mage-Flow": PADDED,
    "HunyuanVideo": PADDED,
    "Ideogram 4": "text padding per query, where the encoder left it in (runs dense)",
}


@dataclass(frozen=True)
class Published:
    """A published model: attention calls whose keys and values are kept, their width, pixels a token's side, text rows kept with them.

    As ComfyUI 0.30.0 reads them from the checkpoints (comfy/model_detection.py, and the defaults of the classes).
    """

    family: str
    model: str
    calls: int
    width: int
    pixels: int = 16
    text: int = 0

    def bytes(self, side: int, keep: float | None = None) -> int:
        """Keys and values of all rows, or of the context left by `keep`, for a square picture of `side` pixels."""
        tokens = (side // self.pixels) ** 2
        rows = tokens + self.text if keep is None else tokens - round(keep * tokens)
        return 2 * 2 * self.calls * self.width * rows


PUBLISHED = (
    Published("NextDiT", "Lumina-Image 2.0", 26 + 2, 768, text=256),  # 8 key heads of 96, kept before they are repeated
    Published("NextDiT", "Z-Image", 30 + 2, 3840, text=512),
    Published("Flux", "FLUX.1 dev", 19 + 38, 3072, text=512),
    Published("Flux", "FLUX.2 dev", 8 + 48, 6144, text=512),
    Published("Chroma", "Chroma", 19 + 38, 3072, text=512),
    Published("SD3", "Stable Diffusion 3.5 medium", 24 + 13, 1536, text=333),  # 13 blocks attend twice
    Published("SD3", "Stable Diffusion 3.5 large", 38, 2432, text=333),
    Published("Qwen-Image", "Qwen-Image", 60, 3072, text=512),
    Published("Mage-Flow", "Mage-Flow", 12, 3072, text=512),
    Published("Lens", "Lens", 48, 1536, text=512),
    Published("HunyuanVideo", "HunyuanVideo", 20 + 40, 3072, text=256),
    Published("HunyuanVideo", "HunyuanImage 2.1", 20 + 40, 3584, pixels=32, text=512),
    Published("AuraFlow", "AuraFlow 0.3", 4 + 32, 3072, text=264),
    Published("HiDream", "HiDream-I1", 16 + 32, 2560, text=384),
    Published("Wan", "Wan 2.1 1.3B", 30, 1536),
    Published("Wan", "Wan 2.2 5B", 30, 3072, pixels=32),
    Published("Wan", "Wan 2.2 14B", 40, 5120),
    Published("Wan with CLIP image", "Wan 2.1 14B image to video", 40, 5120),
    Published("PixArt", "PixArt-Sigma", 28, 1152),
    Published("Ernie-Image", "Ernie-Image", 36, 4096, text=256),
    Published("Krea 2", "Krea 2", 28, 1536, text=512),  # 12 key heads of 128, kept before they are repeated
    Published("Cosmos-Predict2", "Cosmos-Predict2 2B, Anima", 28, 2048),
    Published("Cosmos-Predict2", "Cosmos-Predict2 14B", 36, 5120),
    Published("Ideogram 4", "Ideogram 4", 34, 4608, text=512),
    Published("Kandinsky 5", "Kandinsky 5 lite", 32, 1792),
    Published("OmniGen2", "OmniGen2", 32 + 2, 840, text=256),  # 7 key heads of 120
)


def main(argv: Sequence[str]) -> int:
    """Print the tables, write JSON and Markdown."""
    parser = parser_of(NAME, __doc__, "changes nothing: nothing runs", "changes nothing")
    arguments = parser.parse_args(argv)
    rows = [*(family_row(backbone) for backbone in BACKBONES), *dense_rows()]
    save(arguments.out, NAME, {"environment": environment(arguments.device), "rows": rows}, tables())
    log.info(tables())
    return 0


def tables() -> str:
    """Families, memory and what is left dense, in Markdown."""
    families = [{**row, "class_names": ", ".join(row["class_names"])} for row in map(family_row, BACKBONES)]
    found = (
        markdown_table(families, FAMILY_COLUMNS),
        markdown_table([size_row(size) for size in PUBLISHED], SIZE_COLUMNS),
        markdown_table(dense_rows(), DENSE_COLUMNS),
    )
    return "\n\n".join(found)


def family_row(backbone: Backbone) -> dict[str, Any]:
    """What the description of a family says."""
    return {
        "family": backbone.name,
        "supported": True,
        "subset_max_diff": measured_differences().get(backbone.name),
        "class_names": list(backbone.class_names),
        "hooks": "module hooks" if backbone.lent_attention is None else "module hooks, lent attention",
        "mask": MASKS.get(backbone.name, NEVER),
        "prompt_signal": prompt_signal(backbone),
        "controlnet": f"rows gathered ({', '.join(backbone.controls)})" if backbone.controls else "dense",
        "references": references(backbone),
        "compile": "left out",
        "cache": [size_row(size) for size in PUBLISHED if size.family == backbone.name],
    }


def prompt_signal(backbone: Backbone) -> str:
    """Where the prompt is read from; at a CFG above 1 there is guidance as well."""
    layouts = {layout for group in backbone.groups for layout in group.attentions}
    return "cross attention" if Layout.CROSS in layouts else "joint attention"


def references(backbone: Backbone) -> str:
    """What becomes of reference pictures."""
    refused = [name for name, _ in backbone.refusals]
    held = "held like context" if backbone.extras is Extras.CONTEXT else ""
    dense = f"dense with {', '.join(refused)}" if refused else ""
    return "; ".join(filter(None, (held, dense))) or "none known"


def size_row(size: Published) -> dict[str, Any]:
    """Memory of a published model."""
    cells = {}
    for side in SIDES:
        for name, keep in (("all_rows", None), ("context_rows", KEEP_RATIO)):
            cells[f"{side}_{name}"] = f"{size.bytes(side, keep) / 2**30:.2f} GiB"
    return {"family": size.family, "model": size.model, **cells}


def dense_rows() -> list[dict[str, Any]]:
    """Families that are known and run dense."""
    return [{"family": name, "supported": False, "class_name": name, "reason": reason} for name, reason in LEFT_DENSE.items()]


def write_differences(models: Sequence[Mapping[str, Any]]) -> None:
    """Keep what the test suite measured, and put it and what is left dense into docs/backbones.md."""
    DIFFERENCES.write_text(json.dumps({"environment": environment(), "models": models}, indent=2) + "\n", encoding="utf-8")
    rows = [
        {
            "family": row["family"], "small model": row["model"], "largest difference": row["float32"], "in bfloat16": row["bfloat16"],
            "reason": row["reason"] or "-",
        }
        for row in models
    ]  # fmt: skip
    blocks = {"differences": markdown_table(rows, DIFFERENCE_COLUMNS), "families": tables(), "flux": f"```python\n{FLUX.read_text()}```"}
    text = DOCUMENT.read_text(encoding="utf-8")
    for name, block in blocks.items():
        start, end = f"<!-- {name}: written by the tests -->\n", f"<!-- end of {name} -->"
        before, rest = text.split(start, 1)
        text = before + start + block + "\n" + rest[rest.index(end) :]
    DOCUMENT.write_text(text, encoding="utf-8")


def measured_differences() -> dict[str, float]:
    """Largest difference between a selective and a dense pass at the same input, over the largest value, by family."""
    found = json.loads(DIFFERENCES.read_text(encoding="utf-8"))["models"] if DIFFERENCES.is_file() else []
    return {family: max(row["float32"] for row in found if row["family"] == family) for family in {row["family"] for row in found}}
