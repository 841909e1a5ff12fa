"""NextDiT: Lumina-Image 2 and Z-Image (ComfyUI: comfy/ldm/lumina/model.py).

The caption rows pass a context refiner that knows nothing of the noise level, the image rows a noise refiner; then they join: [caption,
image, padding]. The sequence has to be whole in between, because the model works out the caption's length from it.
"""

from __future__ import annotations

from .base import Backbone, BlockGroup, RowArgument

_ROPE = RowArgument(position=2, name="freqs_cis", dim=1)

NEXTDIT = Backbone(
    name="NextDiT",
    class_names=("NextDiT",),
    groups=(
        BlockGroup(path="context_refiner", text_first=False, row_arguments=(_ROPE,), constant=True),
        BlockGroup(path="noise_refiner", text_first=False, row_arguments=(_ROPE,)),
        BlockGroup(path="layers", text_first=True, row_arguments=(_ROPE,), head="final_layer"),
    ),
    patch_attribute="patch_size",
    pad_attribute="pad_tokens_multiple",
    refusals=(
        ("ref_latents", "reference latents change the token layout"),
        ("siglip_feats", "image references change the token layout"),
    ),
)
