"""How close a picture `[H, W, 3]` in [0, 1] is to a reference: PSNR of the whole, of the objects and of their outlines, SSIM, LPIPS."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from safe_dit_engine.cli.results import psnr_db, ssim

from ..demo_model.scenes import Scene, shape_distance

# An outline is this far to either side of a shape's edge, as a share of the picture's side: 3 pixels of 256.
OUTLINE = 3 / 256
# In a mean, an equal picture counts as this many dB: more than any other reaches, and finite.
EQUAL_DB = 100.0
# The weights of the scales, published with MS-SSIM.
MS_SSIM_BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
MS_SSIM_KERNEL = 11
LPIPS_BACKBONE = "alexnet-owt-*.pth"


def closeness(picture: np.ndarray, reference: np.ndarray, scene: Scene) -> dict[str, float | None]:
    """Every measure of one pair."""
    outlines = outline_mask(scene, picture.shape[0])
    # Single precision costs both SSIMs about 0.0001 and double twenty times the time; equal pictures are said to be equal.
    equal = bool(np.array_equal(picture, reference))
    return {
        "psnr_db": psnr_db(picture, reference),
        "psnr_db_objects": objects_psnr(picture, reference, scene),
        "psnr_db_edges": psnr_db(picture[outlines], reference[outlines]),
        "ssim": 1.0 if equal else ssim(picture, reference),
        "ms_ssim": 1.0 if equal else ms_ssim(picture, reference),
        "lpips": lpips(picture, reference),
    }


def mean_closeness(pairs: Sequence[dict[str, float | None]]) -> dict[str, float | None]:
    """Mean of every measure; None where one pair has none. Infinite dB only when all are, else an equal picture counts `EQUAL_DB`."""
    columns = {key: [pair[key] for pair in pairs] for key in pairs[0]}
    return {key: _mean([value for value in column if value is not None], len(column)) for key, column in columns.items()}


def _mean(values: list[float], wanted: int) -> float | None:
    if len(values) < wanted:
        return None
    if all(math.isinf(value) for value in values):
        return math.inf
    return float(np.mean([min(value, EQUAL_DB) for value in values]))


def objects_psnr(picture: np.ndarray, reference: np.ndarray, scene: Scene) -> float:
    """PSNR inside the boxes of the scene's shapes."""
    size = picture.shape[0]
    inside = np.zeros(picture.shape[:2], bool)
    for x0, y0, x1, y1 in (scene.boxes() * size).round().astype(int):
        inside[y0:y1, x0:x1] = True
    return psnr_db(picture[inside], reference[inside])


def outline_mask(scene: Scene, size: int) -> np.ndarray:
    """Bool `[size, size]`: pixels near the outline of a shape."""
    centres = (np.arange(size) + 0.5) / size
    x, y = np.meshgrid(centres, centres)
    near = [np.abs(shape_distance(t.shape, (x - t.x) / t.radius, (y - t.y) / t.radius)) * t.radius < OUTLINE for t in scene.things]
    return np.asarray(np.any(near, axis=0))


def ms_ssim(picture: np.ndarray, reference: np.ndarray) -> float:
    """Multi-scale structural similarity (torchmetrics), with the five published scales or as many as fit into the picture."""
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    betas = scales_that_fit(min(picture.shape[:2]))
    return float(multiscale_structural_similarity_index_measure(*_batches(picture, reference), data_range=1.0, betas=betas))


def scales_that_fit(side: int) -> tuple[float, ...]:
    """Weights of the scales torchmetrics accepts at that size, of sum 1."""
    fitting = [n for n in range(1, len(MS_SSIM_BETAS) + 1) if side // max(1, n - 1) ** 2 >= MS_SSIM_KERNEL and side >= 2**n]
    betas = MS_SSIM_BETAS[: max(fitting, default=1)]
    return tuple(beta / sum(betas) for beta in betas)


def lpips(picture: np.ndarray, reference: np.ndarray) -> float | None:
    """Learned perceptual distance (torchmetrics, AlexNet); None unless the backbone's weights are on this disk already."""
    network = _lpips_network()
    if network is None:
        return None
    with torch.inference_mode():
        return float(network(*_batches(picture, reference)))


@functools.cache
def _lpips_network() -> Any:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if not any(folder.glob(LPIPS_BACKBONE)):
        return None
    from torchmetrics.image import LearnedPerceptualImagePatchSimilarity

    return LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True).eval()


def _batches(*pictures: np.ndarray) -> list[Tensor]:
    return [torch.from_numpy(np.ascontiguousarray(picture, np.float32)).movedim(-1, 0)[None] for picture in pictures]
