"""Model families as `diffusers` has them: the second table, for the host of that name.

Image rows of packed latents (Flux, Qwen-Image) are tokens already, so their edge is 1. Tables of positions without a batch dimension
have all images share their rows. SD3 and Z-Image put their text behind the image here.
"""

from __future__ import annotations

from .base import Backbone, BlockGroup, Extras, Layout, RowArgument

_BLOCKS = "transformer_blocks"
_CONTROL = "a ControlNet adds to the image at full length"

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
        for path, gathered in ((_BLOCKS, False), ("single_transformer_blocks", True))
    ),
    head="proj_out",
    head_layout=Layout.IMAGE,
    patch=1,
    extras=Extras.CONTEXT,
    refusals=(("controlnet_block_samples", _CONTROL), ("controlnet_single_block_samples", _CONTROL)),
    shared_rows=True,
    source="diffusers/models/transformers/transformer_flux.py",
)

SD3 = Backbone(
    name="SD3",
    class_names=("SD3Transformer2DModel",),
    groups=(BlockGroup(_BLOCKS, Layout.IMAGE, "hidden_states", attentions=(Layout.IMAGE_TEXT, Layout.IMAGE)),),
    head="proj_out",
    head_layout=Layout.IMAGE,
    patch="config.patch_size",
    refusals=(("block_controlnet_hidden_states", _CONTROL), ("skip_layers", "skip-layer guidance leaves out blocks")),
    source="diffusers/models/transformers/transformer_sd3.py",
)

LUMINA_NEXT = Backbone(
    name="Lumina-Next",
    class_names=("LuminaNextDiT2DModel",),
    groups=(
        BlockGroup(
            "layers",
            Layout.IMAGE,
            "hidden_states",
            (RowArgument("image_rotary_emb", 1, Layout.IMAGE),),
            attentions=(Layout.IMAGE, Layout.CROSS),
        ),
    ),
    head="norm_out",
    head_layout=Layout.IMAGE,
    length_base=("cross_attention_kwargs", "base_sequence_length"),
    source="diffusers/models/transformers/lumina_nextdit2d.py",
)

PIXART = Backbone(
    name="PixArt",
    class_names=("PixArtTransformer2DModel",),
    groups=(BlockGroup(_BLOCKS, Layout.IMAGE, "hidden_states", attentions=(Layout.IMAGE, Layout.CROSS), unset=("attention_mask",)),),
    head="proj_out",
    head_layout=Layout.IMAGE,
    patch="config.patch_size",
    source="diffusers/models/transformers/pixart_transformer_2d.py",
)

LUMINA2 = Backbone(
    name="Lumina-Image 2",
    class_names=("Lumina2Transformer2DModel",),
    groups=(
        BlockGroup(
            "context_refiner",
            Layout.TEXT,
            "hidden_states",
            (RowArgument("attention_mask", 1, Layout.TEXT), RowArgument("image_rotary_emb", 1, Layout.TEXT)),
            constant=True,
        ),
        BlockGroup(
            "noise_refiner",
            Layout.IMAGE,
            "hidden_states",
            (RowArgument("image_rotary_emb", 1, Layout.IMAGE),),
            attentions=(Layout.IMAGE,),
            restore=True,
        ),
        BlockGroup(
            "layers",
            Layout.TEXT_IMAGE,
            "hidden_states",
            (RowArgument("image_rotary_emb", 1, Layout.TEXT_IMAGE),),
            attentions=(Layout.TEXT_IMAGE,),
            unset=("attention_mask",),  # there is one where prompts of a batch differ in length, and image rows begin at different places
        ),
    ),
    head="norm_out",
    head_layout=Layout.TEXT_IMAGE,
    patch="config.patch_size",
    source="diffusers/models/transformers/transformer_lumina2.py",
)

_Z_TABLE = RowArgument("freqs_cis", 1, Layout.IMAGE)

Z_IMAGE = Backbone(
    name="Z-Image",
    class_names=("ZImageTransformer2DModel",),
    groups=(
        BlockGroup(
            "noise_refiner", Layout.IMAGE, "x", (_Z_TABLE,), attentions=(Layout.IMAGE,), restore=True, unset=("attn_mask", "noise_mask")
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
    refusals=(("controlnet_block_samples", _CONTROL), ("siglip_feats", "image references change the token layout")),
    source="diffusers/models/transformers/transformer_z_image.py",
)

QWEN = Backbone(
    name="Qwen-Image",
    class_names=("QwenImageTransformer2DModel",),
    groups=(
        BlockGroup(
            _BLOCKS,
            Layout.IMAGE,
            "hidden_states",
            (RowArgument("image_rotary_emb", 0, Layout.IMAGE, 0),),
            attentions=(Layout.TEXT_IMAGE,),
            unset=("modulate_index",),
        ),
    ),
    head="proj_out",
    head_layout=Layout.IMAGE,
    patch=1,
    extras=Extras.CONTEXT,
    refusals=(("controlnet_block_samples", _CONTROL),),
    shared_rows=True,
    source="diffusers/models/transformers/transformer_qwenimage.py",
)

WAN = Backbone(
    name="Wan",
    class_names=("WanTransformer3DModel",),
    groups=(
        BlockGroup(
            "blocks",
            Layout.IMAGE,
            "hidden_states",
            tuple(RowArgument("rotary_emb", 1, Layout.IMAGE, part) for part in (0, 1)),
            attentions=(Layout.IMAGE, Layout.CROSS),
        ),
    ),
    head="proj_out",
    head_layout=Layout.IMAGE,
    patch="config.patch_size",
    refusals=(("encoder_hidden_states_image", "image to video with a CLIP image has not been tried with rows left out"),),
    source="diffusers/models/transformers/transformer_wan.py",
)

DIFFUSERS = (FLUX, SD3, LUMINA_NEXT, PIXART, LUMINA2, Z_IMAGE, QWEN, WAN)
