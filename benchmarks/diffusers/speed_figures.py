"""What the speed bench's samples come to: speed beside both baselines, shares, memory, how close the setting is to dense; and the plot."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..command import panels
from ..measure.methods import Method

Row = dict[str, Any]
Samples = Mapping[Method, Sequence[Row]]
Lines = dict[str, list[tuple[int, float]]]

BASELINES = ("dense", "dense_fast_path")
# Rows beside those of dense, by what is counted.
SHARES = {
    "rows_computed_share": "middle_rows",
    "blocks_computed_share": "feed_forward_rows",
    "attention_computed_share": "attention_rows",
}
PANELS = (
    ("seconds", "seconds per picture", "log"),
    ("over_dense", "times faster than dense as shipped", "linear"),
    ("peak_gb", "peak memory, GB", "linear"),
)
# Drawn with a broader line.
OURS = ("dense", "paper", "ours", "safe_sw")


# Rows


def figures_of(samples: Sequence[Row], of_cell: Samples, steps: int) -> Row:
    """What the samples of a method come to beside both baselines of its cell; figures that cannot be had are None."""
    baselines = {method.name: found for method, found in of_cell.items()}
    dense, fast = (baselines.get(name, []) for name in BASELINES)
    peaks = {key: max((sample[key] for sample in samples if sample[key]), default=None) for key in ("peak_bytes", "reserved_bytes")}
    return {
        "rounds": len(samples),
        "seconds": middle(sample["seconds"] for sample in samples),
        "transformer_seconds": middle(sample["transformer_seconds"] for sample in samples),
        "over_dense": middle(other["seconds"] / sample["seconds"] for other, sample in zip(dense, samples)),
        "over_fast_path": middle(other["seconds"] / sample["seconds"] for other, sample in zip(fast, samples)),
        **{share: middle(sample[key] / other[key] for other, sample in zip(dense or fast, samples)) for share, key in SHARES.items()},
        "selective_cost_over_share": middle(selective_cost(sample, other, steps) for other, sample in zip(fast, samples)),
        **peaks,
        # In 10^9 bytes.
        **{key.replace("bytes", "gb"): value and value / 1e9 for key, value in peaks.items()},
        "notes": sorted({note for sample in samples for note in sample["notes"]}),
    }


def middle(values: Iterable[float | None]) -> float | None:
    """The median; None without any value."""
    found = [value for value in values if value is not None]
    return statistics.median(found) if found else None


def selective_cost(sample: Row, fast: Row, steps: int) -> float | None:
    """A selective step's time in dense steps without masks, over its share of rows; None where there was no such step."""
    if sample["selective_seconds"] is None:
        return None
    return float(sample["selective_seconds"] / (fast["transformer_seconds"] / steps) / sample["selective_share"])


# The plot


def lines_of(rows: Iterable[Row], figure: str) -> Lines:
    """A line of (pixels, figure) for every method, `ours` by preset; points that were not measured are left out."""
    found: Lines = {}
    for row in rows:
        if row.get(figure) is not None:
            label = f"ours, {row['setting'].partition(':')[0]}" if row["method"] == "ours" else str(row["method"])
            found.setdefault(label, []).append((int(row["resolution"].partition("x")[0]), row[figure]))
    return {label: sorted(points) for label, points in found.items()}


def plot(path: Path, rows: Sequence[Row]) -> None:
    """The paper's three panels for every model: seconds, speedup over dense as shipped, and memory, against resolution."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    with panels(path, len(models), len(PANELS), 6, 4.6) as axes:
        for (of_model, model), (number, (key, text, scale)) in itertools.product(zip(axes, models, strict=True), enumerate(PANELS)):
            of_model[number].set(title=model, xlabel="pixels, square", ylabel=text, yscale=scale)
            for label, points in lines_of([row for row in rows if row["model"] == model], key).items():
                of_model[number].plot(*zip(*points), label=label, marker="o", linewidth=2 if label.startswith(OURS) else 1)
            of_model[number].grid(alpha=0.3)
            of_model[number].legend(fontsize=6)
