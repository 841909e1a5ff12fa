"""Model families as `diffusers` has them, one a file: the second table, for the host of that name."""

from __future__ import annotations

from .flux import FLUX
from .lumina2 import LUMINA2
from .lumina_next import LUMINA_NEXT
from .pixart import PIXART
from .qwen import QWEN
from .sd3 import SD3
from .wan import WAN
from .z_image import Z_IMAGE

DIFFUSERS = (FLUX, SD3, LUMINA_NEXT, PIXART, LUMINA2, Z_IMAGE, QWEN, WAN)
