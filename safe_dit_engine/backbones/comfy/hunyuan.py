"""HunyuanVideo, HunyuanVideo 1.5 and HunyuanImage 2.1: Flux's blocks on a video or an image.

The prompt passes a refiner of its own, which is left as it is. A mask of padded text spans all rows, also in a selective step.
"""

from __future__ import annotations

from dataclasses import replace

from ..base import Extras
from .flux import FLUX

HUNYUAN = replace(
    FLUX,
    name="HunyuanVideo",
    class_names=("HunyuanVideo",),
    extras=Extras.ACTIVE,
    refusals=(
        ("guiding_frame_index", "the first frame is given, and is modulated apart from the others"),
        ("ref_latent", "rows of a reference image stand before those of the picture"),
    ),
    source="comfy/ldm/hunyuan_video/model.py",
)
