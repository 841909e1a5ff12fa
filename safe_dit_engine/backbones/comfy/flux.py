"""Flux.1 (dev, schnell, Kontext).

Image and text are two streams in the double blocks and one, text first, in the single blocks. The rows stay gathered in between: the
model cuts by the text's length. Kontext's reference rows stand behind the image's and are kept like context: their output is thrown away.
"""

from __future__ import annotations

from ..base import Backbone, BlockGroup, Extras, Layout, RowArgument

_PE = RowArgument("pe", 2, Layout.TEXT_IMAGE)

FLUX = Backbone(
    name="Flux",
    class_names=("Flux",),
    groups=(
        BlockGroup("double_blocks", Layout.IMAGE, "img", (_PE,), attentions=(Layout.TEXT_IMAGE,), unset=("modulation_dims_img",)),
        BlockGroup("single_blocks", Layout.TEXT_IMAGE, "x", (_PE,), attentions=(Layout.TEXT_IMAGE,), gathered=True),
    ),
    head="final_layer",
    head_layout=Layout.IMAGE,
    extras=Extras.CONTEXT,
    controls=("input", "output"),
    source="comfy/ldm/flux/model.py",
)
