"""What every bench shares: the environment it ran in, closeness of pictures, tables."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

Row = Mapping[str, Any]
# A list of numbers only stands on one line of a JSON file.
NUMBERS = re.compile(r"\[[-+.\deE,\s]+\]")


def environment(device: str = "cpu", **extras: Any) -> dict[str, Any]:
    """Machine and versions a result belongs to."""
    found = {
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }
    return {**found, **extras}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def ssim(picture: np.ndarray, reference: np.ndarray) -> float:
    """Structural similarity of pictures `[H, W, 3]` in [0, 1] (torchmetrics)."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    a, b = (torch.from_numpy(np.ascontiguousarray(x, np.float32)).movedim(-1, 0)[None] for x in (picture, reference))
    return float(structural_similarity_index_measure(a, b, data_range=1.0))


def markdown_table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Rows as a Markdown table; floats with at most four figures."""
    lines = ["| " + " | ".join(columns) + " |", "| " + " | ".join("---" for _ in columns) + " |"]
    lines += ["| " + " | ".join(_cell(row.get(column)) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def save(folder: Path, name: str, result: Mapping[str, Any], table: str) -> None:
    """Write `name`.json and `name`.md."""
    folder.mkdir(parents=True, exist_ok=True)
    text = NUMBERS.sub(lambda found: re.sub(r"\s+", " ", found[0]), json.dumps(result, indent=2))
    (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(table + "\n", encoding="utf-8")
