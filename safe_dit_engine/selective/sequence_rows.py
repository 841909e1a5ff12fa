"""Which rows of a call's sequences are active, and which are context, wherever image and text stand in them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backbones import Extras, Layout
from ..tokens.partition import Partition
from .rows import repeat_rows


class SequenceRows:
    """Rows of sequences at full length for a batch of `conds` equal chunks, each holding the images of `partition`.

    `tokens`: image tokens. `image_rows`: those and the rows behind them that are none, known once the call is under way.
    """

    def __init__(self, partition: Partition | None, conds: int, tokens: int, extras: Extras) -> None:
        self.image_rows = 0
        self._partition = partition
        self._conds = conds
        self._tokens = tokens
        self._extras = extras
        self._active: dict[tuple[Layout, int], Tensor] = {}
        self._context: dict[tuple[Layout, int], Tensor] = {}

    def know(self, image_rows: int) -> None:
        """A sequence holds so many image rows."""
        self.image_rows = image_rows

    def active(self, layout: Layout, length: int) -> Tensor:
        """Active rows of a sequence of `length` rows, rising: `[K]`, or `[conds * images, K]` where images differ."""
        key = (layout, length)
        if key not in self._active:
            self._active[key] = repeat_rows(self._rows_of_images(layout, length), self._conds)
        return self._active[key]

    def context(self, layout: Layout, length: int) -> Tensor:
        """The other rows, in the same way."""
        key = (layout, length)
        if key not in self._context:
            active = self.active(layout, length)
            taken = torch.zeros((*active.shape[:-1], length), dtype=torch.uint8, device=active.device).scatter_(-1, active, 1)
            # Sorted, not searched: how many there are is known, and asking the device would stall it.
            self._context[key] = taken.argsort(dim=-1, stable=True)[..., : length - active.shape[-1]]
        return self._context[key]

    def _rows_of_images(self, layout: Layout, length: int) -> Tensor:
        assert self._partition is not None
        rows = self._partition.rows
        if layout is Layout.TEXT:  # one row keeps constant blocks going; what comes out of the last one is replaced
            return torch.zeros(1, dtype=torch.int64, device=rows.device)
        start = length - self.image_rows if layout is Layout.TEXT_IMAGE else 0
        spans = [(0, start)]
        if self._extras is Extras.ACTIVE:
            spans.append((start + self._tokens, start + self.image_rows))
        if layout is Layout.IMAGE_TEXT:
            spans.append((self.image_rows, length))
        before, *after = (_span(first, last, rows) for first, last in spans)
        return torch.cat((before, rows + start, *after), dim=-1)


def _span(first: int, last: int, like: Tensor) -> Tensor:
    """Rows `first` to before `last`, repeated for every image where `like` `[B, K]` has rows for each."""
    rows = torch.arange(first, last, device=like.device)
    return rows.expand(like.shape[0], -1) if like.ndim == 2 else rows
