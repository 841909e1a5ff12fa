"""`diffusers` as host: `apply(pipe, "balanced")` accelerates a pipeline."""

from __future__ import annotations

from .pipeline import Accelerated, apply, preset

__all__ = ["Accelerated", "apply", "preset"]
