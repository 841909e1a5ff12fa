"""Presets at few steps and many, two samplers: `python -m benchmarks few-steps --out DIR` (samplers.py)."""

from __future__ import annotations

from collections.abc import Sequence

from .samplers import FEW_STEPS
from .samplers import main as measured


def main(argv: Sequence[str]) -> int:
    """Measure, write JSON and Markdown."""
    return measured(argv, FEW_STEPS)
