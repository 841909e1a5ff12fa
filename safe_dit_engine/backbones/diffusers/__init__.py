"""Model families as `diffusers` has them, one a file: whoever adds a file adds a family."""

from __future__ import annotations

from ..find import described_in

DIFFUSERS = described_in(__name__, __path__)
