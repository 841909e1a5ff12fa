"""Presets with every sampler of ComfyUI, beside the full run and as many full steps: `python -m benchmarks samplers --out DIR`.

The demo model through ComfyUI's own samplers, all pictures of a cell in one batch. `few-steps` is the same for two samplers and many
numbers of steps. Writes `samplers.json` and `samplers.md` (or `few-steps.*`) after every cell; `--resume` keeps the cells that are there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from safe_dit_engine.cli.results import environment, markdown_table, psnr_db, save
from safe_dit_engine.presets import PRESETS
from safe_dit_engine.steps.samplers import find_sampler

from ..demo_model.scenes import Scene, held_out_scenes, scene_from_seed
from ..measure.closeness import EQUAL_DB
from .in_process import import_comfyui

log = logging.getLogger("safe_dit.bench")

NAME, FEW_STEPS = "samplers", "few-steps"
SIZE, CFG, SCHEDULER = 256, 4.0, "simple"
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
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    import_comfyui(arguments.device)
    bench = Bench(arguments)
    path: Path = arguments.out / f"{name}.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rows"] if arguments.resume and path.is_file() else []
    for sampler in arguments.samplers or _all_samplers():
        for steps in arguments.steps:
            there = {row["preset"] for row in rows if (row["sampler"], row["shift"], row["steps"]) == (sampler, arguments.shift, steps)}
            missing = [preset for preset in arguments.presets if preset not in there]
            if missing:
                rows += bench.measure(sampler, steps, missing)
                publish(arguments, name, sorted(rows, key=_place))
                log.info("%s, %d steps", sampler, steps)
        bench.forget()
    return 0


def _place(row: dict[str, Any]) -> tuple[int, float, int, int]:
    return _all_samplers().index(row["sampler"]), row["shift"], row["steps"], list(PRESETS).index(row["preset"])


def parse(argv: Sequence[str], name: str) -> argparse.Namespace:
    """The command line."""
    few = name == FEW_STEPS
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks {name}", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("output") / name)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--small", action="store_true", help="2 scenes, 8 and 20 steps")
    parser.add_argument("--seed", type=int, default=0, help="noise seed of the first picture")
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


def scenes_of(arguments: argparse.Namespace) -> list[tuple[Scene, int]]:
    """Scenes with their noise seeds, the one that tipped among them."""
    count = arguments.scenes - 1
    scenes = held_out_scenes(count) if arguments.set == "held-out" else [scene_from_seed(5000 + index) for index in range(count)]
    numbered = [(scene, arguments.seed + number) for number, (scene, _) in enumerate(itertools.product(scenes, range(arguments.seeds)))]
    return numbered + [(scene_from_seed(TIPPED), TIPPED + number) for number in range(arguments.seeds)]


class Bench:
    """The demo model in ComfyUI, and the full runs of one sampler by their number of steps."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        from safe_dit_engine.hosts.comfy.demo import load_demo

        self._model, clip, self._vae = load_demo()
        self._shift = arguments.shift
        pairs = scenes_of(arguments)
        self._seeds = [seed for _, seed in pairs]
        with torch.inference_mode():
            encoded = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("", *(scene.caption for scene, _ in pairs))]
        self._negative = encoded[0]
        self._positive = [[torch.cat([found[0][0] for found in encoded[1:]]), encoded[1][0][1]]]
        self._full: dict[int, list[np.ndarray]] = {}
        self._decoded: dict[bytes, list[np.ndarray]] = {}

    def forget(self) -> None:
        """Another sampler comes."""
        self._full.clear()

    def measure(self, sampler: str, steps: int, presets: Sequence[str]) -> Iterator[dict[str, Any]]:
        """A row a preset. The first picture tells whether anything is left out, and which presets come to the same."""
        self._decoded.clear()
        known: dict[bytes, Tensor] = {}
        for name in presets:
            first, plan, share = self._accelerated(sampler, steps, name, 1)
            row: dict[str, Any] = {"sampler": sampler, "shift": self._shift, "steps": steps, "preset": name, "plan": plan}
            row |= {"pictures": len(self._seeds), "evaluations": sum(letter != "-" for letter in plan)}
            if share < 1.0:
                if _bytes(first) not in known:
                    known[_bytes(first)] = self._accelerated(sampler, steps, name)[0]
                row |= self._compared(sampler, steps, math.floor(share * steps + 1e-6), self._pictures(known[_bytes(first)]))
            yield row

    def _compared(self, sampler: str, steps: int, fewer: int, pictures: list[np.ndarray]) -> dict[str, Any]:
        full = self._full_run(sampler, steps)
        ours, others = ([_db(*pair) for pair in zip(found, full, strict=True)] for found in (pictures, self._full_run(sampler, fewer)))
        leads = [a - b for a, b in zip(ours, others, strict=True)]
        means = {"psnr_db": fmean(ours), "fewer_psnr_db": fmean(others), "lead_db": fmean(leads), "worst_lead_db": min(leads)}
        rounded = {key: round(value, 2) for key, value in means.items()}
        return {"fewer_steps": fewer, **rounded, "leads_db": [round(lead, 1) for lead in leads]}

    def _full_run(self, sampler: str, steps: int) -> list[np.ndarray]:
        if steps not in self._full:
            self._full[steps] = self._pictures(self._sampled(self._shifted(), sampler, steps))
        return self._full[steps]

    def _accelerated(self, sampler: str, steps: int, name: str, count: int | None = None) -> tuple[Tensor, str, float]:
        from safe_dit_engine.hosts.comfy.reports import finished_report
        from safe_dit_engine.hosts.comfy.wrappers import configure

        preset = PRESETS[name]
        model = configure(self._shifted(), partition=preset.partition(), schedule=preset.schedule())
        samples = self._sampled(model, sampler, steps, count)
        report = finished_report(NAME)
        plan = "".join(record.kind.letter for record in report.evaluations)
        return samples, plan, report.rows_computed_share

    def _shifted(self) -> Any:
        import comfy.model_sampling as sampling

        kind = type("Shifted", (sampling.ModelSamplingDiscreteFlow, sampling.CONST), {})
        found = kind(self._model.model.model_config)
        found.set_parameters(shift=self._shift, multiplier=1.0)
        model = self._model.clone()
        model.add_object_patch("model_sampling", found)
        return model

    def _sampled(self, model: Any, sampler: str, steps: int, count: int | None = None) -> Tensor:
        """Latents of the first `count` pictures, None: of all."""
        from comfy.sample import prepare_noise, sample_custom
        from comfy.samplers import calculate_sigmas, sampler_object
        from comfy_execution.utils import CurrentNodeContext

        seeds = self._seeds[:count]
        latent = torch.zeros(len(seeds), 16, SIZE // 8, SIZE // 8)
        noise = torch.cat([prepare_noise(latent[:1], seed) for seed in seeds])
        positive = [[self._positive[0][0][:count], self._positive[0][1]]]
        sigmas = calculate_sigmas(model.get_model_object("model_sampling"), SCHEDULER, steps)
        run = partial(sample_custom, model, noise, CFG, sampler_object(sampler), sigmas, positive, self._negative, latent)
        with torch.inference_mode(), CurrentNodeContext(NAME, NAME):
            samples: Tensor = run(disable_pbar=True, seed=self._seeds[0])
        return samples

    def _pictures(self, samples: Tensor) -> list[np.ndarray]:
        key = _bytes(samples)
        if key not in self._decoded:
            with torch.inference_mode():
                self._decoded[key] = list(self._vae.decode(samples).clamp(0, 1).float().cpu().numpy())
        return self._decoded[key]


def _bytes(samples: Tensor) -> bytes:
    return samples.numpy(force=True).tobytes()


def _db(picture: np.ndarray, reference: np.ndarray) -> float:
    return min(psnr_db(picture, reference), EQUAL_DB)


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
        values = (sampler.evaluations, sampler.memory, *(_word(flag) for flag in (sampler.stochastic, sampler.corrector, sampler.forecast)))
        limits = (sampler.skipped, sampler.selective, sampler.reach, sampler.why_full(PRESETS["balanced"].schedule()) or None)
        found.append(dict(zip(TRAITS, (name, *values, *limits), strict=True)))
    return found


def _word(flag: bool) -> str:
    return "yes" if flag else "no"
