"""How good pictures are that differ from dense on purpose: `python -m benchmarks quality --out DIR`.

The speed-up dial and peers at the same share of rows, on held-out scenes, through ComfyUI's own sampler. Writes `quality.json`,
`quality.md` and `quality.png` after each cell; single pictures are kept in a journal, from which `--resume` goes on. The classifier behind
the kernel distance is trained first (`classifier.pt`), in a few minutes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from safe_dit_engine.cli.options import at_least
from safe_dit_engine.cli.results import environment, markdown_table
from safe_dit_engine.presets import at_speedup
from safe_dit_engine.steps.plan import MAX_SPEEDUP

from ..command import log, panels, rounded, save
from ..demo_model.classifier import Classifier, trained
from ..measure import closeness, fidelity
from ..measure.distances import distance_of, mean_of, pair_terms
from ..measure.fidelity import Rows, asked_of, options, read, shots_of
from ..measure.in_turn import Cell, Journal, Make, Record, Sample, Shot, make_in_turn
from ..measure.methods import Method, fewer_steps, named
from ..measure.pareto import CELL, OURS, cells_of
from ..measure.whole_steps import spread_out
from .bench import Bench
from .fidelity import DENSE, cached, configured, reused, unchanged
from .in_process import import_comfyui, known_names

NAME, FEW = "quality", 4
# Figures with an interval, and what the plot calls those it shows.
ESTIMATES = ("oracle_score", "oracle_difference", "distance_to_dense", "distance_to_scenes", "distance_difference")
SHOWN = {"oracle_score": "oracle score", "distance_to_dense": "kernel distance to dense", "distance_to_scenes": "kernel distance to scenes"}
COLUMNS = ("method", "setting", *CELL, "pictures", "rows_computed_share", "seconds_over_dense", *ESTIMATES, "sharpness", "psnr_db")
CAPTION = """\
Each picture is of another caption, with the same noise for every method. In brackets: 95 % of draws of the pictures with repetition
(bootstrap); a difference whose bracket holds 0 is none that these pictures can show. Brackets of few pictures, below about 20, are too
narrow to go by.

- `rows_computed_share`: rows that pass the model's middle block, over those of dense; a step on a quarter of the tokens counts a quarter.
  It says nothing of the work around the blocks. `seconds_over_dense`, the median ratio of sampler times to dense of the same captions, has
  that, and the machine's moods.
- `oracle_score`: the share of colours, shapes and places of things that are right, read by rules; `oracle_difference` is to dense, picture
  by picture. It tells whether the prompt was followed. It does not see texture, background, or how well a thing is drawn.
- `distance_to_dense`, `distance_to_scenes`: kernel distance (that of KID, unbiased, so it can fall below 0) of all pictures to those of
  dense, and to true pictures of the same captions, by features of a classifier of scenes; `distance_difference` is the second less that of
  dense. It tells whether the pictures as a whole are of the same kind. It says nothing of single pictures or of what the classifier
  ignores; its scale is its own, so compare it only inside this table.
- `sharpness`: mean gradient of a picture over that of dense. Below 1 detail is lost or edges are soft. Noise and false detail raise it, and
  it does not know which detail is right.
- `psnr_db`: to dense. It tells whether it is the same picture. It cannot tell a worse picture from another one that is as good."""


# Methods


SPEEDUPS = (1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
# Of EasyCache, threshold and the share of the run from which on it may skip, by the speed-up that comes of it (about).
THRESHOLDS = {2.0: (0.15, 0.15), 3.0: (0.7, 0.15), 4.0: (3.0, 0.1), 5.0: (3.0, 0.05)}


def methods(speedups: Sequence[float] = SPEEDUPS) -> list[Method]:
    """All but dense, each where it computes about so many times less; the dial as far as it goes. `express` is the dial at 5."""
    presets = {f"speedup {speedup:g}": at_speedup(speedup) for speedup in speedups if speedup <= MAX_SPEEDUP}
    ours = [Method(OURS, text, configured(partition=preset.partition, schedule=preset.schedule)) for text, preset in presets.items()]
    shares = [round(100 / speedup) for speedup in speedups]
    return [*ours, *fewer_steps(unchanged, shares), *whole_steps(shares), *caches(speedups)]


def whole_steps(shares: Sequence[int]) -> Iterator[Method]:
    """Whole steps reused as they are, more of them computed early, and extrapolated between evenly spaced ones."""
    for share in shares:
        early, even = (partial(spread_out, share=share / 100, power=power, last=False) for power in (1.2, 1.0))
        yield Method("whole_steps_hold", f"{share}% rather early", reused(early, 0, 1.0))
        yield Method("whole_steps_linear", f"{share}% even, x0.6", reused(even, 1, 0.6))


def caches(speedups: Sequence[float]) -> Iterator[Method]:
    """EasyCache, where a threshold is known."""
    for threshold, start in (THRESHOLDS[speedup] for speedup in speedups if speedup in THRESHOLDS):
        yield Method("easycache", f"threshold {threshold}, {start} to 0.95", partial(cached, "EasyCache", threshold, start, 0.95))


# The measurement


def main(argv: Sequence[str]) -> int:
    """Measure, write JSON, Markdown and plot."""
    arguments = parse(argv)
    chosen = named(methods(arguments.speedups), arguments.methods)
    import_comfyui(arguments.device)
    known_names("sampler", arguments.samplers)
    run(arguments, Bench(arguments.device).sample, [DENSE, *chosen], trained(arguments.out))
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = parser_of_quality(NAME, __doc__, small=f"512 px, 20 steps, euler, {FEW} prompts")
    parser.add_argument("--speedups", type=at_least(1, float), nargs="+", default=SPEEDUPS, help="where each method is tried")
    parser.add_argument("--name", help="of the files that are written")
    arguments = read(parser, argv)
    if arguments.small:  # below 512 px there are no coarse steps
        arguments.sizes, arguments.prompts = [512], min(arguments.prompts, FEW)
    return arguments


def parser_of_quality(name: str, about: str | None, small: str) -> argparse.ArgumentParser:
    """Options of the benches that judge pictures as this one does."""
    parser = options(name, about, CAPTION, small=small)
    parser.add_argument("--samplers", nargs="+", help="ComfyUI's names")
    parser.set_defaults(samplers=["euler", "dpmpp_2m"], prompts=64, seeds=1, sizes=[512], steps=[20], cost="rows_computed_share")
    return parser


def run(arguments: argparse.Namespace, make: Make, chosen: Sequence[Method], classifier: Classifier) -> Rows:
    """Every cell in turn, `chosen[0]` being dense."""
    machine = environment(arguments.device)
    journal = Journal(arguments.out / f"{arguments.name}.jsonl", machine, arguments.resume)
    shots, rows = shots_of(arguments), Rows()
    for cell in fidelity.cells_of(arguments):
        found = measure(make, classifier, chosen, cell, shots, journal)
        rows += [{**row, **asked_of(arguments)} for row in found]
        publish(arguments, machine, rows)
    return rows


def measure(
    make: Make, classifier: Classifier, chosen: Sequence[Method], cell: Cell, shots: Sequence[Shot], journal: Journal
) -> Iterator[dict[str, Any]]:
    """One row a method, dense first; of one that does not run, why."""
    refused = make_in_turn(make, partial(judge, classifier), chosen, cell, shots, journal, warm_up=cell)
    truth = classifier.features(np.stack([scene.render(cell.size) for shot in shots for scene in shot.scenes]))
    dense = journal.records(chosen[0], cell, shots)
    for method in chosen:
        records = journal.records(method, cell, shots)
        figures = {"skipped": refused[method]} if method in refused else figures_of(records, dense, truth)
        yield {**method.described(), "model": "demo", **cell.described(), **figures}


def judge(classifier: Classifier, sample: Sample, reference: Callable[[], Sample], shot: Shot) -> Record:
    """What is kept of one picture: its closeness to dense, how sharp it is beside it, and its features."""
    sharp = [sharpness(found.pictures[0]) for found in (sample, reference())]
    features = [round(value, 4) for value in classifier.features(sample.pictures)[0].tolist()]
    return {**closeness.judge(sample, reference, shot), "sharpness": sharp[0] / sharp[1], "features": features}


def sharpness(picture: np.ndarray) -> float:
    """The mean gradient of a picture `[H, W, 3]`: how much neighbouring pixels differ."""
    return float(np.mean([np.abs(np.diff(picture, axis=axis)).mean() for axis in (0, 1)]))


def figures_of(records: Sequence[Record], dense: Sequence[Record], truth: np.ndarray) -> dict[str, Any]:
    """Every figure of one method, from the records of its pictures and dense's, and the features of true pictures, all in one order."""
    own, other = (np.array([record["features"] for record in found]) for found in (records, dense))
    scores, dense_scores = (np.array([record["oracle_score"] for record in found]) for found in (records, dense))
    to_scenes, dense_to_scenes = pair_terms(own, truth), pair_terms(other, truth)
    estimates = (
        mean_of(scores), mean_of(scores - dense_scores), distance_of(pair_terms(own, other)), distance_of(to_scenes),
        distance_of(to_scenes - dense_to_scenes),
    )  # fmt: skip
    found = {**closeness.row_of(records, compared=True), "sharpness": float(np.mean([record["sharpness"] for record in records]))}
    for name, estimate in zip(ESTIMATES, estimates, strict=True):
        found |= estimate.under(name)
    return {"pictures": len(records), **found}


# The page


def publish(arguments: argparse.Namespace, machine: dict[str, Any], rows: Rows) -> None:
    """Write JSON, table and plot of the rows so far."""
    columns = [*COLUMNS, *(["skipped"] if any("skipped" in row for row in rows) else [])]
    table = markdown_table([in_words(row) for row in rounded(rows)], columns)
    log.info(table)
    save(arguments.out, arguments.name, {"environment": machine, "rows": rows}, f"{CAPTION}\n\n{table}")
    cells = cells_of(row for row in rows if "skipped" not in row)
    with panels(arguments.out / f"{arguments.name}.png", len(cells), len(SHOWN), 6, 4.5) as axes:
        for across, (cell, members) in zip(axes, cells.items()):
            for panel, quality in zip(across, SHOWN):
                draw(panel, members, arguments.cost, quality)
                panel.set(title=", ".join(map(str, cell)), xlabel=arguments.cost, ylabel=SHOWN[quality])


def in_words(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose estimates stand with their intervals."""
    known = [name for name in ESTIMATES if row.get(name) is not None]
    return {**row, **{name: f"{row[name]:.3g} ({row[f'{name}_low']:.3g} to {row[f'{name}_high']:.3g})" for name in known}}


def draw(panel: Any, rows: Sequence[Mapping[str, Any]], cost: str, quality: str) -> None:
    """A line with intervals for each method, ours in front, and dense as a line across."""
    for number, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
        keys = (cost, quality, f"{quality}_low", f"{quality}_high")
        known = sorted(tuple(row[key] for key in keys) for row in rows if row["method"] == method)
        if method == DENSE.name:
            panel.axhline(known[0][1], color="grey", linestyle="--", label=method)
            continue
        costs, values, low, high = np.array(known).T
        ours = {"color": "black", "linewidth": 2.5, "zorder": 3} if method == OURS else {"color": f"C{number}", "linewidth": 1.0}
        # By a percentile interval the figure itself may lie outside of it.
        reach = np.maximum([values - low, high - values], 0.0)
        panel.errorbar(costs, values, reach, marker="o", markersize=4, elinewidth=0.8, capsize=2, label=method, **ours)
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
