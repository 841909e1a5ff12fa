"""Model families as ComfyUI has them, one a file: whoever adds a file adds a family."""

from __future__ import annotations

from ..find import described_in
from .left_dense import LEFT_DENSE

BACKBONES = described_in(__name__, __path__)

__all__ = ["BACKBONES", "LEFT_DENSE"]
