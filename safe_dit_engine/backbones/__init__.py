"""Model families as data: where blocks and head are, where image rows are, which arguments are per row."""

from __future__ import annotations

from .base import Backbone, BlockGroup, Extras, Layout, MaskSource, RowArgument, layers_of
from .comfy import BACKBONES, LEFT_DENSE
from .diffusers import DIFFUSERS
from .find import Fit, argument_names, described_in, find_backbone, mask_source_of

__all__ = [
    "BACKBONES", "DIFFUSERS", "LEFT_DENSE", "Backbone", "BlockGroup", "Extras", "Fit", "Layout", "MaskSource", "RowArgument",
    "argument_names", "described_in", "find_backbone", "layers_of", "mask_source_of",
]  # fmt: skip
