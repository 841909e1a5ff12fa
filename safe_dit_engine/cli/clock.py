"""Time and the peak of memory of what runs on a device."""

from __future__ import annotations

import time
from pathlib import Path

import torch

PROCESS = Path("/proc/self")


def now(device: str) -> float:
    """Seconds on a clock, once the device has done what it was asked."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def reset_peak(device: str) -> bool:
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


def peak_bytes_of(device: str) -> int | None:
    """Peak of memory since `reset_peak`: allocated on a GPU, the resident set on a CPU; None where it is not known."""
    if device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    lines = (PROCESS / "status").read_text(encoding="utf-8").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), None)
