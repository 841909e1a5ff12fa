"""Pictures by a `diffusers` pipeline, dense and accelerated in turn, and what each took, for `generate.py`.

`diffusers` is imported when a pipeline is opened: the command line says in one sentence that it is missing.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..hosts.diffusers.pipeline import apply
from ..report import RunReport, psnr_db
from .clock import now
from .results import environment

DENSE = "dense"
WARM_UP_STEPS = 2


@dataclass(frozen=True)
class Shot:
    """One picture to make; `number` counts from one."""

    number: int
    prompt: str
    seed: int

    @property
    def stem(self) -> str:
        """What the names of its files begin with."""
        return f"{self.number:03d}-seed-{self.seed}"


@dataclass(frozen=True)
class Sample:
    """One picture made. `picture`: a PIL picture; with random weights, the latents. `peak_bytes`: None where it is not known."""

    picture: Any
    seconds: float
    peak_bytes: int | None
    report: RunReport | None = None


class Maker:
    """A loaded pipeline and what is asked of it."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        from ..hosts.diffusers.loading import Asked, call_arguments

        self._asked = arguments
        self.pipe = _opened(arguments)
        asked = Asked(arguments.steps, arguments.width, arguments.height, arguments.guidance, arguments.negative)
        self._call = call_arguments(self.pipe, asked)

    def environment(self) -> dict[str, Any]:
        """Machine, versions and settings that the rows belong to."""
        import diffusers

        asked = self._asked
        names = ("model", "preset", "guidance", "negative", "dtype", "offload", "random_weights")
        kinds = {"pipeline": type(self.pipe).__name__, "transformer": type(self.pipe.transformer).__name__}
        return environment(asked.device, diffusers=str(diffusers.__version__), **kinds, **{name: getattr(asked, name) for name in names})

    def warm_up(self, shot: Shot) -> None:
        """Both ways once, for few steps: the first call of all is slower than the others."""
        for way in (DENSE, self._asked.preset):
            self._progress(f"warm-up, {way}")
            self._made(shot, way, num_inference_steps=WARM_UP_STEPS)

    def row(self, shot: Shot) -> dict[str, Any]:
        """One picture, both ways where they are compared; its files are written."""
        asked = self._asked
        ways = [asked.preset, *([DENSE] if asked.compare else [])]
        made = {}
        # In another order every other time, so that none is always the first.
        for way in ways if shot.number % 2 else reversed(ways):
            self._progress(f"picture {shot.number} of {len(asked.shots)}, {way}")
            made[way] = self._made(shot, way)
        ours, dense = made[asked.preset], made.get(DENSE)
        files = [] if asked.random_weights else self._written(shot, ours, dense)
        return {**_facts(shot, ours, dense, asked), "files": files}

    def _progress(self, text: str) -> None:
        self.pipe.set_progress_bar_config(desc=text)

    def _made(self, shot: Shot, way: str, **changes: Any) -> Sample:
        call = {**self._call, **self._prompt(shot), **changes, "generator": torch.Generator().manual_seed(shot.seed)}
        if way == DENSE:
            return Sample(*self._called(call))
        with apply(self.pipe, way) as safe:
            made = self._called(call)
        return Sample(*made, safe.report())

    def _called(self, call: dict[str, Any]) -> tuple[Any, float, int | None]:
        """Picture, seconds and peak of memory of one call of the pipeline."""
        on_gpu = self._asked.device == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        started = now(self._asked.device)
        picture = self.pipe(**call).images[0]
        return picture, now(self._asked.device) - started, torch.cuda.max_memory_allocated() if on_gpu else None

    def _prompt(self, shot: Shot) -> dict[str, Any]:
        if self._asked.random_weights:
            from ..hosts.diffusers.loading import random_prompt

            return {**random_prompt(self.pipe, shot.number), "output_type": "latent"}
        return {"prompt": shot.prompt}

    def _written(self, shot: Shot, ours: Sample, dense: Sample | None) -> list[str]:
        pictures = {f"{shot.stem}.png": ours.picture}
        if dense is not None:
            from diffusers.utils import make_image_grid

            both = make_image_grid([dense.picture, ours.picture], rows=1, cols=2)
            pictures |= {f"{shot.stem}-dense.png": dense.picture, f"{shot.stem}-both.png": both}
        self._asked.out.mkdir(parents=True, exist_ok=True)
        for name, picture in pictures.items():
            picture.save(self._asked.out / name)
        return list(pictures)


def _opened(asked: argparse.Namespace) -> Any:
    """The pipeline on its device."""
    from ..hosts.diffusers.loading import find_source, load, load_random

    source = find_source(asked.model, asked.download, asked.random_weights)
    dtype = getattr(torch, asked.dtype)
    if asked.random_weights:
        pipe = load_random(source, "cpu" if asked.offload else asked.device, dtype)
    else:
        pipe = load(asked.model, source, asked.download, dtype)
    if asked.offload:
        pipe.enable_model_cpu_offload(device=asked.device)
    else:
        pipe.to(asked.device)
    return pipe


def _facts(shot: Shot, ours: Sample, dense: Sample | None, asked: argparse.Namespace) -> dict[str, Any]:
    report = ours.report
    assert report is not None
    size = (asked.width, asked.height) if asked.random_weights else ours.picture.size
    return {
        "method": "paper" if asked.preset == "paper" else "ours",
        "model": asked.model,
        "number": shot.number,
        "prompt": shot.prompt,
        "seed": shot.seed,
        "resolution": f"{size[0]}x{size[1]}",
        "steps": report.total_steps,
        "seconds_dense": dense and dense.seconds,
        "seconds": ours.seconds,
        "speedup": dense and dense.seconds / ours.seconds,
        "steps_by_kind": report.counts(),
        "rows_computed_share": report.rows_computed_share,
        "psnr_db": None if dense is None or asked.random_weights else _closeness(ours.picture, dense.picture),
        "peak_bytes_dense": dense and dense.peak_bytes,
        "peak_bytes": ours.peak_bytes,
        "masks": report.masks,
        "notes": report.notes,
    }


def _closeness(picture: Any, reference: Any) -> float | None:
    """PSNR of two PIL pictures in dB; None where they are equal."""
    found = psnr_db(*(np.asarray(one, np.float32) / 255 for one in (picture, reference)))
    return found if math.isfinite(found) else None
