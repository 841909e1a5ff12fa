"""What a selective step costs beside a dense one, on the demo model in real ComfyUI: `python -m benchmarks cost --out DIR`.

A dense run and one with selective steps in turn, so that a slow moment of the machine hits both; each model evaluation, cond and uncond in
a batch, is timed from outside the pack. `cost_over_share` is the promise: the time of a selective step over its share of rows (text rows
counted), relative to dense. The same figure for other models, in `diffusers`: `speed`, `selective_cost_over_share`.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from safe_dit_engine.cli.options import at_least
from safe_dit_engine.cli.results import environment, markdown_table
from safe_dit_engine.report import StepRecord
from safe_dit_engine.steps.plan import ScheduleConfig, StepKind
from safe_dit_engine.tokens.partition import PartitionConfig

from ..command import in_turn, log, parser_of, save
from ..demo_model.scenes import held_out_scenes
from ..measure.in_turn import Cell, Journal, Record, Shot, make_in_turn
from ..measure.methods import Method
from .bench import NODE, Bench
from .fidelity import DENSE, configured
from .in_process import import_comfyui

NAME = "cost"
KEEP_RATIOS = (0.5, 0.25, 0.1)
# One warm-up step, then two selective ones before each refresh.
STEPS, INTERVAL, WARMUP = 6, 3, 1
COLUMNS = (
    "model", "resolution", "image_tokens", "keep_ratio", "rows_computed_share", "dense_seconds", "selective_over_dense", "cost_over_share",
    "refresh_over_dense", "warmup_over_dense",
)  # fmt: skip


class Timed(NamedTuple):
    """Seconds of each model evaluation of a run, and what the pack reports of each."""

    seconds: list[float]
    records: Sequence[StepRecord]


def main(argv: Sequence[str]) -> int:
    """Measure, log the table, write JSON and Markdown."""
    parser = parser_of(NAME, __doc__, "1,024 image tokens only")
    parser.add_argument("--rounds", type=at_least(1), default=8, help="runs of each way")
    arguments = parser.parse_args(argv)
    import_comfyui(arguments.device)
    bench, sizes = Bench(arguments.device), (512,) if arguments.small else (512, 768)
    cells = in_turn(list(itertools.product(sizes, KEEP_RATIOS)), [size**2 for size in sizes for _ in KEEP_RATIOS])
    rows = [measure(bench, size, keep, arguments.rounds, arguments.seed) for size, keep in cells]
    table = markdown_table(rows, COLUMNS)
    save(arguments.out, NAME, {"environment": environment(arguments.device), "rows": rows}, table)
    log.info(table)
    return 0


def measure(bench: Bench, size: int, keep: float, rounds: int, seed: int) -> dict[str, Any]:
    """One row: the kinds of step at `size` pixels, relative to dense."""
    schedule = ScheduleConfig(refresh_interval=INTERVAL)
    change = configured(partition=PartitionConfig(keep_ratio=keep, warmup_steps=WARMUP), schedule=schedule)
    ours, cell, journal = Method("ours", f"keep {keep}", change), Cell(size, STEPS, "euler"), Journal()
    shots = [Shot(tuple(held_out_scenes(1)), (seed + number,)) for number in range(rounds)]
    make_in_turn(partial(evaluations, bench), judge, [DENSE, ours], cell, shots, journal, warm_up=cell)
    ratios: dict[StepKind, list[float]] = {kind: [] for kind in StepKind}
    for kind, ratio in itertools.chain(*(record["over_dense"] for record in journal.records(ours, cell, shots))):
        ratios[kind].append(ratio)
    share = journal.records(ours, cell, shots)[0]["share"]
    over = {kind: statistics.median(found) for kind, found in ratios.items() if found}
    return {
        "model": "demo",
        "resolution": f"{size}x{size}",
        "image_tokens": (size // 16) ** 2,
        "keep_ratio": keep,
        "rows_computed_share": share,
        "dense_seconds": statistics.median(itertools.chain(*(record["seconds"] for record in journal.records(DENSE, cell, shots)))),
        "selective_over_dense": over[StepKind.SELECTIVE],
        "cost_over_share": over[StepKind.SELECTIVE] / share,
        "refresh_over_dense": over[StepKind.REFRESH],
        "warmup_over_dense": over[StepKind.WARMUP],
    }


def judge(made: Timed, reference: Callable[[], Timed], shot: Shot) -> Record:
    """Each step beside the same step of the dense run of its round.

    The machine may slow down for minutes at a time, and the first evaluation of a run takes longer than others.
    """
    kinds = [record.kind for record in made.records]
    shares = [record.rows_active / record.rows_total for record in made.records if record.kind is StepKind.SELECTIVE]
    ratios = [a / b for a, b in zip(made.seconds, reference().seconds, strict=True)]
    return {"seconds": made.seconds, "over_dense": list(zip(kinds, ratios)), "share": max(shares, default=None)}


def evaluations(bench: Bench, method: Method, cell: Cell, shot: Shot) -> Timed:
    """A run by a method."""
    from comfy.patcher_extension import WrappersMP

    from safe_dit_engine.hosts.comfy.reports import finished_report

    seconds: list[float] = []

    def clock(executor: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        started = time.perf_counter()
        prediction = executor(*args, **kwargs)
        if prediction.is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
        return prediction

    def clocked(model: Any) -> Any:
        # Before the pack's own wrapper, so that what the pack does is inside of it.
        outer = model.clone()
        outer.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "safe_dit_bench_clock", clock)
        return method.change(outer)

    bench.sample(Method(method.name, method.setting, clocked), cell, shot)
    return Timed(seconds, [] if method is DENSE else finished_report(NODE).evaluations)
