"""PixArt-Alpha and Sigma."""

from __future__ import annotations

from ..base import Backbone, BlockGroup, Layout

PIXART = Backbone(
    name="PixArt",
    class_names=("PixArtTransformer2DModel",),
    groups=(
        BlockGroup(
            "transformer_blocks", Layout.IMAGE, "hidden_states", attentions=(Layout.IMAGE, Layout.CROSS), unset=("attention_mask",)
        ),
    ),
    head="proj_out",
    head_layout=Layout.IMAGE,
    patch="config.patch_size",
    source="diffusers/models/transformers/pixart_transformer_2d.py",
)
