"""What both hosts know of torch.compile: calls with hooks cannot run in a graph."""

from __future__ import annotations

import torch

UNCOMPILED = "Without torch.compile, which cannot leave out a part of the tokens; presets that leave out whole steps keep it."
FROZEN = "torch.compile froze the model's graph"


def leaves_graphs() -> bool:
    """Whether this torch (2.6 and later) can run a compiled model as if it were not."""
    return hasattr(torch.compiler, "set_stance")
