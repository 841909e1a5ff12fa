"""Tokens an artist painted on the map: a short text that a workflow keeps, and what it forces. The widget's copy is web/js/painting.js.

The text is `WIDTHxHEIGHT:` and runs of tokens, row by row: a count and `f` (free), `s` (always sensitive) or `c` (always context), such
as `16x16:34f3s13f3s`. Tokens after the last run are free. An empty text paints nothing.
"""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

FREE, SENSITIVE, CONTEXT = range(3)
LETTERS = "fsc"
# More tokens than any picture that fits a card: 16,384 px a side at 16 px a token.
MOST_TOKENS = 1024 * 1024
ALLOWED = "`WIDTHxHEIGHT:` and runs such as `34f3s2c` (a count and f for free, s for sensitive, c for context)"

_TEXT = re.compile(r"([1-9]\d{0,6})x([1-9]\d{0,6}):((?:[1-9]\d{0,6}[fsc])*)", re.ASCII)


def parse_painting(text: str) -> Tensor | None:
    """What `text` paints: uint8 `[h, w]` of FREE, SENSITIVE and CONTEXT; None if nothing is painted.

    Raises `ValueError` for text that is no painting.
    """
    if not text:
        return None
    found = _TEXT.fullmatch(text)
    width, height = (int(found[1]), int(found[2])) if found else (0, 0)
    runs = re.findall(rf"(\d+)([{LETTERS}])", found[3]) if found else []
    spare = width * height - sum(int(count) for count, _ in runs)
    if not found or width * height > MOST_TOKENS or spare < 0:
        shown = text if len(text) <= 60 else f"{text[:57]}..."
        raise ValueError(
            f"`painted_tokens` is `{shown}`, where {ALLOWED} with no more tokens than the grid and at most {MOST_TOKENS:,} are allowed; "
            "leave it empty and paint on the node's map."
        )
    counts = torch.tensor([*(int(count) for count, _ in runs), spare])
    values = torch.tensor([*(LETTERS.index(letter) for _, letter in runs), FREE], dtype=torch.uint8)
    tokens = values.repeat_interleave(counts).view(height, width)
    return tokens if tokens.any() else None


def format_painting(tokens: Tensor) -> str:
    """The shortest text for uint8 tokens `[h, w]`."""
    values, counts = tokens.flatten().unique_consecutive(return_counts=True)
    runs = [f"{count}{LETTERS[value]}" for value, count in zip(values.tolist(), counts.tolist(), strict=True)]
    if values[-1] == FREE:
        runs.pop()
    return f"{tokens.shape[1]}x{tokens.shape[0]}:{''.join(runs)}" if runs else ""


def resize_painting(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens `[h, w]` on another grid (height, width): each the nearest one."""
    rows, columns = (
        (2 * torch.arange(size) + 1) * painted // (2 * size) for size, painted in zip(grid, tokens.shape, strict=True)
    )
    return tokens[rows.to(tokens.device)][:, columns.to(tokens.device)]


def distorted(tokens: Tensor, grid: tuple[int, int]) -> bool:
    """Whether a painting `[h, w]` changes its proportions on a grid (height, width)."""
    return tokens.shape[0] * grid[1] != tokens.shape[1] * grid[0]


def kept_tokens(tokens: int, keep_ratio: float, sensitive: int, context: int) -> int:
    """How many of `tokens` a selective step computes when so many are forced.

    Painted sensitive ones are always in and may be more than the keep ratio asks for; painted context is never in and may leave fewer.
    At least one stays: a step without any would be a skipped one.
    """
    return max(1, min(max(math.ceil(keep_ratio * tokens), sensitive), tokens - context))
