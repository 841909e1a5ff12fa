"""OmniGen2: like NextDiT, image rows pass a noise refiner and then join the text: [text, image]. References would stand in between."""

from __future__ import annotations

from ..base import Backbone, BlockGroup, Layout, RowArgument

OMNIGEN2 = Backbone(
    name="OmniGen2",
    class_names=("OmniGen2Transformer2DModel",),
    groups=(
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
        ),
    ),
    head="norm_out",
    head_layout=Layout.TEXT_IMAGE,
    refusals=(("ref_latents", "reference latents change the token layout"),),
    source="comfy/ldm/omnigen/omnigen2.py",
)
