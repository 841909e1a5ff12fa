"""Qwen-Image. Image rows are packed, and all images share theirs, as in Flux."""

from __future__ import annotations

from ..base import CONTROLNET, Backbone, BlockGroup, Extras, Layout, RowArgument

QWEN = Backbone(
    name="Qwen-Image",
    class_names=("QwenImageTransformer2DModel",),
    groups=(
        BlockGroup(
            "transformer_blocks",
            Layout.IMAGE,
            "hidden_states",
            (RowArgument("image_rotary_emb", 0, Layout.IMAGE, 0),),
            attentions=(Layout.TEXT_IMAGE,),
            unset=("modulate_index",),
        ),
    ),
    head="proj_out",
    head_layout=Layout.IMAGE,
    patch=1,
    extras=Extras.CONTEXT,
    refusals=(("controlnet_block_samples", CONTROLNET),),
    shared_rows=True,
    source="diffusers/models/transformers/transformer_qwenimage.py",
)
