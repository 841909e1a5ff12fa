"""PixArt alpha and Sigma.

Image rows attend to themselves and then to the text. Attention is given no options here, so it is lent one for the length of a call.
Checkpoints that compress keys and values are found at the first call and run in full.
"""

from __future__ import annotations

from ..base import Backbone, BlockGroup, Layout

PIXART = Backbone(
    name="PixArt",
    class_names=("PixArtMS",),
    groups=(BlockGroup("blocks", Layout.IMAGE, "x", attentions=(Layout.IMAGE, Layout.CROSS)),),
    head="final_layer",
    head_layout=Layout.IMAGE,
    lent_attention="comfy.ldm.pixart.blocks",
    smallest=33,  # below, its positions divide by a size that is rounded to 0
    source="comfy/ldm/pixart/pixartms.py",
)
