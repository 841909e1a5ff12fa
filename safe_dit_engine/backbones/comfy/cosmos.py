"""Cosmos-Predict2, and Anima, which is one with another text encoder.

Blocks keep image rows on a grid of frames, height and width, and do to each what its frame's noise level asks for. With one level for all
frames they take the active rows in one line just as well. The text is looked at by cross attention.
"""

from __future__ import annotations

from ..base import Backbone, BlockGroup, Layout, RowArgument

COSMOS = Backbone(
    name="Cosmos-Predict2",
    class_names=("MiniTrainDIT", "Anima"),
    groups=(
        BlockGroup(
            "blocks",
            Layout.IMAGE,
            "x_B_T_H_W_D",
            (RowArgument("rope_emb_L_1_1_D", 1, Layout.IMAGE),),
            attentions=(Layout.IMAGE, Layout.CROSS),
            unset=("extra_per_block_pos_emb",),
            single=(("emb_B_T_D", 1, "the noise level differs from frame to frame"),),
        ),
    ),
    head="final_layer",
    head_layout=Layout.IMAGE,
    patch="patch_spatial",
    source="comfy/ldm/cosmos/predict2.py",
)
