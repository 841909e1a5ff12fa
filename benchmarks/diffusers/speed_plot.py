"""The paper's three panels for every model: seconds, speedup over dense as shipped, and memory, against resolution."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
Lines = dict[str, list[tuple[int, float]]]

PANELS = (
    ("seconds", "seconds per picture", "log"),
    ("over_dense", "times faster than dense as shipped", "linear"),
    ("peak_gb", "peak memory, GB", "linear"),
)
# None of these is in matplotlib's cycle, from which peers get theirs.
OURS = {"dense": "black", "dense_fast_path": "silver", "paper": "gold", "ours": "navy", "safe_sw": "lime"}
DASHES = {"ours, quality": ":", "ours, fast": "--"}


def lines_of(rows: Iterable[Row], figure: str) -> Lines:
    """A line of (pixels, figure) for every method, `ours` by preset; points that were not measured are left out."""
    found: Lines = {}
    for row in rows:
        if row.get(figure) is not None:
            found.setdefault(label_of(row), []).append((pixels(row), row[figure]))
    return {label: sorted(points) for label, points in found.items()}


def label_of(row: Row) -> str:
    """What a row's line is called."""
    preset = row["setting"].partition(":")[0]
    return f"ours, {preset}" if row["method"] == "ours" else str(row["method"])


def pixels(row: Row) -> int:
    """Width of a row's picture."""
    return int(row["resolution"].partition("x")[0])


def plot(path: Path, rows: Sequence[Row]) -> None:
    """One row of panels a model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    models = list(dict.fromkeys(row["model"] for row in rows))
    figure, panels = pyplot.subplots(len(models), len(PANELS), figsize=(6 * len(PANELS), 4.6 * len(models)), squeeze=False)
    for of_model, model in zip(panels, models, strict=True):
        for panel, (key, text, scale) in zip(of_model, PANELS, strict=True):
            panel.set(title=model, xlabel="pixels, square", ylabel=text, yscale=scale)
            _draw(panel, lines_of([row for row in rows if row["model"] == model], key))
        of_model[0].legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw(panel: Any, lines: Lines) -> None:
    for number, (label, points) in enumerate(lines.items()):
        method = label.partition(",")[0]
        style = {"color": OURS.get(method, f"C{number}"), "linestyle": DASHES.get(label, "-"), "marker": "o" if method in OURS else "."}
        panel.plot(*zip(*points), label=label, linewidth=2 if method in OURS else 1, **style)
    panel.set_xticks(sorted({x for points in lines.values() for x, _ in points}))
    panel.grid(alpha=0.3)
