"""Qwen-Image, Qwen-Image-Edit, and Mage-Flow, which is made of the same blocks.

Qwen's latent is a video of one frame. Padded text makes every attention call build a mask for the rows it sees. Edit's reference rows
stand behind the image's and are kept like context, unless they are modulated apart (`index_timestep_zero`).
"""

from __future__ import annotations

from dataclasses import replace

from ..base import Backbone, BlockGroup, Extras, Layout, MaskSource, RowArgument

QWEN = Backbone(
    name="Qwen-Image",
    class_names=("QwenImageTransformer2DModel",),
    groups=(
        BlockGroup(
            "transformer_blocks",
            Layout.IMAGE,
            "hidden_states",
            (RowArgument("image_rotary_emb", 2, Layout.TEXT_IMAGE),),
            attentions=(Layout.TEXT_IMAGE,),
            unset=("timestep_zero_index",),
        ),
    ),
    head="proj_out",
    head_layout=Layout.IMAGE,
    extras=Extras.CONTEXT,
    controls=("input",),
    # Attention.forward: zeros for the image, the text's mask before them.
    mask_source=MaskSource("transformer_blocks", "encoder_hidden_states_mask"),
    source="comfy/ldm/qwen_image/model.py",
)
MAGE_FLOW = replace(QWEN, name="Mage-Flow", class_names=("MageFlowTransformer2DModel",), source="comfy/ldm/mage_flow/model.py")
