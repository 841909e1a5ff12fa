"""Kandinsky 5, pictures and videos.

Image rows look at themselves, then at the text. Between blocks and head the model puts the rows back on their grid, so they return to full
length there; of the head, that is its last layer, the active ones are taken.
"""

from __future__ import annotations

from ..base import Backbone, BlockGroup, Layout, RowArgument

KANDINSKY = Backbone(
    name="Kandinsky 5",
    class_names=("Kandinsky5",),
    groups=(
        BlockGroup(
            "visual_transformer_blocks",
            Layout.IMAGE,
            "visual_embed",
            (RowArgument("freqs", 1, Layout.IMAGE),),
            attentions=(Layout.IMAGE, Layout.CROSS),
            restore=True,
        ),
    ),
    head="out_layer.out_layer",
    head_layout=Layout.IMAGE,
    source="comfy/ldm/kandinsky5/model.py",
)
