"""HiDream-I1.

The text stands behind the image: T5's, Llama's last layer, and one of Llama's layers for each block, which the model appends before
the block and cuts off after it. Image and text are two streams in the first blocks and one in the others.
"""

from __future__ import annotations

from ..base import Backbone, BlockGroup, Layout, RowArgument

_ROPE = (RowArgument("rope", 1, Layout.IMAGE_TEXT),)

HIDREAM = Backbone(
    name="HiDream",
    class_names=("HiDreamImageTransformer2DModel",),
    groups=(
        BlockGroup("double_stream_blocks", Layout.IMAGE, "image_tokens", _ROPE, attentions=(Layout.IMAGE_TEXT,)),
        BlockGroup("single_stream_blocks", Layout.IMAGE_TEXT, "image_tokens", _ROPE, attentions=(Layout.IMAGE_TEXT,), gathered=True),
    ),
    head="final_layer",
    head_layout=Layout.IMAGE,
    refusals=(("image_cond", "the picture to edit stands beside the picture"),),
    source="comfy/ldm/hidream/model.py",
)
