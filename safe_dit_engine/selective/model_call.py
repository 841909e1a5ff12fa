"""One call of the diffusion module: gather the active rows, attend to all keys and values, scatter the result.

Three kinds of hooks on the model's own modules do it, installed for the length of the call and removed whatever happens:
a pre-hook on blocks gathers rows and per-row arguments, attention is given all keys and values (call_attention.py), a hook after the head
returns full length. A full call computes every row and only looks: it may remember (capture) what later selective calls need.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones import Backbone, BlockGroup, Extras, Layout, RowArgument, argument_names, layers_of
from ..tokens.sensitivity import Evidence
from .arguments import Arguments
from .call_attention import CallAttention, CallPlan
from .kv_cache import HEAD, Conds, KeyValues
from .rows import gather_rows, repeat_rows, write_rows_
from .sequence_rows import SequenceRows

Handle = torch.utils.hooks.RemovableHandle


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
        self._tokens = tokens
        self.executed = False
        self._rows = SequenceRows(plan.partition or plan.known, len(conds), tokens, backbone.extras)
        self.attention = CallAttention(module, backbone, plan, conds, tokens, self._rows, key_values, evidence)
        self._begun: set[str] = set()
        self._length = 0
        self._gathered: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def plan(self) -> CallPlan:
        """What it does."""
        return self.attention.plan

    @property
    def conds(self) -> Conds:
        """For which conds."""
        return self.attention.conds

    @property
    def unfit(self) -> str | None:
        """Why no call of this run can be selective, as far as this one shows."""
        unreached = self.executed and self.plan.capture and not self.attention.reached
        return self.attention.unfit or ("the model's attention could not be reached" if unreached else None)

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
            self.attention.leave()

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
        self.attention.enter(group, name)
        arguments = Arguments(names, args, kwargs)
        first = first or group.path not in self._begun  # another node may have skipped the first block
        if first:
            self._begin_group(group, arguments)
        if self.plan.partition is None:
            return None
        if first and not group.gathered:
            hidden: Tensor = arguments[group.hidden]
            rows = gather_rows(_in_line(hidden), self._rows.active(group.layout, self._length), 1)
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
        self.attention.begin(hidden.shape[0])
        if group.gathered:
            return
        self._length = _in_line(hidden).shape[1]
        if group.layout.has_image and self._rows.image_rows == 0:
            self._rows.know(self._length if group.layout is Layout.IMAGE else self._backbone.padded(self._module, self._tokens))
        misfit = self._first_misfit(group, arguments)
        if misfit is not None:
            self.attention.give_up(misfit)

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
        too_many = self._rows.image_rows > expected and self._backbone.extras is not Extras.CONTEXT
        if group.layout.has_image and (self._rows.image_rows < expected or too_many or self._length < self._rows.image_rows):
            return f"the sequence holds {self._rows.image_rows} image rows where {expected} were expected"
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
            known = (value, gather_rows(value, self._rows.active(layout, value.shape[dim]), dim))
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
        self.attention.leave()
        if last and group.constant:
            return self._constant(group.path, output)
        if not last or not group.restore or self.plan.partition is None:
            return None
        # The next group gathers again before anything reads the rows left at zero.
        full = output.new_zeros((output.shape[0], self._length, *output.shape[2:]))
        return write_rows_(full, self._rows.active(group.layout, self._length), output, 1)

    def _constant(self, name: str, output: Tensor) -> Tensor | None:
        if self.plan.partition is not None:
            return self._cache.load(name, self.conds).clone()
        self.attention.sizes.add_fixed(output.nbytes)
        if self.plan.capture:
            self._cache.store(name, self.conds, output)
        return None

    def _leave_head(self, _module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        self.executed = True
        if self.plan.partition is not None:
            full = self._cache.load(HEAD, self.conds).clone()
            lines = full.view(full.shape[0], -1, full.shape[-1])
            rows, fresh = self._rows.active(self._backbone.head_layout, lines.shape[1]), _in_line(output)
            if fresh.shape[1] == lines.shape[1]:  # the rows returned to full length before the head
                fresh = gather_rows(fresh, rows, 1)
            write_rows_(lines, rows, fresh, 1)
            return full
        self.attention.sizes.add_fixed(output.nbytes)
        if self.plan.capture:
            self._cache.store(HEAD, self.conds, output)
        return None


def _part(value: Any, part: int | None) -> Any:
    return value if part is None or value is None else value[part]


def _in_line(hidden: Tensor) -> Tensor:
    """Rows `[B, rows, C]`, where some models keep them on a grid: `[B, frames, h, w, C]`. Their blocks also take `[B, 1, 1, rows, C]`."""
    return hidden.flatten(1, -2)
