"""Time and the peak of memory of what runs on a device."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

PROCESS = Path("/proc/self")
T = TypeVar("T")


def timed(call: Callable[[], T], device: str) -> tuple[T, float, int | None]:
    """What a call returns, its seconds, and the peak of memory in bytes meanwhile, None where it is not known.

    On a GPU what is allocated, on a CPU the resident set of the process.
    """
    is_known = _reset_peak(device)
    started = _now(device)
    result = call()
    seconds = _now(device) - started
    return result, seconds, _peak_bytes(device) if is_known else None


def _now(device: str) -> float:
    """Seconds on a clock, once the device has done what it was asked."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _reset_peak(device: str) -> bool:
    """Start over with the peak of memory; False where that cannot be done."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return True
    try:
        # 5 resets the peak of the resident set (Linux: proc(5)).
        (PROCESS / "clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _peak_bytes(device: str) -> int | None:
    if device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    lines = (PROCESS / "status").read_text(encoding="utf-8").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), None)
