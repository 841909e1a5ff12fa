"""Presets with every sampler of ComfyUI, beside the full run and as many full steps: `python -m benchmarks samplers --out DIR`.

The demo model through ComfyUI's own samplers, all pictures of a cell in one batch. `few-steps` is the same for two samplers and many
numbers of steps. Writes `samplers.json` and `samplers.md` (or `few-steps.*`) after every cell; `--resume` keeps the cells that are there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from safe_dit_engine.cli.results import environment, markdown_table, psnr_db
from safe_dit_engine.presets import PRESETS
from safe_dit_engine.steps.samplers import find_sampler

from ..command import log, parser_of, save
from ..demo_model.scenes import Scene, held_out_scenes, scene_from_seed
from ..measure.closeness import EQUAL_DB
from ..measure.fidelity import TUNING_SEED
from ..measure.in_turn import Cell, Journal, Record, make_in_turn
from ..measure.methods import Method
from .bench import CFG, SCHEDULER, Bench
from .in_process import import_comfyui
from .peers import DENSE, configured, unchanged

NAME, FEW_STEPS = "samplers", "few-steps"
SIZE = 256
# The newcomer's first picture that turned out in another colour; it stays among the scenes.
TIPPED = 3
COLUMNS = (
    "sampler", "shift", "steps", "preset", "pictures", "plan", "evaluations", "fewer_steps", "psnr_db", "fewer_psnr_db", "lead_db",
    "worst_lead_db",
)  # fmt: skip
TRAITS = (
    "sampler", "evaluations a step", "earlier predictions", "stochastic", "corrector", "forecast", "skipped in a row", "selective in a row",
    "share of the widest gap", "every step computed, because it",
)  # fmt: skip
CAPTION = """\
PSNR is to the full run of the same captions and seeds, the mean over so many `pictures` of {size} px at CFG {cfg:g}, scheduler
{scheduler}; equal pictures count as {equal:g} dB. `plan`, a letter a step: w warm-up, r refresh, s selective, - skipped.
`fewer_psnr_db`: the run without the pack with `fewer_steps` steps, which computes as many rows; `lead_db` is ours less that,
`worst_lead_db` the least of a single picture. With stochastic samplers a run of fewer steps draws other noise, so it is another
picture. Empty: every step was computed."""


def main(argv: Sequence[str], name: str = NAME) -> int:
    """Measure, write JSON and Markdown."""
    arguments = parse(argv, name)
    import_comfyui(arguments.device)
    bench = SamplerBench(arguments)
    path = arguments.out / f"{name}.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rows"] if arguments.resume and path.is_file() else []
    for sampler in arguments.samplers or _all_samplers():
        for steps in arguments.steps:
            there = {row["preset"] for row in rows if (row["sampler"], row["shift"], row["steps"]) == (sampler, arguments.shift, steps)}
            missing = [preset for preset in arguments.presets if preset not in there]
            if missing:
                rows += bench.measure(Cell(SIZE, steps, sampler), missing)
                publish(arguments, name, sorted(rows, key=_place))
        bench.forget()
    return 0


def few_steps(argv: Sequence[str]) -> int:
    """Two samplers, many numbers of steps."""
    return main(argv, FEW_STEPS)


def parse(argv: Sequence[str], name: str) -> argparse.Namespace:
    """The command line."""
    few = name == FEW_STEPS
    parser = parser_of(name, __doc__, "2 scenes, 8 and 20 steps")
    parser.add_argument("--set", choices=["tuning", "held-out"], default="held-out", help="scenes the plan was made on, or others")
    parser.add_argument("--samplers", nargs="+", default=["euler", "dpmpp_2m"] if few else [], help="default: all that ComfyUI offers")
    parser.add_argument("--presets", nargs="+", choices=list(PRESETS), default=list(PRESETS), metavar="NAME")
    parser.add_argument("--steps", nargs="+", type=int, default=[6, 8, 10, 12, 15, 16, 20, 30] if few else [6, 8, 12, 20])
    parser.add_argument("--shift", type=float, default=2.0, help="of the noise schedule; the model's own is 2")
    parser.add_argument("--scenes", type=int, default=12 if few else 3)
    parser.add_argument("--seeds", type=int, default=2 if few else 1, help="pictures of each scene")
    parser.add_argument("--resume", action="store_true", help="keep the cells that DIR has")
    arguments = parser.parse_args(argv)
    if arguments.small:
        arguments.scenes, arguments.seeds, arguments.steps = 2, 1, [8, 20]
    return arguments


def _all_samplers() -> list[str]:
    from comfy.samplers import SAMPLER_NAMES

    return list(SAMPLER_NAMES)


def _place(row: dict[str, Any]) -> tuple[int, float, int, int]:
    return _all_samplers().index(row["sampler"]), row["shift"], row["steps"], list(PRESETS).index(row["preset"])


def scenes_of(arguments: argparse.Namespace) -> list[tuple[Scene, int]]:
    """Scenes with their noise seeds, the one that tipped among them."""
    count = arguments.scenes - 1
    scenes = held_out_scenes(count) if arguments.set == "held-out" else [scene_from_seed(TUNING_SEED + index) for index in range(count)]
    numbered = [(scene, arguments.seed + number) for number, (scene, _) in enumerate(itertools.product(scenes, range(arguments.seeds)))]
    return numbered + [(scene_from_seed(TIPPED), TIPPED + number) for number in range(arguments.seeds)]


@dataclass(frozen=True)
class Batch:
    """Pictures that are made in one batch."""

    captions: tuple[str, ...]
    seeds: tuple[int, ...]

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells it from others."""
        return (*self.captions, *self.seeds)

    def first(self) -> Batch:
        """Its first picture alone."""
        return Batch(self.captions[:1], self.seeds[:1])


class SamplerBench:
    """The demo model, with the full runs of one sampler by their number of steps."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._bench = Bench(arguments.device)
        self._shift = arguments.shift
        self._model = shifted(self._bench.model, arguments.shift)
        captions, seeds = zip(*((scene.caption, seed) for scene, seed in scenes_of(arguments)))
        self._batch = Batch(captions, seeds)
        self._full: dict[int, np.ndarray] = {}

    def forget(self) -> None:
        """Another sampler comes."""
        self._full.clear()

    def measure(self, cell: Cell, presets: Sequence[str]) -> list[dict[str, Any]]:
        """A row a preset. The first picture tells whether anything is left out, and which presets come to the same."""
        rows, same, fewer = [], dict[str, Method](), dict[int, Method]()
        compared: list[tuple[dict[str, Any], Method, Method]] = []
        for name in presets:
            preset = PRESETS[name]
            method = Method(name, name, configured(partition=preset.partition(), schedule=preset.schedule()))
            first, plan, share = self._plan_of(method, cell)
            rows.append({"sampler": cell.sampler, "shift": self._shift, "steps": cell.steps, "preset": name, "plan": plan})
            rows[-1] |= {"pictures": len(self._batch.seeds), "evaluations": sum(letter != "-" for letter in plan)}
            if share < 1.0:
                steps = math.floor(share * cell.steps + 1e-6)
                beside = fewer.setdefault(steps, Method("fewer_steps", f"{steps} steps", unchanged, steps / cell.steps))
                compared.append((rows[-1], same.setdefault(first, method), beside))
        journal = Journal()
        make_in_turn(self.sample, judge, [DENSE, *same.values(), *fewer.values()], cell, [self._batch] if compared else [], journal)
        for row, method, beside in compared:
            ours, others = (journal.records(one, cell, [self._batch])[0]["psnr_db"] for one in (method, beside))
            row |= lead(ours, others) | {"fewer_steps": round(beside.step_share * cell.steps)}
        return rows

    def _plan_of(self, method: Method, cell: Cell) -> tuple[str, str, float]:
        """Of the first picture: its latents, what was computed, a letter an evaluation, and the share of rows."""
        from safe_dit_engine.hosts.comfy.live import finished_report

        samples = self._sampled(method, cell, self._batch.first())
        report = finished_report(NAME)
        plan = "".join(record.kind.letter for record in report.evaluations)
        return samples.numpy(force=True).tobytes().hex(), plan, report.rows_computed_share

    def sample(self, method: Method, cell: Cell, batch: Batch) -> np.ndarray:
        """Pictures by one method."""
        if method.change is not unchanged:
            return self._bench.decoded(self._sampled(method, cell, batch))
        steps = method.steps(cell.steps)
        if steps not in self._full:
            self._full[steps] = self._bench.decoded(self._sampled(method, cell, batch))
        return self._full[steps]

    def _sampled(self, method: Method, cell: Cell, batch: Batch) -> Tensor:
        from comfy_execution.utils import CurrentNodeContext

        model, steps = method.change(self._model), method.steps(cell.steps)
        run = self._bench.sampling(model, cell.sampler, steps, cell.size, batch.captions, batch.seeds)
        with torch.inference_mode(), CurrentNodeContext(NAME, NAME):
            return run()


def shifted(model: Any, shift: float) -> Any:
    """The model with another shift of its noise schedule."""
    import comfy.model_sampling as sampling

    kind = type("Shifted", (sampling.ModelSamplingDiscreteFlow, sampling.CONST), {})
    found = kind(model.model.model_config)
    found.set_parameters(shift=shift, multiplier=1.0)
    patched = model.clone()
    patched.add_object_patch("model_sampling", found)
    return patched


def judge(pictures: np.ndarray, reference: Callable[[], np.ndarray], batch: Batch) -> Record:
    """PSNR of each picture to that of the full run."""
    return {"psnr_db": [min(psnr_db(*pair), EQUAL_DB) for pair in zip(pictures, reference(), strict=True)]}


def lead(ours: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
    """How far pictures are ahead of others."""
    leads = [a - b for a, b in zip(ours, others, strict=True)]
    means = {"psnr_db": fmean(ours), "fewer_psnr_db": fmean(others), "lead_db": fmean(leads), "worst_lead_db": min(leads)}
    return {**means, "leads_db": leads}


def publish(arguments: argparse.Namespace, name: str, rows: list[dict[str, Any]]) -> None:
    """Write what is there so far."""
    caption = CAPTION.format(size=SIZE, cfg=CFG, scheduler=SCHEDULER, equal=EQUAL_DB)
    parts = [caption, markdown_table(rows, COLUMNS)]
    if name == NAME:
        parts += ["What the engine takes for granted of each (`safe_dit_engine/steps/samplers.py`):", markdown_table(traits(rows), TRAITS)]
    save(arguments.out, name, {"environment": environment(arguments.device), "rows": rows}, "\n\n".join(parts))


def traits(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The table of samplers, in words."""
    from comfy.samplers import sampler_object

    found = []
    for name in dict.fromkeys(row["sampler"] for row in rows):
        sampler = find_sampler(sampler_object(name).sampler_function.__name__)
        flags = ("yes" if flag else "no" for flag in (sampler.stochastic, sampler.corrector, sampler.forecast))
        limits = (sampler.skipped, sampler.selective, sampler.reach, sampler.why_full(PRESETS["balanced"].schedule()) or None)
        found.append(dict(zip(TRAITS, (name, sampler.evaluations, sampler.memory, *flags, *limits), strict=True)))
    return found
