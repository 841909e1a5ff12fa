"""What the Report node says of a run without SAFE-DiT: of one before it, and of a dense picture beside the accelerated one."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from ...report import psnr_db
from .prompt import is_link
from .sampler_times import sampling_seconds, seconds_of

EQUAL = "the same picture, bit for bit"


def ran_without(prompt: dict[str, Any], sampler: str) -> str:
    """That a sampler ran without SAFE-DiT, and how long it took where that is known."""
    seconds = seconds_of(prompt, sampler)
    took = "" if seconds is None else f" It took {seconds:.2f} s."
    bypassed = "its SAFE-DiT node is bypassed, or its model passes through none"
    return f"The sampler before this node ran without SAFE-DiT: {bypassed}.{took}"


def beside_dense(prompt: dict[str, Any], node_id: str, picture: Tensor, dense: Tensor) -> str:
    """Times and closeness of a picture and the dense one beside it, both `[images, H, W, 3]` in [0, 1], as far as they are known."""
    links = [prompt[node_id]["inputs"].get(name) for name in ("picture", "dense")]
    times = [sampling_seconds(prompt, str(link[0])) if is_link(link) else None for link in links]
    told = [_times(*times), _closeness(picture, dense)]
    return "beside the dense picture: " + "; ".join(part for part in told if part)


def _times(accelerated: float | None, dense: float | None) -> str:
    if accelerated is None or dense is None:
        return ""
    return f"sampled in {accelerated:.2f} s instead of {dense:.2f} s, {dense / accelerated:.2f} times as fast"


def _closeness(picture: Tensor, dense: Tensor) -> str:
    if picture.shape != dense.shape:
        return f"not compared, because one is {_size(picture)} and the other {_size(dense)}"
    found = psnr_db(picture.cpu().numpy(), dense.cpu().numpy())
    return EQUAL if math.isinf(found) else f"PSNR {found:.1f} dB (higher is closer)"


def _size(picture: Tensor) -> str:
    images, height, width = picture.shape[:3]
    return f"{images} x {width} x {height} px"
