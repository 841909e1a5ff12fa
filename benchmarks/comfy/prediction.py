"""Whether the widget's prediction comes true: `python -m benchmarks prediction --out DIR`.

Settings across the Accelerate node's range on the demo model in real ComfyUI, each beside a dense run of the same shot. `error` is the
predicted share of dense time over the measured one, less one.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safe_dit_engine.cli.results import environment, markdown_table, save
from safe_dit_engine.presets import PRESETS, Preset
from safe_dit_engine.steps.levels import even_progress
from safe_dit_engine.steps.plan import plan_steps, predicted_share

from ..demo_model.scenes import held_out_scenes
from ..measure.journal import Cell, Shot
from .in_process import import_comfyui
from .peers import Method, configured
from .side_by_side import Bench

log = logging.getLogger("safe_dit.bench")

NAME = "prediction"
COLUMNS = ("setting", "resolution", "steps", "predicted", "measured", "error")
OWN = {
    f"keep {keep}, interval {interval}, warm-up {warmup}, {held} held": Preset(keep, interval, warmup, 0.45, False, held, True)
    for keep, interval, warmup, held in (
        (0.1, 4, 4, 0), (0.25, 2, 4, 0), (0.25, 8, 2, 0), (0.5, 3, 4, 0), (0.5, 8, 4, 0), (0.25, 4, 4, 1), (0.5, 6, 3, 3), (0.8, 4, 4, 0),
    )
}  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Measure, print the table, write JSON and Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks prediction", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("output") / NAME)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--small", action="store_true", help="two shots")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    import_comfyui(arguments.device)
    rows = measure(arguments)
    save(arguments.out, NAME, {"environment": environment(arguments.device), "rows": rows}, markdown_table(rows, COLUMNS))
    log.info(markdown_table(rows, COLUMNS))
    return 0


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a setting."""
    settings = {**PRESETS, **OWN}
    methods = [
        Method(NAME, name, configured(partition=preset.partition(), schedule=preset.schedule())) for name, preset in settings.items()
    ]
    shots = [Shot(scene, arguments.seed + i) for i, scene in enumerate(held_out_scenes(2 if arguments.small else 5))]
    found = Bench(arguments.device).measure(Cell(arguments.size, arguments.steps, "euler"), methods, shots)[1:]
    return [row_of(settings[row["setting"]], row) for row in found]


def row_of(preset: Preset, row: dict[str, Any]) -> dict[str, Any]:
    """Prediction beside measurement."""
    plan = plan_steps(even_progress(row["steps"]), preset.warmup_steps, preset.schedule())
    predicted, measured = predicted_share(plan, preset.keep_ratio), row["seconds_over_dense"]
    kept = {key: row[key] for key in ("setting", "resolution", "steps")}
    return {**kept, "predicted": predicted, "measured": measured, "error": predicted / measured - 1.0}
