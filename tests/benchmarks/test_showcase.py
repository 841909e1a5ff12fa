"""The strip of pictures that the demo draws."""

from __future__ import annotations

import numpy as np

from benchmarks.comfy.showcase import GAP, STRIP, TEXT, TILE, strip_of


def test_the_strip_has_every_picture_in_its_column() -> None:
    shades = {title: (number + 1) / 10 for number, title in enumerate(STRIP)}
    pictures = {title: {7: np.full((8, 8, 3), shade, np.float32)} for title, shade in shades.items()}
    rows = [{"method": title.replace(" ", "_"), "seconds": 1.0, "steps": 20} for title in STRIP]
    strip = np.asarray(strip_of(pictures, rows, 7)) / 255
    seen = [strip[TEXT + TILE // 2, column * (TILE + GAP) + TILE // 2, 0] for column in range(len(STRIP))]
    assert np.abs(np.subtract(seen, list(shades.values()))).max() < 0.01
    assert all(strip[band].min() < 0.2 for band in (slice(0, TEXT), slice(TEXT + TILE, None))), "something is written above and below"
