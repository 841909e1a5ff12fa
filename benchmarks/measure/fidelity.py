"""Who stays closer to dense at the same cost: what the measurements in ComfyUI and in `diffusers` share.

Every method in one process and in turn, on the same prompts, seeds and sizes; `ours` beside the best peer at the same cost. What is there
so far is published after each cell; single pictures are kept in a journal, from which `--resume` goes on.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from safe_dit_engine.cli.options import at_least, picture_edge
from safe_dit_engine.cli.results import environment, markdown_table

from ..command import in_turn, log, parser_of, rounded, save
from ..demo_model.scenes import held_out_scenes, scene_from_seed
from .closeness import judge, row_of
from .in_turn import Cell, Journal, Make, Shot, make_in_turn
from .methods import Method
from .pareto import CELL, OURS, compare, curves_of, plot

TUNING_SEED = 5000
# Judged by what is in the picture: it differs from dense on purpose.
NOT_COMPARED = "safe_sw"
COLUMNS = (
    "method", "setting", *CELL, "prompts", "seeds", "seconds", "seconds_over_dense", "rows_computed_share", "psnr_db", "psnr_db_objects",
    "psnr_db_edges", "ssim", "oracle_score", "peak_bytes",
)  # fmt: skip
# Shown where there are any.
MORE_COLUMNS = ("default", "skipped")
COMPARED = (
    *CELL, "at", "cost", "ours_db", "best_peer", "best_peer_db", "difference_db", "difference_db_low", "difference_db_high",
    "difference_db_median", "closer_share", "difference_db_objects", "difference_db_edges",
)  # fmt: skip
COMPARISON_CAPTION = """\
Closeness at the same cost ({cost}), in dB of PSNR against dense, read on each family's Pareto curve by linear interpolation; empty below
its cheapest setting, its best setting above the dearest. `linear_at_our_steps` is `whole_steps_linear` with the steps that our presets
compute: how far the choice of steps alone goes. It is no `best_peer`, whose steps are its own. `difference_db_low` and `_high`: the lead in
95 % of 400 draws of the same pictures with repetition (bootstrap), times as measured; `difference_db_median`: that of the middle picture;
`closer_share`: in how many we are closer than the best peer."""

Rows = list[dict[str, Any]]


# The command line


def options(name: str, about: str | None, caption: str, small: str = "256 px, 20 steps, euler, 8 prompts") -> argparse.ArgumentParser:
    """Options of such measurements; `caption` stands above the table of what was measured."""
    parser = parser_of(name, about, small)
    parser.add_argument("--set", choices=["tuning", "held-out"], default="held-out", help="prompts settings were chosen on, or others")
    parser.add_argument("--resume", action="store_true", help="keep the pictures that DIR has from this machine and these settings")
    parser.add_argument("--prompts", type=at_least(1), default=32, help="how many captions")
    parser.add_argument("--seeds", type=at_least(1), default=2, help="pictures of each prompt")
    parser.add_argument("--sizes", type=picture_edge, nargs="+", default=[256, 512], help="edges in pixels")
    parser.add_argument("--steps", type=at_least(1), nargs="+", default=[20, 30], help="sampling steps")
    parser.add_argument("--methods", nargs="+", default=[], help="only these, beside dense")
    costs = ["seconds_over_dense", "rows_computed_share"]
    parser.add_argument("--cost", choices=costs, default=costs[0], help="what methods are compared at")
    parser.set_defaults(samplers=["euler"], name=name, caption=caption)
    return parser


def read(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """The arguments, cut down where `--small` asks for it."""
    arguments = parser.parse_args(argv)
    if arguments.small:
        arguments.sizes, arguments.steps, arguments.samplers = [256], [20], ["euler"]
        arguments.prompts, arguments.seeds = min(arguments.prompts, 8), 1
    return arguments


def shots_of(arguments: argparse.Namespace) -> list[Shot]:
    """The pictures to make in every cell."""
    count = arguments.prompts
    tuning = arguments.set == "tuning"
    scenes = [scene_from_seed(TUNING_SEED + index) for index in range(count)] if tuning else held_out_scenes(count)
    pairs = itertools.product(scenes, range(arguments.seeds))
    return [Shot((scene,), (arguments.seed + number,)) for number, (scene, _) in enumerate(pairs)]


def cells_of(arguments: argparse.Namespace) -> Iterator[Cell]:
    """The cells in turn; in between, how far all of them are."""
    cells = [Cell(*parts) for parts in itertools.product(arguments.sizes, arguments.steps, arguments.samplers)]
    return in_turn(cells, [cell.size**2 * cell.steps for cell in cells])


def asked_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What every row says of the measurement it belongs to."""
    return {"set": arguments.set, "prompts": arguments.prompts, "seeds": arguments.seeds, "seed": arguments.seed}


# Measuring


def run(arguments: argparse.Namespace, make: Make, methods: Sequence[Method]) -> Rows:
    """Every cell in turn, `methods[0]` being dense."""
    machine = environment(arguments.device)
    journal = Journal(arguments.out / f"{arguments.name}.jsonl", machine, arguments.resume)
    shots, asked, rows = shots_of(arguments), asked_of(arguments), Rows()
    for cell in cells_of(arguments):
        rows += [{**row, **asked} for row in measure(make, methods, cell, shots, journal)]
        publish(arguments, machine, rows)
    log.info(comparison_table(rounded(rows), arguments.cost))
    return rows


def measure(make: Make, methods: Sequence[Method], cell: Cell, shots: Sequence[Shot], journal: Journal) -> Rows:
    """One row a method, dense first; of one that does not run, why. Pictures that the journal has are not made again."""
    refused = make_in_turn(make, judge, methods, cell, shots, journal, warm_up=cell)
    found = []
    for method in methods:
        compared = method.name != NOT_COMPARED
        figures = {"skipped": refused[method]} if method in refused else row_of(journal.records(method, cell, shots), compared)
        found.append({**method.described(), "model": "demo", **cell.described(), **figures})
    return found


# The page


def publish(arguments: argparse.Namespace, machine: dict[str, Any], rows: Rows) -> None:
    """Write JSON, both tables and the plot of the rows so far."""
    name, cost, rows = arguments.name, arguments.cost, rounded(rows)
    columns = [*COLUMNS, *(column for column in MORE_COLUMNS if any(column in row for row in rows))]
    caption = COMPARISON_CAPTION.format(cost=cost)
    text = "\n\n".join([arguments.caption, markdown_table(rows, columns), caption, comparison_table(rows, cost)])
    ran = [row for row in rows if "skipped" not in row]
    save(arguments.out, name, {"environment": machine, "rows": rows, "comparison": compare(ran, cost)}, text)
    plot(arguments.out / f"{name}.png", ran, cost)


def comparison_table(rows: Rows, cost: str) -> str:
    """The comparison with one column a peer."""
    ran = [row for row in rows if "skipped" not in row]
    return markdown_table(compare(ran, cost), [*COMPARED, *sorted(set(curves_of(ran, cost)) - {OURS})])
