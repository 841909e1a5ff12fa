"""NextDiT: Lumina-Image 2 and Z-Image.

The caption rows pass a context refiner that knows nothing of the noise level, the image rows a noise refiner; then they join: [caption,
image, padding]. The sequence has to be whole in between, because the model works out the caption's length from it.
"""

from __future__ import annotations

from ..base import Backbone, BlockGroup, Layout, RowArgument

NEXTDIT = Backbone(
    name="NextDiT",
    class_names=("NextDiT",),
    groups=(
        BlockGroup("context_refiner", Layout.TEXT, "x", (RowArgument("freqs_cis", 1, Layout.TEXT),), constant=True),
        BlockGroup(
            "noise_refiner", Layout.IMAGE, "x", (RowArgument("freqs_cis", 1, Layout.IMAGE),), attentions=(Layout.IMAGE,), restore=True,
            kv_heads="attention.n_local_kv_heads",
        ),
        BlockGroup(
            "layers", Layout.TEXT_IMAGE, "x", (RowArgument("freqs_cis", 1, Layout.TEXT_IMAGE),), attentions=(Layout.TEXT_IMAGE,),
            kv_heads="attention.n_local_kv_heads",
        ),
    ),
    head="final_layer",
    head_layout=Layout.TEXT_IMAGE,
    pad="pad_tokens_multiple",
    refusals=(
        ("ref_latents", "reference latents change the token layout"),
        ("siglip_feats", "image references change the token layout"),
    ),
    source="comfy/ldm/lumina/model.py",
)  # fmt: skip
