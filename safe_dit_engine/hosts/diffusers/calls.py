"""Calls of a pipeline's transformer in one evaluation: what each does, and what they gave."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...evaluation import CondCall, Fallback
from ...masks.ledger import MaskMode
from ...masks.sdpa import attending
from ...run import Run
from ...selective.memory import MEMORY_ERRORS, is_out_of_memory
from ...selective.model_call import ModelCall
from ..compiling import FROZEN, UNCOMPILED, leaves_graphs
from .guidance import NEGATIVE, PROMPT

# Pipelines that put the prompt before the negative one, where both run in one batch; the others do the reverse.
PROMPT_FIRST = frozenset({"LuminaNextDiT2DModel", "ZImageTransformer2DModel"})

# Calls the transformer itself.
Forward = Callable[..., Any]


class Calls:
    """The calls of one evaluation after another. `compiled`: some part of the transformer is.

    `outputs`: what the last evaluation's calls gave; `roles`: of the conds in each, PROMPT or NEGATIVE.
    """

    def __init__(self, compiled: bool) -> None:
        self.outputs: list[Any] = []
        self.roles: list[list[int]] = []
        self.count = 0
        self._compiled = compiled
        self._unmasked: set[int] = set()  # numbers of calls that were seen to attend without masks
        self._attends_apart = False

    def start(self, module: nn.Module) -> None:
        """A run begins, with this transformer."""
        processors = getattr(module, "attn_processors", {}).values()
        self._attends_apart = any(type(processor).__name__.startswith("PAG") for processor in processors)
        self.forget()

    def forget(self) -> None:
        """What the calls gave is needed no more."""
        self.outputs = []

    def begin(self) -> None:
        """An evaluation begins."""
        self.count = 0

    @property
    def of_prompt_alone(self) -> bool:
        """Whether the last evaluation was one prediction, with the prompt, so that nothing guides it."""
        return not self._attends_apart and self.roles == [[PROMPT]]

    def known(self) -> bool:
        """Whether the last evaluation had as many calls as this one will have with the next."""
        return self.count < len(self.outputs)

    def repeat(self) -> Any:
        """In place of the next call, what it gave last time."""
        self.count += 1
        return self.outputs[self.count - 1]

    def run(
        self, run: Run, module: nn.Module, x: Tensor, images: int | None, forward: Forward, kwargs: dict[str, Any], named: dict[str, Any]
    ) -> Any:
        """The next call: `forward(**kwargs)` on `x` `[B, C, ...]`; `named`: all of its arguments by name."""
        number, self.count = self.count, self.count + 1
        conds = _conds_of(module, x.shape[0], images, number)
        self.roles[number:] = [[cond.index for cond in conds]]
        run.use(module)
        call = run.evaluation.begin_call(conds, x, self._fallback(run, module, named))
        output = self._with_enough_memory(run, call, number, forward, kwargs)
        self.outputs[number:] = [output]
        return output

    def _with_enough_memory(self, run: Run, call: ModelCall | None, number: int, forward: Forward, kwargs: dict[str, Any]) -> Any:
        try:
            return self._call(run, call, number, forward, kwargs)
        except MEMORY_ERRORS as error:
            if not is_out_of_memory(error) or not run.evaluation.ran_out_of_memory(call):
                raise
        # Outside of the handler: an exception being handled holds the failed call's tensors.
        return self._call(run, None, number, forward, kwargs)

    def _call(self, run: Run, call: ModelCall | None, number: int, forward: Forward, kwargs: dict[str, Any]) -> Any:
        ledger = run.ledger
        judges, calls, masked = ledger.mode is not MaskMode.OFF and number not in self._unmasked, ledger.calls, ledger.masked
        with ExitStack() as around:
            if call is not None and self._compiled:
                around.enter_context(torch.compiler.set_stance("force_eager"))
                run.note(UNCOMPILED)
            # Compiled code keeps the attention it was traced with; it is told of masks by `certified_masks`.
            if call is not None or (judges and not self._compiled):
                around.enter_context(attending(ledger, None if call is None else call.attention.tap))
            if call is not None:
                around.enter_context(call.hooks())
            output = forward(**(kwargs if call is None else call.with_length_base(kwargs)))
        if call is not None:
            run.evaluation.end_call(call)
        if ledger.mode is MaskMode.ELIDE and ledger.calls > calls and ledger.masked == masked:
            self._unmasked.add(number)
        return output

    def _fallback(self, run: Run, module: nn.Module, named: dict[str, Any]) -> Fallback | None:
        found = self._reason(run, module, named)
        # Hooks cannot reach into a compiled graph: calls with hooks do without it, so there are none where nothing is left out.
        if not self._compiled or (found is None and run.selects and leaves_graphs()):
            return found
        return Fallback(FROZEN) if found is None else replace(found, readable=False)

    def _reason(self, run: Run, module: nn.Module, named: dict[str, Any]) -> Fallback | None:
        if self._attends_apart:
            return Fallback("perturbed-attention guidance attends to a part of the batch at a time")
        if getattr(module, "is_cache_enabled", False):
            return Fallback("a cache of diffusers' own works on the transformer's blocks")
        partition = run.report.partition
        if partition is not None and partition.kept == 1:
            return Fallback("a single token is to be computed, and attention may be scaled by their number")
        timestep = named.get("timestep")
        if isinstance(timestep, Tensor) and timestep.ndim > 1:
            return Fallback("the noise level differs from row to row")
        refusal = None if run.backbone is None else run.backbone.refusal(named)
        return None if refusal is None else Fallback(refusal)


def _conds_of(module: nn.Module, batch: int, images: int | None, number: int) -> list[CondCall]:
    count = max(1, batch // (images or batch))
    if count == 1:
        return [CondCall(number, min(number, NEGATIVE))]
    order = range(count) if type(module).__name__ in PROMPT_FIRST else range(count - 1, -1, -1)
    return [CondCall(number, index) for index in order]
