"""Presets with every sampler of ComfyUI, beside the full run and as many full steps: `python -m benchmarks samplers --out DIR`.

The demo model through ComfyUI's own samplers, all pictures of a cell in one batch. `few-steps` is the same for two samplers and many
numbers of steps, `noise-schedules` for all of ComfyUI's schedulers. Writes `samplers.json` and `samplers.md` (or `few-steps.*`,
`noise-schedules.*`) after every cell; `--resume` keeps the cells that are there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from safe_dit_engine.cli.options import at_least
from safe_dit_engine.cli.results import environment, markdown_table
from safe_dit_engine.presets import PRESETS
from safe_dit_engine.report import psnr_db

from ..command import in_turn, parser_of, rounded, save
from ..demo_model.scenes import held_out_scenes, scene_from_seed
from ..measure.closeness import EQUAL_DB
from ..measure.fidelity import TUNING_SEED
from ..measure.in_turn import Cell, Journal, Record, Sample, Shot, make_in_turn
from ..measure.methods import Method
from .bench import CFG, NODE, SCHEDULER, Bench
from .fidelity import DENSE, configured, unchanged
from .in_process import import_comfyui, known_names

NAME, FEW_STEPS, SCHEDULES = "samplers", "few-steps", "noise-schedules"
SIZE = 256
# The newcomer's first picture that turned out in another colour; it stays among the scenes.
TIPPED = 3
# Presets that keep the picture.
KEEPING = [name for name, preset in PRESETS.items() if not preset.schedule.speedup]
COLUMNS = (
    "sampler", "shift", "steps", "preset", "pictures", "plan", "evaluations", "fewer_steps", "psnr_db", "fewer_psnr_db", "lead_db",
    "worst_lead_db",
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
    known_names("sampler", arguments.samplers)
    known_names("scheduler", arguments.schedulers)
    from comfy.samplers import SAMPLER_NAMES, SCHEDULER_NAMES

    bench, path = Samplers(arguments), arguments.out / f"{name}.json"
    schedulers = arguments.schedulers or SCHEDULER_NAMES
    columns = ("scheduler", *COLUMNS) if name == SCHEDULES else COLUMNS
    named = " or ".join(arguments.schedulers) or "as in its column"
    caption = CAPTION.format(size=SIZE, cfg=arguments.cfg, scheduler=named, equal=EQUAL_DB)
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rows"] if arguments.resume and path.is_file() else []
    cells = list(itertools.product(schedulers, arguments.samplers or SAMPLER_NAMES, arguments.steps))
    for scheduler, sampler, steps in in_turn(cells, [count for *_, count in cells]):
        there = {row["preset"] for row in rows if settings(row) == (scheduler, sampler, arguments.shift, steps)}
        missing = [preset for preset in arguments.presets if preset not in there]
        if missing:
            rows += bench.measure(Cell(SIZE, steps, sampler), missing, scheduler)
            rows.sort(key=lambda row: (*order(row, SCHEDULER_NAMES, SAMPLER_NAMES), list(PRESETS).index(row["preset"])))
            page = f"{caption}\n\n{markdown_table(rounded(rows), columns)}"
            save(arguments.out, name, {"environment": environment(arguments.device), "rows": rows}, page)
    return 0


def few_steps(argv: Sequence[str]) -> int:
    """Two samplers, many numbers of steps."""
    return main(argv, FEW_STEPS)


def noise_schedules(argv: Sequence[str]) -> int:
    """One sampler, all noise schedules."""
    return main(argv, SCHEDULES)


def settings(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Noise schedule, sampler, shift and steps of a row; rows of older tables do not name their schedule."""
    return (row.get("scheduler", SCHEDULER), row["sampler"], row["shift"], row["steps"])


def order(row: Mapping[str, Any], schedulers: Sequence[str], samplers: Sequence[str]) -> tuple[Any, ...]:
    """Where a row stands in a table: as ComfyUI lists schedules and samplers."""
    scheduler, sampler, *rest = settings(row)
    return (schedulers.index(scheduler), samplers.index(sampler), *rest)


def parse(argv: Sequence[str], name: str) -> argparse.Namespace:
    """The command line."""
    parser = parser_of(name, __doc__, "2 scenes, 8 and 20 steps")
    parser.add_argument("--set", choices=["tuning", "held-out"], default="held-out", help="scenes the plan was made on, or others")
    samplers = {NAME: [], FEW_STEPS: ["euler", "dpmpp_2m"], SCHEDULES: ["euler"]}[name]
    parser.add_argument("--samplers", nargs="+", default=samplers, help="default: all that ComfyUI offers")
    schedulers = [] if name == SCHEDULES else [SCHEDULER]
    parser.add_argument("--schedulers", nargs="+", default=schedulers, help="noise schedules, by ComfyUI's names")
    keeping = list(KEEPING)
    parser.add_argument("--presets", nargs="+", choices=keeping, default=keeping, metavar="NAME", help="only these")
    steps = {NAME: [6, 8, 12, 20], FEW_STEPS: [6, 8, 10, 12, 15, 16, 20, 30], SCHEDULES: [8, 12, 20, 30]}[name]
    parser.add_argument("--steps", nargs="+", type=at_least(1), default=steps, help="sampling steps")
    parser.add_argument("--shift", type=at_least(0.01, float), default=2.0, help="of the noise schedule; the model's own is 2")
    parser.add_argument("--cfg", type=at_least(1.0, float), default=CFG, help="guidance")
    parser.add_argument("--scenes", type=at_least(2), default=12 if name == FEW_STEPS else 3, help="how many captions")
    parser.add_argument("--seeds", type=at_least(1), default=1 if name == NAME else 2, help="pictures of each scene")
    parser.add_argument("--resume", action="store_true", help="keep the cells that DIR has")
    arguments = parser.parse_args(argv)
    if arguments.small:
        arguments.scenes, arguments.seeds, arguments.steps = 2, 1, [8, 20]
    return arguments


def shot_of(arguments: argparse.Namespace) -> Shot:
    """All scenes with their noise seeds, the one that tipped among them."""
    count = arguments.scenes - 1
    scenes = held_out_scenes(count) if arguments.set == "held-out" else [scene_from_seed(TUNING_SEED + index) for index in range(count)]
    numbered = [(scene, arguments.seed + number) for number, (scene, _) in enumerate(itertools.product(scenes, range(arguments.seeds)))]
    numbered += [(scene_from_seed(TIPPED), TIPPED + number) for number in range(arguments.seeds)]
    return Shot(*zip(*numbered))


class Samplers:
    """The demo model, with the full runs of one sampler by their number of steps."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._bench, self._shift, self._shot = Bench(arguments.device), arguments.shift, shot_of(arguments)
        self._bench.model, self._bench.cfg = shifted(self._bench.model, arguments.shift), arguments.cfg
        self._full: dict[tuple[str, str, int], Sample] = {}

    def measure(self, cell: Cell, presets: Sequence[str], scheduler: str = SCHEDULER) -> Iterator[dict[str, Any]]:
        """A row a preset. The first picture tells whether anything is left out, and which presets come to the same."""
        self._bench.scheduler = scheduler
        shot, journal = self._shot, Journal()
        rows, same, fewer = dict[Method, dict[str, Any]](), dict[bytes, Method](), dict[Method, Method]()
        for name in presets:
            preset = PRESETS[name]
            method = Method(name, name, configured(partition=preset.partition, schedule=preset.schedule))
            first, plan, share = self._plan_of(method, cell)
            counts = {"pictures": len(shot.seeds), "evaluations": sum(letter != "-" for letter in plan)}
            where = {"scheduler": scheduler, "sampler": cell.sampler, "shift": self._shift, "steps": cell.steps}
            rows[method] = {**where, "preset": name, "plan": plan, **counts}
            if share < 1.0:
                steps = math.floor(share * cell.steps + 1e-6)
                fewer[method] = Method("fewer_steps", f"{steps} steps", unchanged, steps / cell.steps)
                same.setdefault(first, method)
                rows[method] |= {"like": same[first], "fewer_steps": steps}
        beside = {method.setting: method for method in fewer.values()}.values()
        make_in_turn(self.sample, judge, [DENSE, *same.values(), *beside], cell, [shot] if same else [], journal)
        for method, row in rows.items():
            if method in fewer:
                row |= lead(*(journal.records(one, cell)[0]["psnr_db"] for one in (row.pop("like"), fewer[method])))
            yield row

    def _plan_of(self, method: Method, cell: Cell) -> tuple[bytes, str, float]:
        """Of the first picture: its pixels, a letter an evaluation, and the share of rows that were computed."""
        from safe_dit_engine.hosts.comfy.reports import finished_report

        pictures = self._bench.sample(method, cell, Shot(self._shot.scenes[:1], self._shot.seeds[:1])).pictures
        report = finished_report(NODE)
        return pictures.tobytes(), "".join(record.kind.letter for record in report.evaluations), report.rows_computed_share

    def sample(self, method: Method, cell: Cell, shot: Shot) -> Sample:
        """Pictures by one method; full runs with a sampler and noise schedule are made once."""
        if method.change is not unchanged:
            return self._bench.sample(method, cell, shot)
        key = (self._bench.scheduler, cell.sampler, method.steps(cell.steps))
        self._full = {known: sample for known, sample in self._full.items() if known[:2] == key[:2]}
        if key not in self._full:
            self._full[key] = self._bench.sample(method, cell, shot)
        return self._full[key]


def shifted(model: Any, shift: float) -> Any:
    """The model with another shift of its noise schedule."""
    import comfy.model_sampling as sampling

    found = type("Shifted", (sampling.ModelSamplingDiscreteFlow, sampling.CONST), {})(model.model.model_config)
    found.set_parameters(shift=shift, multiplier=1.0)
    patched = model.clone()
    patched.add_object_patch("model_sampling", found)
    return patched


def judge(sample: Sample, reference: Callable[[], Sample], shot: Shot) -> Record:
    """PSNR of each picture to that of the full run."""
    return {"psnr_db": [min(psnr_db(*pair), EQUAL_DB) for pair in zip(sample.pictures, reference().pictures, strict=True)]}


def lead(ours: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
    """How far pictures are ahead of others."""
    leads = [a - b for a, b in zip(ours, others, strict=True)]
    means = {"psnr_db": fmean(ours), "fewer_psnr_db": fmean(others), "lead_db": fmean(leads), "worst_lead_db": min(leads)}
    return {**means, "leads_db": leads}
