"""Stable Diffusion 3 and 3.5.

Blocks take (text, image) by position. In 3.5 medium the image rows of the first blocks attend a second time, to themselves alone.
"""

from __future__ import annotations

from ..base import Backbone, BlockGroup, Layout

IMAGE_ARGUMENT = 1

SD3 = Backbone(
    name="SD3",
    class_names=("OpenAISignatureMMDITWrapper",),
    groups=(BlockGroup("joint_blocks", Layout.IMAGE, IMAGE_ARGUMENT, attentions=(Layout.TEXT_IMAGE, Layout.IMAGE)),),
    head="final_layer",
    head_layout=Layout.IMAGE,
    controls=("output",),
    source="comfy/ldm/modules/diffusionmodules/mmdit.py",
)
