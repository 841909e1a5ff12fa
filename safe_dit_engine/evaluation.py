"""One model evaluation of a run: what kind of step it is, what its model calls do, what the sampler is given."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .report import NoteLevel, StepRecord
from .selective.call_attention import CallPlan
from .selective.kv_cache import CondCache, KeyValues
from .selective.model_call import ModelCall
from .steps.coarse import PART, shrink
from .steps.plan import StepKind
from .stopwatch import Stopwatch
from .tokens.partition import Partition

if TYPE_CHECKING:
    from .run import Run


@dataclass(frozen=True)
class CondCall:
    """A cond as a host sees it in one call: conditioning identity and its index among the conditionings of the evaluation."""

    identity: Hashable
    index: int


@dataclass(frozen=True)
class Fallback:
    """Why a call must run in full, as the end of a sentence. `readable`: its rows still lie where the backbone says."""

    reason: str
    readable: bool = False


class SeenConds:
    """The conditionings that one evaluation has evaluated, in one batch after another."""

    def __init__(self) -> None:
        self.positive: frozenset[int] = frozenset()
        self._passes: Counter[Hashable] = Counter()
        self._in_batch: Counter[tuple[Hashable, int]] = Counter()

    def begin_batch(self, positive: frozenset[int]) -> None:
        """A batch begins; `positive`: indices of the conditionings that carry the prompt."""
        self._passes.update({identity for identity, _ in self._in_batch})
        self._in_batch.clear()
        self.positive = positive

    def repeat_batch(self) -> None:
        """The batch runs once more, in place of what it did."""
        self._in_batch.clear()

    @property
    def in_first_batch(self) -> bool:
        """Whether nothing was evaluated before this batch."""
        return not self._passes

    def repeats(self, conds: Sequence[CondCall]) -> bool:
        """Whether one of these was evaluated in an earlier batch: a guidance node evaluates the model once more."""
        return any(self._passes[cond.identity] > 0 for cond in conds)

    def key(self, cond: CondCall) -> tuple[Hashable, ...]:
        """What tells a cond apart from the others of the evaluation; counts it."""
        pair = (cond.identity, cond.index)
        self._in_batch[pair] += 1
        return (*pair, self._passes[cond.identity], self._in_batch[pair])


class Evaluation:
    """A model evaluation of `step` at noise level `sigma`; made by `Run.evaluate`, for use in a `with` statement or up to `end`.

    `after_fallback`: a call of the step before ran in full that was to run in part. `changing`: the conditionings have changed not long
    ago. `device`: where its latent lies; None where nothing is queued.
    """

    def __init__(
        self, run: Run, step: int, sigma: float, after_fallback: bool = False, changing: bool = False, device: torch.device | None = None
    ) -> None:
        self.step, self.sigma = step, sigma
        self.kind = run.plan[step] if run.plan else StepKind.REFRESH
        self.fell_back = False
        self._run = run
        self._stopwatch = Stopwatch(device)
        # One cond at full length and another in part would guide with two different pictures: after a fallback, all run in full.
        self._full = after_fallback or changing
        self._may_be_skipped = self.kind is StepKind.SKIPPED and not changing
        self._device = device
        self._rows = [0, 0]
        self._used: Partition | None = None
        self._ran_full = self._ran_selective = self._computed_all = self._skipped = self._remembers = False
        self._full_size: tuple[int, int] | None = None  # of the latent, where this evaluation runs on a smaller one
        self.seen = SeenConds()

    def __enter__(self) -> Evaluation:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.end()

    def skipped(self) -> Tensor | None:
        """The prediction where nothing needs to run; None: run it."""
        run = self._run
        if not self._may_be_skipped or not run.may_leave_out:
            return None
        given = run.skipping.skipped(self.step, self.sigma, run.clock.on_level)
        if given is not None:
            self._rows[1] = max((record.rows_total for record in run.report.evaluations), default=0)
            self._skipped = True
        return given

    def coarse(self, x: Tensor, reason_at: Callable[[float], str | None]) -> tuple[Tensor, float] | None:
        """The smaller latent and its noise level, to run on in place of `x` `[images, C, H, W]`; None: run on `x`.

        `reason_at`: see `shrink`.
        """
        run = self._run
        if self.kind is not StepKind.COARSE or self._full or not run.may_leave_out or run.parts is None:
            return None
        found = shrink(x, self.sigma, run.parts, reason_at) if run.latent.is_whole(x) else PART
        if isinstance(found, str):
            run.note(f"Coarse steps run in full, because {found}.", NoteLevel.WARNING)
            return None
        self._full_size = (x.shape[-2], x.shape[-1])
        return found

    def computed(self, prediction: Tensor) -> Tensor:
        """What the sampler is to get for the guided, denoised prediction `[images, C, H, W]` of what ran."""
        run = self._run
        run.watch(prediction)
        if self._full_size is not None:
            return run.skipping.enlarged(self.step, self.sigma, prediction, self._full_size)
        if self._ran_full and self._ran_selective:  # the host could not run it again
            self._skipped = True
            return run.skipping.stand_in(self.step, self.sigma)
        if not run.may_leave_out:
            return prediction
        if self._used is None:
            return run.skipping.refreshed(self.step, self.sigma, prediction)
        fresh = self._used.pixels(run.edge, tuple(prediction.shape[2:])).to(prediction.device)
        return run.skipping.selected(self.step, self.sigma, prediction, fresh)

    def end(self) -> StepRecord:
        """The evaluation is over; what it was."""
        in_part = self._skipped or self._full_size is not None or not (self._computed_all or self._rows[1] == 0)
        kind = self.kind if self.kind.full or in_part else StepKind.REFRESH
        self.fell_back |= self._used is not None and self._computed_all
        record = StepRecord(self.step, kind, self._rows[0], self._rows[1], self._stopwatch.stop())
        self._run.finish(record, self._device)
        return record

    def begin_batch(self, positive: frozenset[int]) -> None:
        """A batch of conditionings begins; `positive`: indices of those that carry the prompt (not the negative one)."""
        self.seen.begin_batch(positive)

    def end_batch(self, cond: Tensor | None, uncond: Tensor | None) -> None:
        """A batch of conditionings ended with these denoised predictions."""
        run = self._run
        if cond is None or uncond is None or run.tokens is None or not (run.latent.is_whole(cond) and run.latent.is_whole(uncond)):
            return
        if _collects(run, self) and self.seen.in_first_batch:
            run.tokens.see_guidance(cond, uncond)

    def must_repeat(self) -> bool:
        """Whether the batch that just ended must run again, now in full: of its conditionings, some ran in full and others in part.

        What guides is the difference of two predictions, and both must be computed alike.
        """
        if not (self._ran_full and self._ran_selective):
            return False
        self._full, self._ran_selective, self._used = True, False, None
        self._rows = [0, 0]
        self.seen.repeat_batch()
        return True

    def begin_call(self, conds: Sequence[CondCall], x: Tensor, fallback: Fallback | None) -> ModelCall | None:
        """What a model call on `x` `[len(conds) * images, C, H, W]` should do; None: run it as if the pack were not there."""
        run = self._run
        run.ledger.begin_call()
        if run.backbone is None or run.tokens is None or self._full_size is not None:
            return None
        self._device = x.device
        keys = tuple((id(run.module), *self.seen.key(cond), tuple(x.shape[1:]), x.dtype, x.device) for cond in conds)
        extra = self.seen.repeats(conds)
        misfit = run.latent.misfit(len(conds), x)
        fallback = fallback or (None if misfit is None else Fallback(misfit))
        if fallback is not None and run.partial is not None:
            self._explain(fallback, extra)
        if fallback is None:
            plan = self._plan_of_extra(keys) if extra else self._plan_of(conds, keys)
        else:
            plan = CallPlan(evidence_of=self._to_look_at(conds)) if fallback.readable and not extra else None
        if not extra and (plan is None or plan.partition is None):
            self._computed_all = True
            if fallback is not None and not fallback.readable:
                self._mark_full()
        if plan is None or (run.partial is None and not plan.evidence_of):  # else nobody reads what hooks would tell
            return None
        if plan.capture and run.partial is not None:
            self._remember(keys)
        key_values = KeyValues(CondCache()) if run.partial is None else run.partial.key_values
        return ModelCall(run.module, run.backbone, plan, keys, run.tokens.grid.tokens, key_values, run.tokens.evidence)

    def end_call(self, call: ModelCall) -> None:
        """A call ran."""
        run, partition, counts = self._run, call.plan.partition, not call.plan.extra
        if run.partial is not None and counts:  # without selective steps rows are seen in a few calls only
            self._rows[0] += call.attention.rows_active
            self._rows[1] += call.attention.rows_total
        self._computed_all |= counts and partition is None
        run.learn(call)
        if call.executed and counts:
            if partition is None:
                self._mark_full()
            else:
                self._used, self._ran_selective = partition, True

    def ran_out_of_memory(self, call: ModelCall | None) -> bool:
        """A call failed for want of memory: frees what is remembered and runs in full from here on. False: there was nothing to free."""
        if not self._run.free_memory(call):
            return False
        self._computed_all = True
        self._mark_full()
        return True

    def _explain(self, fallback: Fallback, extra: bool) -> None:
        if not extra:
            self._run.explain_full(fallback.reason)
        elif not self.fell_back:
            self._run.note(f"Steps in which a guidance node evaluates the model once more run in full, because {fallback.reason}.")
        self.fell_back = True

    def _mark_full(self) -> None:
        """A call computes all rows: so must the others of this evaluation, but those that stand beside it (of another node)."""
        self._ran_full = self._full = True

    def _remember(self, keys: tuple[Hashable, ...]) -> None:
        partial = self._run.partial
        assert partial is not None
        if not self._remembers:
            partial.begin_refresh()
        self._remembers = True
        partial.renew(keys)

    def _plan_of_extra(self, keys: tuple[Hashable, ...]) -> CallPlan | None:
        """Guidance subtracts one evaluation from another, so an extra one computes what the others of its step do; None: all of it."""
        run, partial = self._run, self._run.partial
        if self._used is None:
            return CallPlan(capture=True, known=_needless(run), extra=True) if _must_capture(run, self.step) else None
        if partial is not None and partial.has(keys):
            return CallPlan(partition=self._used, extra=True)
        self.fell_back = True
        return None

    def _plan_of(self, conds: Sequence[CondCall], keys: tuple[Hashable, ...]) -> CallPlan:
        run, partition = self._run, self._run.report.partition
        ready = self.kind is StepKind.SELECTIVE and run.selects and not self._full
        if ready and partition is None:
            run.explain_full("the warm-up steps, which show where the prompt acts, did not run as planned")
        if ready and partition is not None and run.partial is not None and run.partial.has(keys):
            return CallPlan(partition=partition)
        self._full |= ready  # a conditioning that is new runs in full, and those beside it with it
        return CallPlan(capture=_must_capture(run, self.step), known=_needless(run), evidence_of=self._to_look_at(conds))

    def _to_look_at(self, conds: Sequence[CondCall]) -> tuple[int, ...]:
        return tuple(i for i, cond in enumerate(conds) if cond.index in self.seen.positive) if _collects(self._run, self) else ()


def _collects(run: Run, evaluation: Evaluation) -> bool:
    """Whether an evaluation shows where the prompt acts, and the map will be read."""
    return run.tokens is not None and run.reads_map and evaluation.kind is StepKind.WARMUP and run.tokens.collects(evaluation.step)


def _needless(run: Run) -> Partition | None:
    """Tokens whose keys and values no selective step will need."""
    return None if run.partial is None else run.partial.needless(run.report.partition)


def _must_capture(run: Run, step: int) -> bool:
    """Whether selective steps will go on from what this step computes."""
    until_refreshed = itertools.takewhile(lambda kind: not kind.full, run.plan[step + 1 :])
    return run.selects and StepKind.SELECTIVE in (run.plan[step], *until_refreshed)
