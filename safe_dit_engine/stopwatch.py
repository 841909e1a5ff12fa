"""How long work takes on the device that does it."""

from __future__ import annotations

import time
from functools import cached_property
from typing import Any

import torch


class Stopwatch:
    """Time from its making to `stop`.

    An accelerator's work is only queued when a call returns. There two events in the queue mark the time, and whoever reads it waits for
    the second one; until then nothing waits.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device
        accelerator = None if device is None or device.type == "cpu" else getattr(torch, device.type, None)
        self._accelerator: Any = accelerator if hasattr(accelerator, "Event") else None
        self._began = self._ended = self._mark()

    def stop(self) -> Stopwatch:
        """The work is done, or queued."""
        self._ended = self._mark()
        return self

    def _mark(self) -> Any:
        if self._accelerator is None:
            return time.perf_counter()
        event = self._accelerator.Event(enable_timing=True)
        # Not every accelerator has streams to choose from.
        streams = getattr(self._accelerator, "current_stream", None)
        event.record(*(() if streams is None else (streams(self._device),)))
        return event

    @cached_property
    def milliseconds(self) -> float:
        """What it took; ask once it was stopped."""
        if self._accelerator is None:
            return 1000.0 * float(self._ended - self._began)
        self._ended.synchronize()
        return float(self._began.elapsed_time(self._ended))
