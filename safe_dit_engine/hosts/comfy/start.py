"""Makes a run from what ComfyUI's guider, sampler and model say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ...presets import SafeConfig
from ...run import Run
from ...selective.memory import Memory
from ...steps.levels import progress_of
from ...steps.plan import ScheduleConfig, window_of_sigmas
from ...steps.samplers import find_sampler
from ...tokens.partition import PartitionConfig
from .guidance import unguided
from .sampler import SelectiveSampler, function_name

# Where ComfyUI's EasyCache and LazyCache keep what they know of a run. They go by how much the prediction changes from call to call; that
# of a skipped step does not change at all, so LazyCache answered every step after it.
CACHE = "easycache"
TWO_CACHES = "{} leaves out steps as well, and the two mislead each other; bypass one of them"


def start_run(
    guider: Any, config: SafeConfig, latent: tuple[int, ...], name: str | None, sampler: SelectiveSampler | None, levels: list[float]
) -> Run:
    """A run over these noise levels with the sampler function `name`, by the schedule of `sampler`, where there is one."""
    name = name if sampler is None else function_name(sampler.sampler)
    schedule = config.schedule
    if sampler is not None:
        config = replace(config, schedule=sampler.schedule)
        if sampler.painting is not None:
            config = replace(config, partition=replace(config.partition or PartitionConfig(), painting=sampler.painting))
    patcher = guider.model_patcher
    # Asked of the patcher: its patches are applied to the model only later.
    sampling = patcher.get_model_object("model_sampling")
    known, alone = find_sampler(name), unguided(guider)
    run = Run(
        config,
        patcher.get_model_object("diffusion_model"),
        levels,
        latent,
        _window(config.schedule, sampling, levels),
        _memory_of(patcher.model),
        progress=[progress_of(*pair) for pair in _parts(sampling, levels)],
        sampler=known.unguided() if alone else known,
        parts=lambda level: _parts(sampling, [level])[0],
        in_full=_other_cache(guider.model_options),
    )
    if alone:
        run.skipping.unguided()
    if sampler is not None and schedule is not None:
        run.note("The schedule of the Selective Update Sampler is followed, not that of SAFE-DiT Accelerate.")
    return run


def _other_cache(model_options: dict[str, Any]) -> str:
    """Why nothing is to be left out beside another cache; empty where there is none."""
    cache = model_options.get("transformer_options", {}).get(CACHE)
    return "" if cache is None else TWO_CACHES.format(type(cache).__name__.removesuffix("Holder"))


def _parts(sampling: Any, levels: list[float]) -> list[tuple[float, float]]:
    """Picture and noise that a latent holds at noise levels: the model's own sampling object is asked, once for all."""
    sigmas = torch.tensor(levels).view(-1, 1, 1, 1)
    zeros, ones = torch.zeros_like(sigmas), torch.ones_like(sigmas)
    parts = torch.stack((sampling.noise_scaling(sigmas, zeros, ones), sampling.noise_scaling(sigmas, ones, zeros)), dim=-1)
    return [(picture, noise) for picture, noise in parts.view(-1, 2).tolist()]


def _memory_of(base_model: Any) -> Memory:
    """What ComfyUI knows of memory. Room is made by unloading other models, never one of this run: the one that samples, a ControlNet,
    a second one, or whatever else ComfyUI says is in use."""
    import comfy.model_management as management

    def make_room(size: int, device: torch.device) -> None:
        loaded = [each for each in management.current_loaded_models if each.model is not None]
        in_use = [each for each in loaded if each.currently_used or each.model.model is base_model]
        management.free_memory(size, device, keep_loaded=in_use)

    return Memory(management.get_free_memory, make_room)


def _window(schedule: ScheduleConfig | None, model_sampling: Any, levels: list[float]) -> tuple[int, int]:
    if schedule is None:
        return (0, len(levels) - 1)
    to_sigma = model_sampling.percent_to_sigma
    return window_of_sigmas(levels, float(to_sigma(schedule.start_percent)), float(to_sigma(schedule.end_percent)))
