"""SD3 and SD3.5. Here the text stands behind the image."""

from __future__ import annotations

from ..base import CONTROLNET, Backbone, BlockGroup, Layout

SD3 = Backbone(
    name="SD3",
    class_names=("SD3Transformer2DModel",),
    groups=(BlockGroup("transformer_blocks", Layout.IMAGE, "hidden_states", attentions=(Layout.IMAGE_TEXT, Layout.IMAGE)),),
    head="proj_out",
    head_layout=Layout.IMAGE,
    patch="config.patch_size",
    refusals=(("block_controlnet_hidden_states", CONTROLNET), ("skip_layers", "skip-layer guidance leaves out blocks")),
    source="diffusers/models/transformers/transformer_sd3.py",
)
