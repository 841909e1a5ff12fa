"""What the speed bench's samples come to: speed beside both baselines, shares, memory, and how close the same setting is to dense."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .models import image_tokens

Row = dict[str, Any]

BASELINES = ("dense", "dense_fast_path")
OWN = (*BASELINES, "paper", "ours", "safe_sw")
CELL = ("model", "resolution", "steps", "small", "dtype", "seed")
IDENTITY = (*CELL, "method", "setting")
MEMORY = ("peak_bytes", "reserved_bytes")
SHARES = {
    "rows_computed_share": "middle_rows",
    "blocks_computed_share": "feed_forward_rows",
    "attention_computed_share": "attention_rows",
}
# Figures of the fidelity measurement, by their names here.
JOINED = {"psnr_db": "psnr_db", "ssim": "ssim", "oracle_score": "oracle_score", "demo_seconds_over_dense": "seconds_over_dense"}
COMPARED = (
    "model", "resolution", "setting", "over_dense", "over_fast_path", "psnr_db", "fastest_peer", "peer_psnr_db", "over_fastest_peer",
)  # fmt: skip


def identity(row: Row) -> tuple[Any, ...]:
    """What tells a row from every other."""
    return tuple(row[key] for key in IDENTITY)


def raw(row: Row) -> Row:
    """What was measured, without what was computed from it."""
    return {key: row[key] for key in (*IDENTITY, "judged_as", "samples", "skipped")}


def judged(path: Path) -> list[Row]:
    """Rows of the fidelity measurement; none where there is none."""
    found: list[Row] = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    return found


def completed(rows: Iterable[Row], fidelity: Sequence[Row]) -> list[Row]:
    """The rows with what follows from their samples, from both baselines of their cell, and from the fidelity measurement."""
    known = list(rows)
    baselines = [row for row in known if row["method"] in BASELINES]
    return [
        complete(row, {base["method"]: base["samples"] for base in baselines if same_cell(row, base)}, fidelity) for row in known
    ]


def complete(row: Row, baselines: dict[str, list[Row]], fidelity: Sequence[Row]) -> Row:
    """One row in full; figures that cannot be had are None."""
    samples: list[Row] = row["samples"]
    dense, fast = (baselines.get(name, []) for name in BASELINES)
    size = int(row["resolution"].partition("x")[0])
    peak, reserved = (max((sample[key] for sample in samples if sample[key] is not None), default=None) for key in MEMORY)
    return {
        **raw(row),
        "image_tokens": image_tokens(size),
        "rounds": len(samples),
        "seconds": middle(sample["seconds"] for sample in samples),
        "transformer_seconds": middle(sample["transformer_seconds"] for sample in samples),
        "over_dense": middle(other["seconds"] / sample["seconds"] for other, sample in zip(dense, samples)),
        "over_fast_path": middle(other["seconds"] / sample["seconds"] for other, sample in zip(fast, samples)),
        **{share: middle(sample[key] / other[key] for other, sample in zip(dense or fast, samples)) for share, key in SHARES.items()},
        "selective_cost_over_share": middle(selective_cost(sample, other, row["steps"]) for other, sample in zip(fast, samples)),
        "peak_bytes": peak,
        "reserved_bytes": reserved,
        "peak_gb": in_gb(peak),
        "reserved_gb": in_gb(reserved),
        **fidelity_of(row, fidelity),
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


def in_gb(size: int | None) -> float | None:
    """Bytes in 10^9 bytes."""
    return None if size is None else size / 1e9


def fidelity_of(row: Row, fidelity: Sequence[Row]) -> Row:
    """How close the same setting comes to dense on the demo model, with the number of steps nearest to this row's."""
    same = [other for other in fidelity if (other["method"], other["setting"]) == (row["method"], row["judged_as"])]
    nearest = min(same, key=lambda other: abs(other["steps"] - row["steps"]), default={})
    return {name: nearest.get(key) for name, key in JOINED.items()}


def compared(rows: Sequence[Row]) -> list[Row]:
    """Each of our presets beside the fastest peer of its cell."""
    return [against(row, [other for other in rows if same_cell(row, other)]) for row in rows if row["method"] == "ours" and row["samples"]]


def same_cell(row: Row, other: Row) -> bool:
    """Whether two rows may be compared."""
    return all(row[key] == other[key] for key in CELL)


def against(row: Row, cell: Sequence[Row]) -> Row:
    """One of our rows beside the fastest peer."""
    peers = [other for other in cell if other["method"] not in OWN and other["samples"]]
    peer = min(peers, key=lambda other: float(other["seconds"]), default=None)
    beside = {
        "fastest_peer": None if peer is None else peer["method"],
        "peer_psnr_db": None if peer is None else peer["psnr_db"],
        "over_fastest_peer": None if peer is None else middle(a["seconds"] / b["seconds"] for a, b in zip(peer["samples"], row["samples"])),
    }
    return {**{key: row[key] for key in COMPARED if key in row}, **beside, "setting": row["setting"].partition(":")[0]}
