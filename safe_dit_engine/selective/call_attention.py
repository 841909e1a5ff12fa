"""Attention inside one call of the model: keys and values at full length, what of them is remembered, and what it tells of the prompt."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter

import torch
from torch import Tensor, nn

from ..backbones import Backbone, BlockGroup, Extras, Layout, layers_of
from ..tokens.partition import Partition
from ..tokens.sensitivity import KEY_STRIDE, Evidence, cross_to_text, image_to_text
from .kv_cache import CacheSizes, Conds, KeyValues
from .rows import write_rows_
from .sequence_rows import SequenceRows

EVIDENCE_LAYERS = 4

SPLIT_BATCH = "another node runs the model's attention on a part of the batch at a time"


@dataclass(frozen=True)
class CallPlan:
    """What one call does.

    `partition` set: selective. `capture`: remember what selective calls need, of the context of `known` alone where that is set.
    `evidence_of`: cond positions to look at. `extra`: an evaluation of a guidance node beside that of the sampler; it is not counted.
    """

    partition: Partition | None = None
    capture: bool = False
    known: Partition | None = None
    evidence_of: tuple[int, ...] = ()
    extra: bool = False


class CallAttention:
    """The attention of one call of `module` for `conds` (equal chunks of the batch) on `tokens` image tokens.

    `rows`: which rows of its sequences are active.
    """

    def __init__(
        self,
        module: nn.Module,
        backbone: Backbone,
        plan: CallPlan,
        conds: Conds,
        tokens: int,
        rows: SequenceRows,
        key_values: KeyValues,
        evidence: Evidence,
    ) -> None:
        self.plan = plan
        self.conds = conds
        self.sizes = CacheSizes()
        self.rows_total = 0
        self.rows_active = 0
        self.reached = False
        self.misfit: str | None = None
        self._module, self._backbone, self._tokens = module, backbone, tokens
        self._rows, self._key_values, self._evidence = rows, key_values, evidence
        self._masked_per_query = False
        self._group = backbone.groups[0]
        self._block: str | None = None
        self._number = 0  # of the attention call in its block
        self._batch = 0
        self._watched = self._evidence_blocks() if plan.evidence_of else frozenset()

    def enter(self, group: BlockGroup, block: str) -> None:
        """A block of a group begins."""
        self._block, self._group, self._number = None if group.constant else block, group, 0

    def leave(self) -> None:
        """The block is over."""
        self._block = None

    def begin(self, batch: int) -> None:
        """The sequences to come have this batch size."""
        self._batch = batch

    def give_up(self, misfit: str) -> None:
        """The model is not what the backbone describes: nothing is remembered or looked at any more."""
        self.misfit, self.plan, self._watched = misfit, CallPlan(extra=self.plan.extra), frozenset()

    def tap(self) -> CallAttention | None:
        """This, inside a block of the backbone's; None elsewhere, where attention is none of its business."""
        return None if self._block is None else self

    @property
    def unfit(self) -> str | None:
        """Why no call of this run can be selective, as far as this one's attention shows."""
        return self.misfit or ("the model masks attention per query" if self._masked_per_query else None)

    def _evidence_blocks(self) -> frozenset[str]:
        """Blocks whose attention is looked at: a few, evenly spread over the depth of the model."""
        groups = [group for group in self._backbone.groups if group.shows_text and not group.constant]
        names = [name for group in groups for name, _ in layers_of(self._module, group.path)]
        count = min(EVIDENCE_LAYERS, len(names))
        return frozenset(names[(2 * i + 1) * len(names) // (2 * count)] for i in range(count))

    def spliced(self, k: Tensor, v: Tensor, mask: Tensor | None, *, heads_first: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys, values and mask at full length, where only some rows of them are fresh; what came in, in a full call."""
        layout, name = self._attention
        if self.plan.partition is None or layout is None or not layout.has_image:
            return k, v, mask
        dim = 2 if heads_first else 1
        fresh = k.shape[dim]
        k, v = (self._splice(f"{name}.{which}", x, layout, dim) for which, x in (("k", k), ("v", v)))
        return k, v, mask if mask is None else self._full_mask(mask, layout, fresh, k.shape[dim])

    def looked_at(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, heads: int, heads_first: bool, scale: float | None
    ) -> None:
        """An attention call inside the current block is about to run with these, and with what was left of its mask."""
        layout, name = self._attention
        self._number += 1
        if layout is None:
            return
        dim = 2 if heads_first else 1
        if q.shape[0] != self._batch or k.shape[0] % len(self.conds):
            self.misfit, self._watched = SPLIT_BATCH, frozenset()
            return
        if layout.has_image:
            self.reached = True
            self.rows_active, self.rows_total = q.shape[0] * q.shape[dim], k.shape[0] * k.shape[dim]
        if self.plan.partition is not None:
            return
        if layout.has_image:
            self._masked_per_query |= mask is not None and mask.ndim > 1 and mask.shape[-2] > 1 and mask.stride(-2) != 0
            if k.shape[dim] < self._rows.image_rows:
                self.misfit = "the model attends to fewer keys than there are image rows"
            self._remember(name, k, v, layout, dim, None if heads_first else q.shape[-1] // heads)
        if self._block in self._watched and layout.shows_text:
            self._collect(q, k, layout, heads, heads_first, scale)

    @property
    def _attention(self) -> tuple[Layout | None, str]:
        """What the next attention call of the block attends over (None: not for us), and its name."""
        number, layouts = self._number, self._group.attentions
        return layouts[number] if number < len(layouts) else None, f"{self._block}.{number}"

    def _remember(self, name: str, k: Tensor, v: Tensor, layout: Layout, dim: int, head_dim: int | None) -> None:
        length, repeats = k.shape[dim], self._repeats(k)
        self.sizes.a_row += (k.nbytes + v.nbytes) / length / repeats
        self.sizes.whole += (k.nbytes + v.nbytes) / repeats
        self.sizes.room, self.sizes.element = max(self.sizes.room, k.nbytes + v.nbytes), k.element_size()
        self.sizes.rows = self._rows.image_rows if self._backbone.extras is Extras.CONTEXT else self._tokens
        if not self.plan.capture:
            return
        context = None if self.plan.known is None else self._rows.context(layout, length)
        for which, x in (("k", k), ("v", v)):
            self._key_values.store(f"{name}.{which}", self.conds, x, dim, context, repeats, head_dim)

    def _repeats(self, k: Tensor) -> int:
        """How often each key head stands in `k`, where the family repeats them before attention."""
        path = self._group.kv_heads
        return 1 if path is None else k.shape[1] // int(attrgetter(f"{self._group.path}.0.{path}")(self._module))

    def _splice(self, name: str, fresh: Tensor, layout: Layout, dim: int) -> Tensor:
        length = self._key_values.length(name, self.conds)
        rows, context = self._rows.active(layout, length), self._rows.context(layout, length)
        return self._key_values.splice(name, self.conds, fresh, dim, rows, context, self._repeats(fresh))

    def _full_mask(self, mask: Tensor, layout: Layout, fresh: int, length: int) -> Tensor:
        """The mask over all keys. Some models make it for the rows they see; no model hides image rows, which are all that is missing."""
        if mask.shape[-1] != fresh or fresh == length:
            return mask
        rows = self._rows.active(layout, length)
        mask = mask.expand(rows.shape[0], *mask.shape[1:]) if rows.ndim == 2 else mask
        full = mask.new_full((*mask.shape[:-1], length), mask.dtype == torch.bool)
        return write_rows_(full, rows, mask, mask.ndim - 1)

    def _collect(self, q: Tensor, k: Tensor, layout: Layout, heads: int, heads_first: bool, scale: float | None) -> None:
        text = k.shape[2 if heads_first else 1] - self._rows.image_rows
        start = text if layout is Layout.TEXT_IMAGE else 0
        words = slice(0, text) if layout is Layout.TEXT_IMAGE else slice(self._rows.image_rows, self._rows.image_rows + text)
        for position in self.plan.evidence_of:
            queries, keys = (_with_heads(x.chunk(len(self.conds))[position], heads, heads_first) for x in (q, k))
            keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], 1)
            if layout is Layout.CROSS:
                mass = cross_to_text(queries[:, :, : self._tokens], keys, scale)
            else:
                mass = image_to_text(queries, keys, words, slice(start, start + self._tokens), scale, KEY_STRIDE)
                keys = keys[:, :, words]
            self._evidence.add_attention(mass, keys)


def _with_heads(x: Tensor, heads: int, heads_first: bool) -> Tensor:
    return x if heads_first else x.unflatten(-1, (heads, -1)).transpose(1, 2)
