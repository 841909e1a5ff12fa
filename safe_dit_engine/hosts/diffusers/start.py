"""Makes a run from what a pipeline's scheduler says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ...backbones import DIFFUSERS
from ...presets import SafeConfig
from ...report import NoteLevel, RunReport
from ...run import Run
from ...selective.memory import Memory
from ...steps.levels import flow_parts, flow_progress, plain_progress
from ...steps.plan import ScheduleConfig
from ...steps.samplers import EULER
from .other_caches import other_cache
from .schedulers import flows, known_of, suited

NOT_LEFT_OUT = "Computed in full, because with the scheduler `{}` fewer steps may come closer to the full run than this setting."


def empty_report(sentence: str) -> RunReport:
    """The report of a call of which there is nothing to say but this."""
    report = RunReport(total_steps=0)
    report.note(sentence, NoteLevel.WARNING)
    return report


def start_run(
    config: SafeConfig,
    scheduler: Any,
    module: nn.Module,
    levels: Sequence[float],
    shape: tuple[int, ...],
    device: torch.device,
    may_be_coarse: bool,
) -> Run:
    """A run over these noise levels on latents `[images, C, ...]` of this `shape`, by what of `config` suits the scheduler.

    `may_be_coarse`: whether the pipeline allows coarse steps (coarse.py).
    """
    asked, steps = config.schedule, len(levels) - 1
    window = (0, steps) if asked is None else (round(asked.start_percent * steps), round(asked.end_percent * steps))
    known = known_of(scheduler)
    suiting = config if asked is None or known is None else replace(config, schedule=suited(asked, known))
    run = Run(
        suiting, module, levels, shape, window, _memory_of(device), DIFFUSERS, _progress(scheduler, levels),
        sampler=EULER if known is None else known.sampler, parts=flow_parts if may_be_coarse else None, in_full=other_cache(module),
    )  # fmt: skip
    if asked is not None and _asks_for_more(asked, suiting.schedule or asked):
        run.note(NOT_LEFT_OUT.format(type(scheduler).__name__))
    return run


def _asks_for_more(asked: ScheduleConfig, suiting: ScheduleConfig) -> bool:
    """Whether more was to be left out than suits the scheduler."""
    return suiting.refresh_interval < asked.refresh_interval or suiting.coarse_steps < asked.coarse_steps


def _progress(scheduler: Any, levels: Sequence[float]) -> tuple[float, ...]:
    return flow_progress(levels) if flows(scheduler) else plain_progress(levels)


def _memory_of(device: torch.device) -> Memory | None:
    """What is free on a GPU, what torch keeps for itself counted in."""
    if device.type != "cuda":
        return None

    def free(device: torch.device) -> int:
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept

    return Memory(free, lambda size, device: torch.cuda.empty_cache())
