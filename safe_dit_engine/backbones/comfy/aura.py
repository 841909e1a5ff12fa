"""AuraFlow: text (behind eight register tokens) and image are two streams in the first blocks and one in the others."""

from __future__ import annotations

from ..base import Backbone, BlockGroup, Layout

AURA = Backbone(
    name="AuraFlow",
    class_names=("MMDiT",),
    groups=(
        BlockGroup("double_layers", Layout.IMAGE, "x", attentions=(Layout.TEXT_IMAGE,)),
        BlockGroup("single_layers", Layout.TEXT_IMAGE, "cx", attentions=(Layout.TEXT_IMAGE,), gathered=True),
    ),
    head="final_linear",
    head_layout=Layout.IMAGE,
    source="comfy/ldm/aura/mmdit.py",
)
