"""The workflow templates of the pack, by their names."""
from __future__ import annotations

from pathlib import Path

WORKFLOWS = Path(__file__).resolve().parents[1] / "workflows"
FIRST = "quickstart"


def template(name: str) -> Path:
    """The file of a template. That of quickstart begins with a 1: ComfyUI lists templates by file, and this one is to be found first."""
    return WORKFLOWS / f"{'1-' if name == FIRST else ''}{name}.json"
