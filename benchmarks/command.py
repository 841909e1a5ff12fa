"""What all benches share: the options of their command lines, how results are rounded and written, how plots are framed."""

from __future__ import annotations

import argparse
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safe_dit_engine.cli.options import Parser, device
from safe_dit_engine.cli.time_left import TimeLeft

# The one logger of all benches; `python -m benchmarks` shows it.
log = logging.getLogger("safe_dit.bench")


class Wrong(ValueError):
    """What is asked for cannot be done; the message is one sentence that says why."""


def parser_of(name: str, about: str | None, small: str, seed: str = "noise seed of the first picture") -> argparse.ArgumentParser:
    """A command line with the options that every bench has; `small` says what `--small` leaves."""
    parser = Parser(f"python -m benchmarks {name}", about)
    parser.add_argument("--out", type=Path, default=Path("output") / name, help="folder for results")
    parser.add_argument("--device", type=device, choices=["cpu", "cuda"], default="cpu", help="what to measure on")
    parser.add_argument("--small", action="store_true", help=small)
    parser.add_argument("--seed", type=int, default=0, help=seed)
    return parser


def in_turn(cells: Sequence[Any], work: Sequence[float]) -> Iterator[Any]:
    """The cells of a measurement one after the other; in between, how far all of them are. `work`: how long each takes, in any unit."""
    progress = TimeLeft("all cells", log.info)
    for number, cell in enumerate(cells, 1):
        yield cell
        if number < len(cells):
            progress.tell(sum(work[:number]), sum(work[number:]))


def rounded(value: Any, name: str = "") -> Any:
    """Decibels (by the name) to two decimals, other floats to four significant figures, None for what is not finite; also inside of
    dictionaries and lists."""
    if isinstance(value, Mapping):
        return {key: rounded(part, key) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(part, name) for part in value]
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return None
    return round(value, 2) if "db" in name.split("_") else float(f"{value:.4g}")


def save(folder: Path, name: str, result: Mapping[str, Any], text: str) -> None:
    """Write `name`.json, rounded and a line a row, and `name`.md."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [f"{json.dumps(key)}: {_lines(value)}" for key, value in rounded(result).items()]
    (folder / f"{name}.json").write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(text + "\n", encoding="utf-8")


def _lines(value: Any) -> str:
    if not isinstance(value, list):
        return json.dumps(value)
    return "[\n" + ",\n".join(json.dumps(row) for row in value) + "\n]"


@contextmanager
def panels(path: Path, down: int, across: int, width: float, height: float) -> Iterator[Any]:
    """Axes `[down, across]` of a plot, each `width` x `height` inches; the plot is written when the block ends."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(down, across, figsize=(width * across, height * down), squeeze=False)
    yield axes
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
