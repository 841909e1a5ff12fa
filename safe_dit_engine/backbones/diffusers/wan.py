"""Wan 2.1 and 2.2, text to video."""

from __future__ import annotations

from ..base import Backbone, BlockGroup, Layout, RowArgument

WAN = Backbone(
    name="Wan",
    class_names=("WanTransformer3DModel",),
    groups=(
        BlockGroup(
            "blocks",
            Layout.IMAGE,
            "hidden_states",
            tuple(RowArgument("rotary_emb", 1, Layout.IMAGE, part) for part in (0, 1)),
            attentions=(Layout.IMAGE, Layout.CROSS),
        ),
    ),
    head="proj_out",
    head_layout=Layout.IMAGE,
    patch="config.patch_size",
    refusals=(("encoder_hidden_states_image", "image to video with a CLIP image has not been tried with rows left out"),),
    source="diffusers/models/transformers/transformer_wan.py",
)
