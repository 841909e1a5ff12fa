"""How close two pictures are."""

from __future__ import annotations

import numpy as np


def psnr_db(picture: np.ndarray, reference: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of pictures with values in [0, 1]; infinite when they are equal."""
    error = float(np.mean((picture.astype(np.float64) - reference.astype(np.float64)) ** 2))
    return float("inf") if error == 0.0 else -10.0 * float(np.log10(error))
