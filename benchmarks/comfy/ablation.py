"""What each part of the method gives, in time and closeness: `python -m benchmarks ablation --out DIR`.

The default preset in full, without each of its parts, and at several refresh intervals. `ABLATIONS` is the list to edit.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from safe_dit_engine.cli.results import Row, markdown_table, save
from safe_dit_engine.presets import DEFAULT_PRESET, PRESETS
from safe_dit_engine.steps.plan import MAX_REFRESH_INTERVAL, ScheduleConfig
from safe_dit_engine.tokens.partition import PartitionConfig, Signal

from ..measure.pareto import CELL, cells_of
from .fidelity import add_common, run, small
from .in_process import import_comfyui
from .peers import Method, configured, preset_text

log = logging.getLogger("safe_dit.bench")

NAME = "ablation"
NEVER = MAX_REFRESH_INTERVAL
INTERVALS = (1, 2, 4, 8, 16)
COLUMNS = (
    "setting", *CELL, "seconds", "seconds_over_dense", "rows_computed_share", "psnr_db", "psnr_db_objects", "psnr_db_edges", "ssim",
    "oracle_score",
)  # fmt: skip
Change = Callable[[PartitionConfig, ScheduleConfig], tuple[PartitionConfig, ScheduleConfig]]


def with_partition(**changes: Any) -> Change:
    """Another way to split the tokens."""
    return lambda partition, schedule: (replace(partition, **changes), schedule)


def with_schedule(**changes: Any) -> Change:
    """Another schedule."""
    return lambda partition, schedule: (partition, replace(schedule, **changes))


def selective_instead(signal: Signal) -> Change:
    """Selective steps where the preset holds them."""
    return lambda partition, schedule: (replace(partition, signal=signal), replace(schedule, skipped_steps=0))


ABLATIONS: dict[str, Change] = {
    "full": with_schedule(),
    "no settling": with_schedule(corrector=False),
    "no forecast": with_schedule(forecast=0.0),
    "no settling, no forecast": with_schedule(corrector=False, forecast=0.0),
    "no widening cycles": with_schedule(early_refresh=False),
    "no warm-up but one step": with_partition(warmup_steps=1),
    **{f"selective, not held, by {signal.value}": selective_instead(signal) for signal in Signal},
    **{f"interval {interval}": with_schedule(refresh_interval=interval, skipped_steps=NEVER) for interval in INTERVALS},
    "interval never": with_schedule(refresh_interval=NEVER, skipped_steps=NEVER, early_refresh=False),
}


def ablations() -> list[Method]:
    """The default preset, changed in every way listed."""
    preset = PRESETS[DEFAULT_PRESET]
    found = {setting: change(preset.partition(), preset.schedule()) for setting, change in ABLATIONS.items()}
    # The preset's values are part of the name, so that `--resume` does not take figures of an earlier preset for these.
    name = f"{NAME} of {preset_text(DEFAULT_PRESET, preset)}"
    return [Method(name, setting, configured(partition=parts[0], schedule=parts[1])) for setting, parts in found.items()]


def main(argv: Sequence[str]) -> int:
    """Measure, print the table, write JSON, Markdown and plot."""
    arguments = parse(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    import_comfyui(arguments.device)
    rows = run(arguments, ablations(), NAME, publish)
    log.info(markdown_table(rows, COLUMNS))
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks ablation", description=__doc__)
    add_common(parser, NAME)
    parser.set_defaults(prompts=16, seeds=1, sizes=[512], steps=[20], samplers=["euler"])
    return small(parser.parse_args(argv))


def publish(arguments: argparse.Namespace, machine: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write JSON, the table and the plot of the rows so far."""
    save(arguments.out, NAME, {"environment": machine, "rows": rows}, markdown_table(rows, COLUMNS))
    plot(arguments.out / f"{NAME}.png", rows)


def plot(path: Path, rows: list[dict[str, Any]]) -> None:
    """Two panels a cell: every ablation, and the refresh intervals, by time and PSNR."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cells = cells_of(row for row in rows if row["psnr_db"] is not None)
    figure, panels = pyplot.subplots(max(len(cells), 1), 2, figsize=(14, 5.5 * max(len(cells), 1)), squeeze=False)
    for pair, (cell, members) in zip(panels, cells.items()):
        for panel, of_intervals in zip(pair, (False, True)):
            panel.set_title(", ".join(str(part) for part in cell))
            _draw(panel, [row for row in members if row["setting"].startswith("interval") is of_intervals])
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw(panel: Any, rows: list[Row]) -> None:
    panel.scatter([row["seconds_over_dense"] for row in rows], [row["psnr_db"] for row in rows], color="black")
    for row in rows:
        place = (row["seconds_over_dense"], row["psnr_db"])
        panel.annotate(row["setting"], place, fontsize=8, xytext=(4, 4), textcoords="offset points")
    panel.set(xlabel="seconds_over_dense", ylabel="PSNR against dense, dB")
    panel.grid(alpha=0.3)
