"""Lumina-Image 2."""

from __future__ import annotations

from ..base import Backbone, BlockGroup, Layout, RowArgument

LUMINA2 = Backbone(
    name="Lumina-Image 2",
    class_names=("Lumina2Transformer2DModel",),
    groups=(
        BlockGroup(
            "context_refiner",
            Layout.TEXT,
            "hidden_states",
            (RowArgument("attention_mask", 1, Layout.TEXT), RowArgument("image_rotary_emb", 1, Layout.TEXT)),
            constant=True,
        ),
        BlockGroup(
            "noise_refiner",
            Layout.IMAGE,
            "hidden_states",
            (RowArgument("image_rotary_emb", 1, Layout.IMAGE),),
            attentions=(Layout.IMAGE,),
            restore=True,
        ),
        BlockGroup(
            "layers",
            Layout.TEXT_IMAGE,
            "hidden_states",
            (RowArgument("image_rotary_emb", 1, Layout.TEXT_IMAGE),),
            attentions=(Layout.TEXT_IMAGE,),
            unset=("attention_mask",),  # there is one where prompts of a batch differ in length, and image rows begin at different places
        ),
    ),
    head="norm_out",
    head_layout=Layout.TEXT_IMAGE,
    patch="config.patch_size",
    source="diffusers/models/transformers/transformer_lumina2.py",
)
