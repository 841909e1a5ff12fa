"""Krea 2: one stream, text first, then the image. What fuses the text encoder's layers runs before the blocks and is left alone."""

from __future__ import annotations

from ..base import Backbone, BlockGroup, Layout, RowArgument

KREA2 = Backbone(
    name="Krea 2",
    class_names=("SingleStreamDiT",),
    groups=(
        BlockGroup(
            "blocks",
            Layout.TEXT_IMAGE,
            "x",
            (RowArgument("freqs", 2, Layout.TEXT_IMAGE),),
            attentions=(Layout.TEXT_IMAGE,),
            kv_heads="attn.kvheads",
            unset=("timestep_zero_index",),
        ),
    ),
    head="last",
    head_layout=Layout.TEXT_IMAGE,
    patch="patch",
    refusals=(("ref_latents", "reference latents change the token layout"),),
    source="comfy/ldm/krea2/model.py",
)
