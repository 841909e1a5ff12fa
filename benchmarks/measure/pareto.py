"""Who is closer to dense at the same cost: Pareto curves of cost and PSNR, read by interpolation, as a table and as a plot."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..command import panels

Row = Mapping[str, Any]
Point = tuple[float, float]
Curves = dict[str, list[Point]]

CELL = ("resolution", "steps", "sampler")
# Where the curves are read besides at the settings of `ours`, as shares of dense.
READ_AT = (0.30, 0.40, 0.55)
# Closeness in the objects and at their outlines is compared as well, each with the peer that is best at it.
DETAILS = ("objects", "edges")
# The interval of a lead: 95 % of as many draws of the pictures, with repetition (bootstrap).
DRAWS, INTERVAL = 400, (2.5, 97.5)
OURS = "ours"
# Has a curve but is no peer: it borrows the steps that we chose, and shows how much of our lead is their choice.
AT_OUR_STEPS = "linear_at_our_steps"
# Not on a curve: the reference itself, also without its masks, and what differs from it on purpose.
OFF_CURVE = ("dense", "dense_fast_path", "safe_sw")


# Curves


def pareto(points: Iterable[Point]) -> list[Point]:
    """The (cost, quality) points that no cheaper or equally dear one beats, from cheap to dear."""
    kept: list[Point] = []
    for cost, quality in sorted(points, key=lambda point: (point[0], -point[1])):
        if not kept or quality > kept[-1][1]:
            kept.append((cost, quality))
    return kept


def quality_at(curve: Sequence[Point], cost: float) -> float | None:
    """Quality a Pareto curve reaches at `cost`: on the line between its points, its best above them, None below its cheapest."""
    costs, qualities = zip(*curve) if curve else ((), ())
    return None if not costs or cost < costs[0] else float(np.interp(cost, costs, qualities))


def curves_of(rows: Iterable[Row], cost: str = "seconds_over_dense", quality: str = "psnr_db") -> Curves:
    """Pareto curve of every family in one cell; rows without a finite quality are left out."""
    points: dict[str, list[Point]] = {}
    for row in rows:
        if row["method"] not in OFF_CURVE and row.get(quality) is not None and math.isfinite(row[quality]):
            points.setdefault(row["method"], []).append((row[cost], row[quality]))
    return {family: pareto(found) for family, found in points.items()}


def cells_of(rows: Iterable[Row]) -> dict[tuple[Any, ...], list[Row]]:
    """Rows by size, step count and sampler."""
    cells: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        cells.setdefault(tuple(row[key] for key in CELL), []).append(row)
    return cells


# The comparison


def compare(rows: Sequence[Row], cost: str = "seconds_over_dense") -> list[dict[str, Any]]:
    """`ours` against the best peer at the same cost: at each of our settings, and at the shares `READ_AT`, for every cell.

    `difference_db_low` and `_high` are what the lead would be with other pictures, `difference_db_median` is that of the middle picture
    and `closer_share` the share of pictures in which we are ahead: None where rows do not say each picture's PSNR.
    """
    compared = []
    for cell, members in cells_of(rows).items():
        found = _readings(members, cost)
        details = {f"difference_db_{detail}": _readings(members, cost, f"psnr_db_{detail}") for detail in DETAILS}
        for number, (reading, (low, high)) in enumerate(zip(found, _intervals(members, cost), strict=True)):
            more = {key: of_detail[number]["difference_db"] for key, of_detail in details.items()}
            interval = {"difference_db_low": low, "difference_db_high": high}
            compared.append({**dict(zip(CELL, cell)), **reading, **interval, **_of_single_pictures(members, cost, reading), **more})
    return compared


def _readings(rows: Sequence[Row], cost: str, quality: str = "psnr_db") -> list[dict[str, Any]]:
    """Ours and each peer at each of our settings, then at `READ_AT`."""
    curves = curves_of(rows, cost, quality)
    ours = curves.pop(OURS, [])
    places = [(row["setting"], row[cost], row[quality]) for row in rows if row["method"] == OURS]
    found = []
    for at, where, own in places + [(f"{share:.0%} of dense", share, quality_at(ours, share)) for share in READ_AT]:
        peers = {family: quality_at(curve, where) for family, curve in sorted(curves.items())}
        known = {family: value for family, value in peers.items() if value is not None and family != AT_OUR_STEPS}
        best = max(known, key=lambda family: known[family], default=None)
        lead = None if own is None or best is None else own - known[best]
        best_db = None if best is None else known[best]
        beside = {"ours_db": own, "best_peer": best, "best_peer_db": best_db, "difference_db": lead}
        found.append({"at": at, "cost": where, **beside, **peers})
    return found


def _intervals(rows: Sequence[Row], cost: str) -> list[tuple[float | None, float | None]]:
    """For each reading, between which leads `INTERVAL` of the draws of pictures lie; the cost stays."""
    compared = _with_each_picture(rows)
    if not compared:
        return [(None, None) for _ in _readings(rows, cost)]
    table = np.array([row["psnr_db_each"] for row in compared])
    draws = np.random.default_rng(0).integers(table.shape[1], size=(DRAWS, table.shape[1]))
    leads = []
    for means in table[:, draws].mean(axis=2).T.tolist():
        drawn = [{**row, "psnr_db": value} for row, value in zip(compared, means, strict=True)]
        leads.append([reading["difference_db"] for reading in _readings(drawn, cost)])
    # A lead that some draw does not have is no number.
    bounds = np.percentile(np.array(leads, float), INTERVAL, axis=0).T.tolist()
    return [(None, None) if math.isnan(low) else (low, high) for low, high in bounds]


def _with_each_picture(rows: Sequence[Row]) -> list[Row]:
    """The rows that curves are made of; none where not all of them say the PSNR of each of the same pictures."""
    compared = [row for row in rows if row["method"] not in OFF_CURVE]
    counts = {len(row.get("psnr_db_each") or []) for row in compared}
    return compared if len(counts) == 1 and 0 not in counts else []


def _of_single_pictures(rows: Sequence[Row], cost: str, reading: Mapping[str, Any]) -> dict[str, float | None]:
    """How single pictures compare: one that tips over into another picture can outweigh the mean of all others."""
    if reading["difference_db"] is None or not _with_each_picture(rows):
        return {"difference_db_median": None, "closer_share": None}
    own = [row["psnr_db_each"] for row in rows if (row["method"], row["setting"]) == (OURS, reading["at"])]
    ours = own[0] if own else _each_at(rows, cost, OURS, reading["cost"])
    leads = np.subtract(ours, _each_at(rows, cost, reading["best_peer"], reading["cost"]))
    return {"difference_db_median": float(np.median(leads)), "closer_share": float((leads > 0).mean())}


def _each_at(rows: Sequence[Row], cost: str, family: str, where: float) -> list[float]:
    """Each picture's PSNR where the Pareto curve of a family, which reaches there, is at a cost."""
    each = {(row[cost], row["psnr_db"]): row["psnr_db_each"] for row in rows if row["method"] == family}
    curve = curves_of(rows, cost)[family]
    costs = [point[0] for point in curve]
    return [float(np.interp(where, costs, values)) for values in zip(*(each[point] for point in curve), strict=True)]


# The plot


def plot(path: Path, rows: Sequence[Row], cost: str = "seconds_over_dense") -> None:
    """One panel a cell, two in a row: every setting as a dot, every family's Pareto curve as a line, `ours` in front."""
    cells = cells_of(rows)
    across = min(2, len(cells))
    families = sorted({row["method"] for row in rows} - {OURS, *OFF_CURVE})
    colours = {family: f"C{index}" for index, family in enumerate(families)}
    with panels(path, math.ceil(len(cells) / across), across, 7, 5) as axes:
        for panel in axes.flat[len(cells) :]:
            panel.remove()
        for panel, (cell, members) in zip(axes.flat, cells.items()):
            panel.set(title=", ".join(str(part) for part in cell), xlabel=f"{cost}", ylabel="PSNR against dense, dB")
            for family, curve in sorted(curves_of(members, cost).items()):
                dots = [(row[cost], row["psnr_db"]) for row in members if row["method"] == family and row["psnr_db"] is not None]
                _draw(panel, family, curve, dots, colours.get(family, "black"))
            panel.grid(alpha=0.3)
            panel.legend(fontsize=8)


def _draw(panel: Any, family: str, curve: list[Point], dots: list[Point], colour: str) -> None:
    front = family == OURS
    panel.scatter(*zip(*dots), s=40 if front else 8, color=colour, alpha=1.0 if front else 0.35)
    panel.plot(*zip(*curve), color=colour, linewidth=2.5 if front else 1.2, label=family, zorder=3 if front else 2)
