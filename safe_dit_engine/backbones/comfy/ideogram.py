"""Ideogram 4: one stream, text first, then the image; the image alone where there is no prompt. Masked per query (padded text): in full."""

from __future__ import annotations

from ..base import Backbone, BlockGroup, Layout, RowArgument

IDEOGRAM = Backbone(
    name="Ideogram 4",
    class_names=("Ideogram4Transformer2DModel",),
    groups=(
        BlockGroup("layers", Layout.TEXT_IMAGE, "x", (RowArgument("freqs_cis", 1, Layout.TEXT_IMAGE),), attentions=(Layout.TEXT_IMAGE,)),
    ),
    head="final_layer",
    head_layout=Layout.TEXT_IMAGE,
    patch=1,
    source="comfy/ldm/ideogram4/model.py",
)
