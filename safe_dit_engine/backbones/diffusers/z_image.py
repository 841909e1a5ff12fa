"""Z-Image. Here the text stands behind the image, both padded to a multiple of 32 rows."""

from __future__ import annotations

from ..base import CONTROLNET, Backbone, BlockGroup, Layout, RowArgument

_TABLE = RowArgument("freqs_cis", 1, Layout.IMAGE)

Z_IMAGE = Backbone(
    name="Z-Image",
    class_names=("ZImageTransformer2DModel",),
    groups=(
        BlockGroup(
            "noise_refiner", Layout.IMAGE, "x", (_TABLE,), attentions=(Layout.IMAGE,), restore=True, unset=("attn_mask", "noise_mask")
        ),
        BlockGroup(
            "context_refiner",
            Layout.TEXT,
            "x",
            (RowArgument("attn_mask", 1, Layout.TEXT), RowArgument("freqs_cis", 1, Layout.TEXT)),
            constant=True,
        ),
        BlockGroup(
            "layers",
            Layout.IMAGE_TEXT,
            "x",
            (RowArgument("freqs_cis", 1, Layout.IMAGE_TEXT),),
            attentions=(Layout.IMAGE_TEXT,),
            unset=("noise_mask",),
        ),
    ),
    head="all_final_layer.2-1",
    head_layout=Layout.IMAGE_TEXT,
    patch=2,
    pad=32,
    refusals=(("controlnet_block_samples", CONTROLNET), ("siglip_feats", "image references change the token layout")),
    source="diffusers/models/transformers/transformer_z_image.py",
)
