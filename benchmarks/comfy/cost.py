"""What a selective step costs beside a dense one, in real ComfyUI: `python -m benchmarks cost --out DIR`.

On the demo model, and on Flux and SD3 with random weights, small.

One model call with cond and uncond in a batch, dense, selective, anchor and warm-up in turn, so that a slow moment of the machine hits
all of them. `cost_over_share` is the promise: the time of a selective step over its share of rows (text rows counted), relative to dense.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from safe_dit_engine.cli.results import environment, markdown_table, save

from .in_process import import_comfyui
from .random_models import Subject, random_subject

log = logging.getLogger("safe_dit")

# Sigmas told to the run: its first step is warm-up, then two selective ones, then an anchor.
WARMUP, SELECTIVE, ANCHOR = 1.0, 0.9, 0.7
SIGMAS = [1.0, 0.9, 0.8, 0.7, 0.0]
COLUMNS = (
    "model", "resolution", "image_tokens", "keep_ratio", "rows_computed_share", "dense_seconds", "selective_over_dense", "cost_over_share",
    "refresh_over_dense", "warmup_over_dense",
)  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Measure, print the table, write JSON and Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks cost", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("output/cost"))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--small", action="store_true", help="the demo model at 1,024 image tokens only")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    import_comfyui(arguments.device)
    cells = [("demo", 512), *([] if arguments.small else [("demo", 768), ("flux", 768), ("sd3", 768)])]
    with torch.inference_mode():
        rows = [measure(name, size, keep, arguments.rounds) for name, size in cells for keep in (0.5, 0.25, 0.1)]
    table = markdown_table(rows, COLUMNS)
    save(arguments.out, "cost", {"environment": environment(arguments.device), "rows": rows}, table)
    log.info(table)
    return 0


def measure(name: str, size: int, keep: float, rounds: int) -> dict[str, Any]:
    """One row: the kinds of step at `size` pixels, relative to dense."""
    evaluate, dense, share = _calls(_demo() if name == "demo" else random_subject(name), size, keep)
    for sigma in (WARMUP, SELECTIVE):
        evaluate(sigma)
    kinds: dict[str, Callable[[], object]] = {
        "dense": dense,
        "selective": lambda: evaluate(SELECTIVE),
        "refresh": lambda: evaluate(ANCHOR),
        "warmup": lambda: evaluate(WARMUP),
    }
    dense()
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind, call in kinds.items():
            times[kind].append(_seconds(call))
    # The machine may slow down for minutes at a time: compare neighbours of one round, then take the median of the rounds.
    ratios = {kind: statistics.median(a / b for a, b in zip(found, times["dense"], strict=True)) for kind, found in times.items()}
    return {
        "model": name,
        "resolution": f"{size}x{size}",
        "image_tokens": (size // 16) ** 2,
        "keep_ratio": keep,
        "rows_computed_share": share(),
        "dense_seconds": statistics.median(times["dense"]),
        "selective_over_dense": ratios["selective"],
        "cost_over_share": ratios["selective"] / share(),
        "refresh_over_dense": ratios["refresh"],
        "warmup_over_dense": ratios["warmup"],
    }


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _demo() -> Subject:
    from comfy.model_management import load_models_gpu

    from safe_dit_engine.hosts.comfy.demo import load_demo

    model, clip, _ = load_demo()
    load_models_gpu([model])
    prompts = ["a large red circle at the left and a small blue star at the right on a green striped background", ""]
    text = torch.cat([clip.encode_from_tokens(clip.tokenize(prompt)) for prompt in prompts]).to(model.load_device)
    return Subject("demo", model, 16, text, {"num_tokens": text.shape[1]})


def _calls(subject: Subject, size: int, keep: float) -> tuple[Callable[[float], None], Callable[[], None], Callable[[], float]]:
    """A tracked model call at a step of the run, the plain model call, and the share of rows of the last selective one."""
    from safe_dit_engine.hosts.comfy import wrappers as host
    from safe_dit_engine.hosts.comfy.sampling import Sampling
    from safe_dit_engine.presets import SafeConfig
    from safe_dit_engine.run import Run
    from safe_dit_engine.steps.plan import ScheduleConfig
    from safe_dit_engine.tokens.partition import PartitionConfig

    base, device = subject.patcher.model, subject.patcher.load_device
    latent = torch.randn(2, subject.channels, size // 8, size // 8, device=device)
    time_step = torch.full((2,), 0.7, device=device)
    config = SafeConfig(partition=PartitionConfig(keep_ratio=keep, warmup_steps=1), schedule=ScheduleConfig(3))
    run = Run(config, base.diffusion_model, SIGMAS, (1, *latent.shape[1:]), (0, len(SIGMAS) - 1))
    sampling = Sampling(run)

    wrappers = dict(subject.patcher.wrappers.get("apply_model", {}))

    def call(options: dict[str, Any], wrapped: dict[str, Any]) -> None:
        options = {**options, "wrappers": {"apply_model": {**wrappers, **wrapped}}, "uuids": ["a", "b"], "cond_or_uncond": [0, 1]}
        base.apply_model(latent, time_step, c_crossattn=subject.text, transformer_options=options, **subject.arguments)

    def evaluate(sigma: float) -> None:
        evaluation = run.evaluate(sigma)
        evaluation.begin_batch(frozenset([0]))
        call({host.RUN: sampling}, {host.KEY: [host.apply_model]})
        evaluation.end()

    def share() -> float:
        last = next(record for record in reversed(run.report.evaluations) if not record.kind.full)
        return last.rows_active / last.rows_total

    return evaluate, lambda: call({}, {}), share
