"""Who stays closer to dense at the same cost: `python -m benchmarks fidelity --out DIR`.

Runs every method side by side in one process, through ComfyUI's own sampler, on the same prompts, seeds and sizes, and compares `ours` with
the best peer at the same measured time. Writes `fidelity.json`, `fidelity.md` and a Pareto plot, `fidelity.png`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from safe_dit_engine.cli.results import environment, markdown_table, save

from ..demo_model.scenes import held_out_scenes, scene_from_seed
from ..measure.journal import SAME_MACHINE, Cell, Journal, Shot
from ..measure.pareto import CELL, Curves, compare, curves_of, near_the_best, of_most_pictures, plot
from .in_process import import_comfyui
from .peers import DENSE, Method, chosen, is_outdated, named, sweep
from .side_by_side import Bench

log = logging.getLogger("safe_dit.bench")

NAME = "fidelity"
TUNING_SEED = 5000
COLUMNS = (
    "method", "setting", *CELL, "prompts", "seeds", "seconds", "seconds_over_dense", "rows_computed_share", "psnr_db", "psnr_db_objects",
    "psnr_db_edges", "ssim", "ms_ssim", "lpips", "oracle_score", "peak_bytes",
)  # fmt: skip
COMPARED = (
    *CELL, "at", "cost", "ours_db", "best_peer", "best_peer_db", "difference_db", "difference_db_low", "difference_db_high",
    "difference_db_median", "closer_share", "difference_db_objects", "difference_db_edges",
)  # fmt: skip
Publish = Callable[[argparse.Namespace, dict[str, Any], list[dict[str, Any]]], None]
# What a row is a result of: the same on both sides, and it need not be measured again.
WHAT = ("method", "setting", *CELL)
IDENTITY = (*WHAT, "set", "prompts", "seeds", "seed")
CAPTION = """\
`seconds` is the median time of the sampler, `seconds_over_dense` the median ratio to the dense run of the same prompt and seed.
`rows_computed_share` counts the rows that pass the middle block. No mask reaches attention in this model, so `dense_fast_path` is `dense`
and is not run twice. An empty PSNR: the picture is the dense one bit for bit, or (`safe_sw`) differs from it on purpose. Rows of fewer
pictures (`prompts` x `seeds`) than others of their cell are of a first round that left their methods behind (`--finals`)."""
COMPARISON_CAPTION = """\
Closeness at the same cost ({cost}), in dB of PSNR against dense, read on each family's Pareto curve by linear interpolation; empty below
its cheapest setting, its best setting above the dearest. `linear_at_our_steps` is `whole_steps_linear` with the steps that our presets
compute: how far the choice of steps alone goes. It is no `best_peer`, whose steps are its own. `difference_db_low` and `_high`: the lead in
95 % of 400 draws of the same pictures with repetition (bootstrap), times as measured; `difference_db_median`: that of the middle picture;
`closer_share`: in how many we are closer than the best peer. Rows of the most pictures of a cell only."""


def main(argv: Sequence[str]) -> int:
    """Measure, print the comparison, write JSON, Markdown and plot."""
    arguments = parse(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    import_comfyui(arguments.device)
    methods = sweep() if arguments.sweep else chosen()
    rows = run(arguments, named(methods, arguments.methods) if arguments.methods else methods, finals=arguments.finals)
    log.info(comparison_table(rows, arguments.cost))
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks fidelity", description=__doc__)
    add_common(parser, NAME)
    parser.add_argument("--methods", nargs="+", default=[], help="only these, beside dense")
    parser.add_argument("--sweep", action="store_true", help="every setting of every method, not only the chosen ones")
    parser.add_argument("--finals", action="store_true", help="with --resume: leave out what earlier rows in DIR show to be far behind")
    parser.add_argument("--cost", choices=["seconds_over_dense", "rows_computed_share"], default="seconds_over_dense")
    return small(parser.parse_args(argv))


def add_common(parser: argparse.ArgumentParser, name: str) -> None:
    """Options this bench shares with the ablation."""
    add_shots(parser, name)
    parser.add_argument("--samplers", nargs="+", default=["euler", "dpmpp_2m"])


def add_shots(parser: argparse.ArgumentParser, name: str) -> None:
    """Options of every bench that makes pictures of prompts."""
    parser.add_argument("--out", type=Path, default=Path("output") / name)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--small", action="store_true", help="256 px, 20 steps, euler, 8 prompts")
    parser.add_argument("--seed", type=int, default=0, help="noise seed of the first picture")
    parser.add_argument("--set", choices=["tuning", "held-out"], default="held-out", help="prompts settings were chosen on, or others")
    parser.add_argument("--resume", action="store_true", help="keep what DIR already has from this machine, single pictures too")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=2, help="pictures of each prompt")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 30])


def small(arguments: argparse.Namespace) -> argparse.Namespace:
    """The arguments, cut down where `--small` asks for it."""
    if arguments.small:
        arguments.sizes, arguments.steps, arguments.samplers = [256], [20], ["euler"]
        arguments.prompts, arguments.seeds = min(arguments.prompts, 8), 1
    return arguments


def run(
    arguments: argparse.Namespace, methods: Sequence[Method], name: str = NAME, publish: Publish | None = None, finals: bool = False
) -> list[dict[str, Any]]:
    """Every cell in turn; what is there so far is published after each. `finals`: without what earlier rows show to be far behind."""
    bench = Bench(arguments.device)
    machine = environment(arguments.device)
    journal = Journal(arguments.out / f"{name}.jsonl", machine, arguments.resume)
    rows = kept_rows(arguments.out / f"{name}.json", machine) if arguments.resume else []
    shots, asked = shots_of(arguments), asked_of(arguments)
    for parts in itertools.product(arguments.sizes, arguments.steps, arguments.samplers):
        cell = Cell(*parts)
        racing = finalists(methods, rows, cell, asked, arguments.cost) if finals else methods
        missing = [method for method in racing if not known(rows, method, cell, asked)]
        if missing or not known(rows, DENSE, cell, asked):
            fresh = [{**row, **asked} for row in bench.measure(cell, missing, shots, journal)]
            rows = merged(rows, fresh)
        (publish or publish_comparison)(arguments, machine, [finite(row) for row in rows])
    return rows


def finalists(methods: Sequence[Method], rows: Sequence[dict[str, Any]], cell: Cell, asked: dict[str, Any], cost: str) -> list[Method]:
    """The methods that could still be the best peer of a cell: without those that rounds of other pictures left behind."""
    in_cell = [row for row in rows if identity(row)[2:5] == _names_of(cell)]
    others = {(row["method"], row["setting"]) for row in in_cell if {key: row[key] for key in asked} != asked}
    # Rows of fewer pictures were left behind before; beside figures of other pictures they could seem to be near again.
    behind = others - near_the_best(of_most_pictures(in_cell), cost)
    return [method for method in methods if (method.name, method.setting) not in behind]


def merged(rows: Sequence[dict[str, Any]], fresh: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows and fresh ones, these in place of rows of the same setting on other pictures; dense comes along and may be known."""
    new = [row for row in fresh if identity(row) not in {identity(old) for old in rows}]
    anew = {tuple(row[key] for key in WHAT) for row in new}
    return [row for row in rows if tuple(row[key] for key in WHAT) not in anew] + new


def shots_of(arguments: argparse.Namespace) -> list[Shot]:
    """The pictures to make in every cell."""
    count = arguments.prompts
    tuning = arguments.set == "tuning"
    scenes = [scene_from_seed(TUNING_SEED + index) for index in range(count)] if tuning else held_out_scenes(count)
    pairs = itertools.product(scenes, range(arguments.seeds))
    return [Shot(scene, arguments.seed + number) for number, (scene, _) in enumerate(pairs)]


def asked_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What every row says of the measurement it belongs to."""
    return {"set": arguments.set, "prompts": arguments.prompts, "seeds": arguments.seeds, "seed": arguments.seed}


def identity(row: dict[str, Any]) -> tuple[Any, ...]:
    """What tells a row from every other."""
    return tuple(row[key] for key in IDENTITY)


def known(rows: Iterable[dict[str, Any]], method: Method, cell: Cell, asked: dict[str, Any]) -> bool:
    """Whether a method has been measured in a cell."""
    wanted = (method.name, method.setting, *_names_of(cell), *asked.values())
    return any(identity(row) == wanted for row in rows)


def _names_of(cell: Cell) -> tuple[Any, ...]:
    return (f"{cell.size}x{cell.size}", cell.steps, cell.sampler)


def kept_rows(path: Path, machine: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of an earlier run, but for those of other presets; none when it ran on another machine or torch."""
    if not path.is_file():
        return []
    old = json.loads(path.read_text(encoding="utf-8"))
    if any(old["environment"][key] != machine[key] for key in SAME_MACHINE):
        log.warning("%s is from another machine or torch; everything is measured again.", path)
        return []
    return [row for row in old["rows"] if not is_outdated(row["method"], row["setting"])]


def publish_comparison(arguments: argparse.Namespace, machine: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write JSON, both tables and the plot of the rows so far."""
    cost = arguments.cost
    result = {"environment": machine, "rows": rows, "comparison": compare(rows, cost)}
    table = "\n\n".join([CAPTION, markdown_table(rows, COLUMNS), COMPARISON_CAPTION.format(cost=cost), comparison_table(rows, cost)])
    save(arguments.out, NAME, result, table)
    plot(arguments.out / f"{NAME}.png", rows, cost)


def comparison_table(rows: Sequence[dict[str, Any]], cost: str) -> str:
    """The comparison with one column a peer."""
    curves: Curves = curves_of(rows, cost)
    return markdown_table(compare(rows, cost), [*COMPARED, *sorted(set(curves) - {"ours"})])


def finite(row: dict[str, Any]) -> dict[str, Any]:
    """The row as JSON can hold it: None for what is infinite."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
