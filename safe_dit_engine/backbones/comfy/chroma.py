"""Chroma: Flux's blocks, their modulation made by one small network for all of them."""

from __future__ import annotations

from dataclasses import replace

from ..base import Extras
from .flux import FLUX

CHROMA = replace(FLUX, name="Chroma", class_names=("Chroma",), extras=Extras.ACTIVE, source="comfy/ldm/chroma/model.py")
