"""Lens.

The text stands behind the image. Every attention call carries a mask over all rows, whose shape the model checks against the rows it
sees. The latent is cut into tokens already; `patch_size` speaks of the VAE's.
"""

from __future__ import annotations

from ..base import Backbone, BlockGroup, Layout, MaskSource, RowArgument

LENS = Backbone(
    name="Lens",
    class_names=("LensTransformer2DModel",),
    groups=(
        BlockGroup(
            "transformer_blocks",
            Layout.IMAGE,
            "hidden_states",
            (RowArgument("freqs_cis", 2, Layout.IMAGE_TEXT), RowArgument("attention_mask", 3, Layout.IMAGE_TEXT)),
            attentions=(Layout.IMAGE_TEXT,),
        ),
    ),
    head="proj_out",
    head_layout=Layout.IMAGE,
    patch=1,
    controls=("input",),
    # LensJointAttention.forward: the joint mask, cast to the type of the queries.
    mask_source=MaskSource("transformer_blocks", "attention_mask"),
    source="comfy/ldm/lens/model.py",
)
