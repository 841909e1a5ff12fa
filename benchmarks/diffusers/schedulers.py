"""What presets cost and keep with each scheduler of `diffusers`, at few steps and many: `python -m benchmarks schedulers --out DIR`.

The demo model as a `diffusers` pipeline, four pictures of 256 px at a time. Beside a preset stands the same scheduler with no more
full steps than the preset computed. Writes `schedulers.json` and `schedulers.md`.
"""

from __future__ import annotations

import argparse
import itertools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from safe_dit_engine.cli.results import environment, markdown_table, psnr_db, save
from safe_dit_engine.hosts.diffusers.pipeline import apply
from safe_dit_engine.presets import PRESETS

from ..comfy.fidelity import finite, held_out_scenes

log = logging.getLogger("safe_dit.bench")

NAME = "schedulers"
SIZE, PICTURES, STEPS = 256, 4, (6, 8, 12, 20)
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 2.0}
# Those that predict as the demo model does, by a short name.
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "euler": ("FlowMatchEulerDiscreteScheduler", {"shift": 2.0}),
    "euler, stochastic": ("FlowMatchEulerDiscreteScheduler", {"shift": 2.0, "stochastic_sampling": True}),
    "heun": ("FlowMatchHeunDiscreteScheduler", {"shift": 2.0}),
    "lcm": ("FlowMatchLCMScheduler", {"shift": 2.0}),
    "ltx ancestral": ("LTXEulerAncestralRFScheduler", {}),
    "dpm++ 2m": ("DPMSolverMultistepScheduler", FLOW),
    "dpm++ 2m sde": ("DPMSolverMultistepScheduler", {**FLOW, "algorithm_type": "sde-dpmsolver++"}),
    "dpm++ single": ("DPMSolverSinglestepScheduler", {**FLOW, "lower_order_final": True}),
    "unipc": ("UniPCMultistepScheduler", FLOW),
    "deis": ("DEISMultistepScheduler", FLOW),
    "sa": ("SASolverScheduler", FLOW),
}
COLUMNS = (
    "scheduler", "steps", "method", "plan", "rows_computed_share", "psnr_db", "worst_psnr_db", "fewer_steps", "fewer_psnr_db", "note",
)  # fmt: skip
CAPTION = """\
PSNR is to the full run of the same captions and noise, the mean of four pictures and the worst. `fewer_psnr_db`: that of the same scheduler
with `fewer_steps` full steps, whose share of the steps is at most `rows_computed_share`. Empty: nothing was left out."""


def main(argv: Sequence[str]) -> int:
    """Measure, write JSON and Markdown."""
    arguments = parse(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    bench, rows = Bench(arguments.device, arguments.seed), []
    for name, steps in itertools.product(arguments.schedulers, arguments.steps):
        rows += [finite(row) for row in bench.measure(name, steps, arguments.presets)]
        table = "\n\n".join([CAPTION, markdown_table(rows, COLUMNS)])
        save(arguments.out, NAME, {"environment": environment(arguments.device), "rows": rows}, table)
        log.info("%s, %d steps", name, steps)
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks {NAME}", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("output") / NAME)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--seed", type=int, default=0, help="noise seed of the pictures")
    parser.add_argument("--small", action="store_true", help="the preset balanced alone, 8 and 20 steps")
    parser.add_argument("--schedulers", nargs="+", choices=list(SCHEDULERS), default=list(SCHEDULERS), metavar="NAME")
    parser.add_argument("--presets", nargs="+", choices=list(PRESETS), default=list(PRESETS), metavar="NAME")
    parser.add_argument("--steps", nargs="+", type=int, default=list(STEPS))
    arguments = parser.parse_args(argv)
    if arguments.small:
        arguments.presets, arguments.steps = ["balanced"], [8, 20]
    return arguments


def scheduler_of(name: str) -> Any:
    """A scheduler by its short name."""
    import diffusers

    kind, options = SCHEDULERS[name]
    return getattr(diffusers, kind)(**options)


class Bench:
    """The demo pipeline on a device, four captions and their noise."""

    def __init__(self, device: str, seed: int) -> None:
        from safe_dit_engine.hosts.diffusers.demo import load_demo_pipeline

        self.pipe = load_demo_pipeline(device=device)
        self.captions = [scene.caption for scene in held_out_scenes(PICTURES)]
        self.seed = seed

    def sample(self, steps: int) -> np.ndarray:
        """Pictures `[4, H, W, 3]`."""
        call: dict[str, Any] = {"height": SIZE, "width": SIZE, "num_inference_steps": steps, "output_type": "np"}
        pictures: np.ndarray = self.pipe(self.captions, generator=torch.Generator().manual_seed(self.seed), **call).images
        return pictures

    def measure(self, name: str, steps: int, presets: Sequence[str]) -> Iterator[dict[str, Any]]:
        """One row a preset."""
        self.pipe.scheduler = scheduler_of(name)
        full, known = self.sample(steps), {}
        for preset in presets:
            with apply(self.pipe, preset) as safe:
                found = closeness(self.sample(steps), full)
            report = safe.report()
            plan = "".join(record.kind.letter for record in report.evaluations)
            fewer = max(1, int(steps * report.rows_computed_share + 1e-6))
            if fewer not in known:
                known[fewer] = closeness(self.sample(fewer), full)
            yield {
                "scheduler": name, "steps": steps, "method": preset, "model": "demo", "resolution": f"{SIZE}x{SIZE}", "sampler": name,
                "plan": plan, "rows_computed_share": report.rows_computed_share, "psnr_db": found[0], "worst_psnr_db": found[1],
                "fewer_steps": fewer, "fewer_psnr_db": known[fewer][0], "note": " ".join(report.notes),
            }  # fmt: skip


def closeness(pictures: np.ndarray, full: np.ndarray) -> tuple[float, float]:
    """Mean and least PSNR of pictures to those of the full run."""
    found = [psnr_db(picture, reference) for picture, reference in zip(pictures, full, strict=True)]
    return float(np.mean(found)), min(found)
