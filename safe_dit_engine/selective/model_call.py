"""One call of the diffusion module: gather the active rows, attend to all keys and values, scatter the result.

Three kinds of hooks on the model's own modules do it, installed for the length of the call and removed whatever happens:
a pre-hook on blocks gathers rows and per-row arguments, `spliced` completes keys and values, a hook after the head returns full length.
A dense call computes every row and only looks: it may remember (capture) what later selective calls need, and collect evidence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones import Backbone, BlockGroup, Extras, Layout, RowArgument, argument_names, layers_of
from ..tokens.partition import Partition
from ..tokens.sensitivity import KEY_STRIDE, Evidence, cross_to_text, image_to_text
from .arguments import Arguments
from .kv_cache import CacheSizes, Conds, KeyValues
from .rows import gather_rows, repeat_rows, write_rows_
from .sequence_rows import Division

EVIDENCE_LAYERS = 4

HEAD = "head"

SPLIT_BATCH = "another node runs the model's attention on a part of the batch at a time"

Handle = torch.utils.hooks.RemovableHandle


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


class ModelCall:
    """One call of `module` for `conds` (equal chunks of the batch) on a grid of `tokens` image tokens."""

    def __init__(
        self,
        module: nn.Module,
        backbone: Backbone,
        plan: CallPlan,
        conds: Conds,
        tokens: int,
        key_values: KeyValues,
        evidence: Evidence,
    ) -> None:
        self._module = module
        self._backbone = backbone
        self._cache = key_values.cache
        self._key_values = key_values
        self._evidence = evidence
        self._tokens = tokens
        self.plan = plan
        self.conds = conds
        self.block: str | None = None
        self.rows_total = 0
        self.rows_active = 0
        self.executed = False
        self.attended = False
        self.masked_per_query = False
        self.misfit: str | None = None
        self.sizes = CacheSizes()
        self._group = backbone.groups[0]
        self._begun: set[str] = set()
        self._attention_in_block = 0
        self._division = Division(plan.partition or plan.known, len(conds), tokens, backbone.extras)
        self._length = 0
        self._batch = 0
        self._gathered: dict[int, tuple[Tensor, Tensor]] = {}
        self._watched = self._evidence_blocks() if plan.evidence_of else frozenset()

    def tap(self) -> ModelCall | None:
        """This call inside a block it knows; None elsewhere, where attention is none of its business."""
        return None if self.block is None else self

    @property
    def unfit(self) -> str | None:
        """Why no call of this run can be selective, as far as this one shows."""
        if self.misfit is not None:
            return self.misfit
        if self.masked_per_query:
            return "the model masks attention per query"
        if self.executed and self.plan.capture and not self.attended:
            return "the model's attention could not be reached"
        return None

    def _evidence_blocks(self) -> frozenset[str]:
        groups = [group for group in self._backbone.groups if group.shows_text and not group.constant]
        names = [name for group in groups for name, _ in layers_of(self._module, group.path)]
        count = min(EVIDENCE_LAYERS, len(names))
        return frozenset(names[(2 * i + 1) * len(names) // (2 * count)] for i in range(count))

    # Hooks

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Install the hooks for the length of the model call."""
        handles: list[Handle] = []
        try:
            for group in self._backbone.groups:
                self._hook_group(group, handles)
            handles.append(attrgetter(self._backbone.head)(self._module).register_forward_hook(self._leave_head))
            yield
        finally:
            for handle in handles:
                handle.remove()
            self.block = None

    def _hook_group(self, group: BlockGroup, handles: list[Handle]) -> None:
        blocks = layers_of(self._module, group.path)
        for index, (name, block) in enumerate(blocks):
            enter = partial(self._enter_block, group, name, index == 0, argument_names(block))
            leave = partial(self._leave_block, group, index == len(blocks) - 1)
            handles.append(block.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(block.register_forward_hook(leave))

    def _enter_block(
        self, group: BlockGroup, name: str, first: bool, names: list[str], _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self.block, self._group, self._attention_in_block = None if group.constant else name, group, 0
        arguments = Arguments(names, args, kwargs)
        first = first or group.path not in self._begun  # another node may have skipped the first block
        if first:
            self._begin_group(group, arguments)
        if self.plan.partition is None:
            return None
        if first and not group.gathered:
            hidden: Tensor = arguments[group.hidden]
            rows = gather_rows(_in_line(hidden), self._division.active(group.layout, self._length), 1)
            arguments[group.hidden] = rows.view(rows.shape[0], *(1 for _ in hidden.shape[3:]), *rows.shape[1:])
        for argument in group.row_arguments:
            value = arguments[argument.name]
            if value is not None:
                arguments[argument.name] = self._gather_argument(value, argument)
        return tuple(arguments.args), arguments.kwargs

    def _begin_group(self, group: BlockGroup, arguments: Arguments) -> None:
        self._begun.add(group.path)
        self._gathered.clear()
        hidden: Tensor = arguments[group.hidden]
        self._batch = hidden.shape[0]
        if group.gathered:
            return
        self._length = _in_line(hidden).shape[1]
        if group.layout.has_image and self._division.image_rows == 0:
            self._division.image_rows = self._length if group.layout is Layout.IMAGE else self._backbone.padded(self._module, self._tokens)
        misfit = self._first_misfit(group, arguments)
        if misfit is not None:
            self.misfit, self.plan, self._watched = misfit, CallPlan(extra=self.plan.extra), frozenset()

    def _first_misfit(self, group: BlockGroup, arguments: Arguments) -> str | None:
        """What makes this sequence another one than the backbone describes. Asked before any row was left out."""
        taken = next((name for name in group.unset if arguments[name] is not None), None)
        if taken is not None:
            return f"the model was given `{taken}`, which changes rows by their place"
        values = [(argument.name, _part(arguments[argument.name], argument.part)) for argument in group.row_arguments]
        other = next((name for name, value in values if value is not None and not isinstance(value, Tensor)), None)
        if other is not None:
            return f"the model's blocks are given something else than a tensor as `{other}`"
        several = next((reason for name, dim, reason in group.single if arguments[name].shape[dim] > 1), None)
        if several is not None:
            return several
        expected = self._backbone.padded(self._module, self._tokens)
        too_many = self._division.image_rows > expected and self._backbone.extras is not Extras.CONTEXT
        if group.layout.has_image and (self._division.image_rows < expected or too_many or self._length < self._division.image_rows):
            return f"the sequence holds {self._division.image_rows} image rows where {expected} were expected"
        return None

    # Rows

    def _gather_argument(self, value: Any, argument: RowArgument) -> Any:
        if argument.part is None:
            return self._gather_tensor(value, argument.dim, argument.layout)
        parts = list(value)
        parts[argument.part] = self._gather_tensor(parts[argument.part], argument.dim, argument.layout)
        return tuple(parts)

    def _gather_tensor(self, value: Tensor, dim: int, layout: Layout) -> Tensor:
        # The same tensor goes to every block of a group: gather it once. Holding it keeps its id from being used again.
        known = self._gathered.get(id(value))
        if known is None:
            known = (value, gather_rows(value, self._division.active(layout, value.shape[dim]), dim))
            self._gathered[id(value)] = known
        return known[1]

    def gathered_control(self, control: dict[str, list[Tensor | None]]) -> dict[str, list[Tensor | None]]:
        """A ControlNet's additions `[B, tokens, C]`, cut down to the tokens that are computed."""
        if self.plan.partition is None:
            return control
        rows = repeat_rows(self.plan.partition.rows, len(self.conds))
        # A ControlNet of few blocks adds the same tensor in many places.
        distinct = {id(add): add for adds in control.values() for add in adds if add is not None}
        cut = {key: gather_rows(add, rows, 1) for key, add in distinct.items()}
        return {name: [None if add is None else cut[id(add)] for add in adds] for name, adds in control.items()}

    def with_length_base(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The model's arguments, its attention scaled by the rows of the whole picture where only some of them run."""
        if self.plan.partition is None or self._backbone.length_base is None:
            return arguments
        name, entry = self._backbone.length_base
        options = arguments.get(name) or {}
        if options.get(entry) is None:
            return arguments
        # log(kept) to this base is log(tokens) to the given one.
        base = options[entry] ** (math.log(self.plan.partition.kept) / math.log(self._tokens))
        return {**arguments, name: {**options, entry: base}}

    # After blocks

    def _leave_block(self, group: BlockGroup, last: bool, _module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        self.block = None
        if last and group.constant:
            return self._constant(group.path, output)
        if not last or not group.restore or self.plan.partition is None:
            return None
        # The next group gathers again before anything reads the rows left at zero.
        full = output.new_zeros((output.shape[0], self._length, *output.shape[2:]))
        return write_rows_(full, self._division.active(group.layout, self._length), output, 1)

    def _constant(self, name: str, output: Tensor) -> Tensor | None:
        if self.plan.partition is not None:
            return self._cache.load(name, self.conds).clone()
        self.sizes.fixed += output.nbytes
        if self.plan.capture:
            self._cache.store(name, self.conds, output)
        return None

    def _leave_head(self, _module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        self.executed = True
        if self.plan.partition is not None:
            full = self._cache.load(HEAD, self.conds).clone()
            lines = full.view(full.shape[0], -1, full.shape[-1])
            rows, fresh = self._division.active(self._backbone.head_layout, lines.shape[1]), _in_line(output)
            if fresh.shape[1] == lines.shape[1]:  # the rows returned to full length before the head
                fresh = gather_rows(fresh, rows, 1)
            write_rows_(lines, rows, fresh, 1)
            return full
        self.sizes.fixed += output.nbytes
        if self.plan.capture:
            self._cache.store(HEAD, self.conds, output)
        return None

    # Attention

    def spliced(self, k: Tensor, v: Tensor, mask: Tensor | None, *, heads_first: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys, values and mask at full length, where only some rows of them are fresh; what came in, in a dense call."""
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
        self._attention_in_block += 1
        if layout is None:
            return
        dim = 2 if heads_first else 1
        if q.shape[0] != self._batch or k.shape[0] % len(self.conds):
            self.misfit, self._watched = SPLIT_BATCH, frozenset()
            return
        if layout.has_image:
            self.attended = True
            self.rows_active, self.rows_total = q.shape[0] * q.shape[dim], k.shape[0] * k.shape[dim]
        if self.plan.partition is not None:
            return
        if layout.has_image:
            self.masked_per_query |= mask is not None and mask.ndim > 1 and mask.shape[-2] > 1 and mask.stride(-2) != 0
            if k.shape[dim] < self._division.image_rows:
                self.misfit = "the model attends to fewer keys than there are image rows"
            self._remember(name, k, v, layout, dim, None if heads_first else q.shape[-1] // heads)
        if self.block in self._watched and layout.shows_text:
            self._collect(q, k, layout, heads, heads_first, scale)

    @property
    def _attention(self) -> tuple[Layout | None, str]:
        """What the next attention call of the block attends over (None: not for us), and its name."""
        number, layouts = self._attention_in_block, self._group.attentions
        return layouts[number] if number < len(layouts) else None, f"{self.block}.{number}"

    def _remember(self, name: str, k: Tensor, v: Tensor, layout: Layout, dim: int, head_dim: int | None) -> None:
        length, repeats = k.shape[dim], self._repeats(k)
        self.sizes.a_row += (k.nbytes + v.nbytes) / length / repeats
        self.sizes.whole += (k.nbytes + v.nbytes) / repeats
        self.sizes.room, self.sizes.element = max(self.sizes.room, k.nbytes + v.nbytes), k.element_size()
        self.sizes.rows = self._division.image_rows if self._backbone.extras is Extras.CONTEXT else self._tokens
        if not self.plan.capture:
            return
        context = None if self.plan.known is None else self._division.context(layout, length)
        for which, x in (("k", k), ("v", v)):
            self._key_values.store(f"{name}.{which}", self.conds, x, dim, context, repeats, head_dim)

    def _repeats(self, k: Tensor) -> int:
        """How often each key head stands in `k`, where the family repeats them before attention."""
        path = self._group.kv_heads
        return 1 if path is None else k.shape[1] // int(attrgetter(f"{self._group.path}.0.{path}")(self._module))

    def _splice(self, name: str, fresh: Tensor, layout: Layout, dim: int) -> Tensor:
        length = self._key_values.length(name, self.conds)
        rows, context = self._division.active(layout, length), self._division.context(layout, length)
        return self._key_values.splice(name, self.conds, fresh, dim, rows, context, self._repeats(fresh))

    def _full_mask(self, mask: Tensor, layout: Layout, fresh: int, length: int) -> Tensor:
        """The mask over all keys. Some models make it for the rows they see; no model hides image rows, which are all that is missing."""
        if mask.shape[-1] != fresh or fresh == length:
            return mask
        rows = self._division.active(layout, length)
        mask = mask.expand(rows.shape[0], *mask.shape[1:]) if rows.ndim == 2 else mask
        full = mask.new_full((*mask.shape[:-1], length), mask.dtype == torch.bool)
        return write_rows_(full, rows, mask, mask.ndim - 1)

    def _collect(self, q: Tensor, k: Tensor, layout: Layout, heads: int, heads_first: bool, scale: float | None) -> None:
        text = k.shape[2 if heads_first else 1] - self._division.image_rows
        start = text if layout is Layout.TEXT_IMAGE else 0
        words = slice(0, text) if layout is Layout.TEXT_IMAGE else slice(self._division.image_rows, self._division.image_rows + text)
        for position in self.plan.evidence_of:
            queries, keys = (_with_heads(x.chunk(len(self.conds))[position], heads, heads_first) for x in (q, k))
            keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], 1)
            if layout is Layout.CROSS:
                mass = cross_to_text(queries[:, :, : self._tokens], keys, scale)
            else:
                mass = image_to_text(queries, keys, words, slice(start, start + self._tokens), scale, KEY_STRIDE)
                keys = keys[:, :, words]
            self._evidence.add_attention(mass, keys)


def _part(value: Any, part: int | None) -> Any:
    return value if part is None or value is None else value[part]


def _in_line(hidden: Tensor) -> Tensor:
    """Rows `[B, rows, C]`, where some models keep them on a grid: `[B, frames, h, w, C]`. Their blocks also take `[B, 1, 1, rows, C]`."""
    return hidden.flatten(1, -2)


def _with_heads(x: Tensor, heads: int, heads_first: bool) -> Tensor:
    return x if heads_first else x.unflatten(-1, (heads, -1)).transpose(1, 2)
