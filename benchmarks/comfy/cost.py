"""What a selective step costs beside a dense one, on the demo model in real ComfyUI: `python -m benchmarks cost --out DIR`.

A dense run and one with selective steps in turn, so that a slow moment of the machine hits both; each model evaluation, cond and uncond in
a batch, is timed from outside the pack. `cost_over_share` is the promise: the time of a selective step over its share of rows (text rows
counted), relative to dense. The same figure for other models, in `diffusers`: `speed`, `selective_cost_over_share`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from safe_dit_engine.cli.results import environment, markdown_table
from safe_dit_engine.steps.plan import ScheduleConfig, StepKind
from safe_dit_engine.tokens.partition import PartitionConfig

from ..command import log, parser_of, save
from ..demo_model.scenes import held_out_scenes
from ..measure.in_turn import Cell, Shot
from ..measure.methods import Method
from .bench import NODE, Bench
from .fidelity import configured, unchanged
from .in_process import import_comfyui

NAME = "cost"
KEEP_RATIOS = (0.5, 0.25, 0.1)
# One warm-up step, then two selective ones before each refresh.
STEPS, INTERVAL, WARMUP = 6, 3, 1
COLUMNS = (
    "model", "resolution", "image_tokens", "keep_ratio", "rows_computed_share", "dense_seconds", "selective_over_dense", "cost_over_share",
    "refresh_over_dense", "warmup_over_dense",
)  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Measure, log the table, write JSON and Markdown."""
    parser = parser_of(NAME, __doc__, "1,024 image tokens only")
    parser.add_argument("--rounds", type=int, default=8)
    arguments = parser.parse_args(argv)
    import_comfyui(arguments.device)
    bench, sizes = Bench(arguments.device), (512,) if arguments.small else (512, 768)
    rows = [measure(bench, size, keep, arguments.rounds, arguments.seed) for size in sizes for keep in KEEP_RATIOS]
    table = markdown_table(rows, COLUMNS)
    save(arguments.out, NAME, {"environment": environment(arguments.device), "rows": rows}, table)
    log.info(table)
    return 0


def measure(bench: Bench, size: int, keep: float, rounds: int, seed: int) -> dict[str, Any]:
    """One row: the kinds of step at `size` pixels, relative to dense."""
    from safe_dit_engine.hosts.comfy.reports import finished_report

    schedule = ScheduleConfig(refresh_interval=INTERVAL)
    ours = configured(partition=PartitionConfig(keep_ratio=keep, warmup_steps=WARMUP), schedule=schedule)
    cell, shot = Cell(size, STEPS, "euler"), Shot(tuple(held_out_scenes(1)), (seed,))
    ratios: dict[StepKind, list[float]] = {kind: [] for kind in StepKind}
    of_dense = []
    for number in range(rounds + 1):
        dense = evaluations(bench, Method("dense", "", unchanged), cell, shot)
        seconds = evaluations(bench, Method("ours", "", ours), cell, shot)
        records = finished_report(NODE).evaluations
        # The first round warms up. The machine may slow down for minutes at a time, and the first evaluation of a run takes longer than
        # others: so a step is compared with the same step of the dense run of its round.
        for a, b, record in zip(seconds, dense, records, strict=True) if number else ():
            ratios[record.kind].append(a / b)
        of_dense += dense if number else []
    share = next(record.rows_active / record.rows_total for record in records if record.kind is StepKind.SELECTIVE)
    over = {kind: statistics.median(found) for kind, found in ratios.items() if found}
    return {
        "model": "demo",
        "resolution": f"{size}x{size}",
        "image_tokens": (size // 16) ** 2,
        "keep_ratio": keep,
        "rows_computed_share": share,
        "dense_seconds": statistics.median(of_dense),
        "selective_over_dense": over[StepKind.SELECTIVE],
        "cost_over_share": over[StepKind.SELECTIVE] / share,
        "refresh_over_dense": over[StepKind.REFRESH],
        "warmup_over_dense": over[StepKind.WARMUP],
    }


def evaluations(bench: Bench, method: Method, cell: Cell, shot: Shot) -> list[float]:
    """Seconds of each model evaluation of a run."""
    from comfy.patcher_extension import WrappersMP

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
    return seconds
