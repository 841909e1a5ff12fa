"""Wan 2.1 and 2.2: text to video, image to video, single pictures.

Rows are image rows alone, frame under frame; the text is looked at by cross attention. A video's reference frames stand behind its own
(Phantom, in-context references) and are kept like context: their output is thrown away. Image to video with a CLIP image looks at that
first, then at the text. Wan 2.2's frames that are given (5B, image to video) have noise levels of their own: they run in full.
"""

from __future__ import annotations

from dataclasses import replace

from ..base import Backbone, BlockGroup, Extras, Layout, RowArgument

_BLOCKS = BlockGroup(
    "blocks",
    Layout.IMAGE,
    "x",
    (RowArgument("freqs", 1, Layout.IMAGE),),
    attentions=(Layout.IMAGE, Layout.CROSS),
    single=(("e", 1, "the noise level differs from frame to frame"),),
)

WAN = Backbone(
    name="Wan",
    class_names=("WanModel",),
    groups=(_BLOCKS,),
    head="head",
    head_layout=Layout.IMAGE,
    extras=Extras.CONTEXT,
    refusals=(("reference_latent", "a reference image stands before the video's rows"),),
    source="comfy/ldm/wan/model.py",
)

WAN_CLIP = replace(
    WAN,
    name="Wan with CLIP image",
    mark="blocks.0.cross_attn.k_img",
    groups=(replace(_BLOCKS, attentions=(Layout.IMAGE, None, Layout.CROSS)),),
)
