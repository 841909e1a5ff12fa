"""Ernie-Image: one stream, image first, then the text. Attention is given no options, so it is lent one for the length of a call."""

from __future__ import annotations

from ..base import Backbone, BlockGroup, Layout, RowArgument

ERNIE = Backbone(
    name="Ernie-Image",
    class_names=("ErnieImageModel",),
    groups=(
        BlockGroup(
            "layers",
            Layout.IMAGE_TEXT,
            "x",
            (RowArgument("rotary_pos_emb", 1, Layout.IMAGE_TEXT),),
            attentions=(Layout.IMAGE_TEXT,),
            unset=("attention_mask",),
        ),
    ),
    head="final_linear",
    head_layout=Layout.IMAGE_TEXT,
    lent_attention="comfy.ldm.ernie.model",
    source="comfy/ldm/ernie/model.py",
)
