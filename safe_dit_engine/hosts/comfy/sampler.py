"""The sampler that the Selective Update Sampler gives: a schedule around any sampler of ComfyUI."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from torch import Tensor

from ...steps.plan import ScheduleConfig

log = logging.getLogger("safe_dit")

# Under which the pack wraps the model.
KEY = "safe_dit"
# Where the options of a sampling run hold the pack's state of it.
RUN = "safe_dit_run"


class SelectiveSampler:
    """A sampler that carries a schedule, and tokens painted on its map (painting.py); everything else is the sampler it wraps."""

    def __init__(self, sampler: Any, schedule: ScheduleConfig, painting: Tensor | None = None) -> None:
        self.sampler = sampler
        self.schedule = schedule
        self.painting = painting

    def __getattr__(self, name: str) -> Any:
        if name in ("sampler", "schedule", "painting"):  # not set yet: being copied or unpickled
            raise AttributeError(name)
        return getattr(self.sampler, name)

    def sample(self, model_wrap: Any, sigmas: Tensor, extra_args: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Sample with the wrapped sampler; says so when the model was not prepared for selective updates."""
        with self._scheduled(sigmas, extra_args):
            return self.sampler.sample(model_wrap, sigmas, extra_args, *args, **kwargs)

    @property
    def sampler_function(self) -> Callable[..., Any]:
        """The wrapped sampler's function: samplers of other packs call it, and never `sample`."""
        function = self.sampler.sampler_function

        @wraps(function)
        def scheduled(model: Any, x: Tensor, sigmas: Tensor, *args: Any, **kwargs: Any) -> Any:
            with self._scheduled(sigmas, kwargs.get("extra_args") or {}):
                return function(model, x, sigmas, *args, **kwargs)

        return scheduled

    @contextmanager
    def _scheduled(self, sigmas: Tensor, extra_args: dict[str, Any]) -> Iterator[None]:
        """The run follows this schedule from here on, whatever else wraps this sampler, and nothing is left out after it."""
        sampling = extra_args.get("model_options", {}).get("transformer_options", {}).get(RUN)
        if sampling is None:
            log.warning(
                "SAFE-DiT: the Selective Update Sampler got a model without a Prompt Token Partitioner, so every step is computed in full; "
                "put a Prompt Token Partitioner between the model loader and the guider."
            )
            yield
            return
        sampling.follow(self, sigmas.tolist())
        try:
            yield
        finally:
            sampling.leave()


def default_sampler() -> Any:
    """The sampler used where none is connected."""
    from comfy.samplers import sampler_object

    return sampler_object("euler")


def function_name(sampler: Any) -> str | None:
    """Name of a sampler's function; None where it has none."""
    return getattr(getattr(sampler, "sampler_function", None), "__name__", None)
