"""`diffusers`: puts a run around every call of a pipeline.

| what | for how long | what it does here |
| --- | --- | --- |
| a subclass of the pipeline's class | until `remove()` | goes around a call of the pipeline, learns how many images it makes |
| `forward` of the transformer | one call of the pipeline | one model call: hooks, attention, result; or nothing, in a skipped step |
| `step` of the scheduler | one call of the pipeline | one evaluation: its guided prediction is corrected, or taken from the run |
| a table's function in the pipeline's module | one call of the pipeline | makes it once, not in every step (Lumina-Next) |

The last three are `invocation.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from torch import Tensor, nn

from ...masks.ledger import MaskMode
from ...presets import PRESETS, SafeConfig
from ...report import RunReport
from .invocation import Invocation
from .start import empty_report

MARK = "_safe_dit"


def preset(name: str) -> SafeConfig:
    """What the Accelerate node asks with a preset of this name; ValueError where there is none."""
    if name not in PRESETS:
        raise ValueError(f"There is no preset `{name}`; give one of {', '.join(PRESETS)}.")
    return SafeConfig(masks=MaskMode.ELIDE, partition=PRESETS[name].partition(), schedule=PRESETS[name].schedule())


def apply(pipe: Any, config: SafeConfig | str) -> Accelerated:
    """Accelerate a `diffusers` pipeline with a configuration or a preset's name, until `remove()` of what is returned, or its `with`.

    ValueError where the pipeline has no `transformer` or is accelerated already, or focus words are asked for.
    """
    config = preset(config) if isinstance(config, str) else config
    if not isinstance(getattr(pipe, "transformer", None), nn.Module):
        raise ValueError(f"The pipeline `{type(pipe).__name__}` has no `transformer`; only diffusion transformers can be accelerated.")
    if hasattr(type(pipe), MARK):
        raise ValueError("The pipeline is accelerated already; call `remove()` on what `apply` returned before.")
    if config.partition is not None and config.partition.focus is not None:
        raise ValueError("`focus` is set; where its words stand among a model's text rows is known in ComfyUI alone: leave it out.")
    return Accelerated(pipe, config)


class Accelerated:
    """An accelerated pipeline. Nothing of it is on the pipeline but a subclass of its class, and nothing at all after `remove()`."""

    def __init__(self, pipe: Any, config: SafeConfig) -> None:
        self.pipe = pipe
        self.config = config
        self._report = empty_report("The pipeline has not been called since it was accelerated.")
        self._class = type(pipe)
        pipe.__class__ = _subclass(self._class, self)

    def report(self) -> RunReport:
        """What the last call of the pipeline did."""
        return self._report

    def remove(self) -> None:
        """Leave the pipeline as it was; a second time does nothing."""
        if getattr(type(self.pipe), MARK, None) is self:
            self.pipe.__class__ = self._class

    def __enter__(self) -> Accelerated:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    @contextmanager
    def invocation(self) -> Iterator[None]:
        """One call of the pipeline."""
        self.current = Invocation(self.pipe, self.config)
        try:
            with self.current.installed():
                yield
        finally:
            self._report = self.current.close()
            del self.current

    def prepared(self, latents: Any) -> None:
        """The pipeline made its latents `[images, ...]`, perhaps with more behind them."""
        first = latents[0] if isinstance(latents, tuple) else latents
        if "current" in vars(self) and isinstance(first, Tensor):
            self.current.makes(first.shape[0])


def _subclass(original: Any, safe: Accelerated) -> type:
    @wraps(original.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with safe.invocation():
            return original.__call__(self, *args, **kwargs)

    members: dict[str, Any] = {"__call__": call, "__module__": original.__module__, "__doc__": original.__doc__, MARK: safe}
    if hasattr(original, "prepare_latents"):

        @wraps(original.prepare_latents)
        def prepare_latents(self: Any, *args: Any, **kwargs: Any) -> Any:
            latents = original.prepare_latents(self, *args, **kwargs)
            safe.prepared(latents)
            return latents

        members["prepare_latents"] = prepare_latents
    # The name goes into what `save_pretrained` writes.
    return type(original.__name__, (original,), members)
