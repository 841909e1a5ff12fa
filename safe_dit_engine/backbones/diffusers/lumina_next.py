"""Lumina-Next, which ComfyUI does not have. Its attention is scaled by the number of rows."""

from __future__ import annotations

from ..base import Backbone, BlockGroup, Layout, RowArgument

LUMINA_NEXT = Backbone(
    name="Lumina-Next",
    class_names=("LuminaNextDiT2DModel",),
    groups=(
        BlockGroup(
            "layers",
            Layout.IMAGE,
            "hidden_states",
            (RowArgument("image_rotary_emb", 1, Layout.IMAGE),),
            attentions=(Layout.IMAGE, Layout.CROSS),
        ),
    ),
    head="norm_out",
    head_layout=Layout.IMAGE,
    length_base=("cross_attention_kwargs", "base_sequence_length"),
    source="diffusers/models/transformers/lumina_nextdit2d.py",
)
