"""FLUX.1: dev, schnell, Kontext.

Image rows are packed by the pipeline: they are tokens already, so their edge is 1. The table of positions has no batch dimension, so all
images share their rows.
"""

from __future__ import annotations

from ..base import CONTROLNET, Backbone, BlockGroup, Extras, Layout, RowArgument

FLUX = Backbone(
    name="Flux",
    class_names=("FluxTransformer2DModel",),
    groups=tuple(
        BlockGroup(
            path,
            Layout.IMAGE,
            "hidden_states",
            tuple(RowArgument("image_rotary_emb", 0, Layout.TEXT_IMAGE, part) for part in (0, 1)),
            attentions=(Layout.TEXT_IMAGE,),
            gathered=gathered,
        )
        for path, gathered in (("transformer_blocks", False), ("single_transformer_blocks", True))
    ),
    head="proj_out",
    head_layout=Layout.IMAGE,
    patch=1,
    extras=Extras.CONTEXT,
    refusals=(("controlnet_block_samples", CONTROLNET), ("controlnet_single_block_samples", CONTROLNET)),
    shared_rows=True,
    source="diffusers/models/transformers/transformer_flux.py",
)
