"""One sampling run: ties schedule, evidence, partition, caches and report together and owns their lifetimes.

A host makes a `Run` when sampling starts, brackets every model evaluation with `begin_evaluation` / `end_evaluation`, asks `begin_call`
what each model call should do, and closes the run in `finally`. Nothing here survives `close` but the report.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from .backbones import BACKBONES, Backbone, find_backbone
from .guidance import GuidanceConfig, scale_map, to_pixels
from .masks.certify import MaskLedger, MaskMode
from .report import NoteLevel, RunReport, StepRecord
from .selective.kv_cache import CondCache, KeyValues
from .selective.memory import Memory, MemoryPlan
from .selective.model_call import HEAD, CallPlan, ModelCall
from .steps.clock import StepClock
from .steps.forecast import Forecaster, weight_of
from .steps.levels import flow_progress
from .steps.plan import ScheduleConfig, StepKind, plan_steps, reaches, trust, why_full
from .steps.samplers import EULER, Sampler
from .stopwatch import Stopwatch
from .tokens.focus import Focus, find_focus
from .tokens.painting import distorted, kept_tokens
from .tokens.partition import Partition, PartitionConfig, Signal, forced_tokens, select_rows
from .tokens.sensitivity import Evidence, guidance_strength

log = logging.getLogger("safe_dit")

# The last warm-up steps know the picture best; looking at more costs time and adds little.
EVIDENCE_STEPS = 2

# After another prompt came in force, on the demo model with one, two and three steps in full (mean of 15 pictures): 25, 27 and 31 dB.
STEPS_AFTER_CHANGE = 3

UNCOMPILED = "Without torch.compile, which cannot leave out a part of the tokens; presets that leave out whole steps keep it."

FROZEN = "torch.compile froze the model's graph"


def leaves_graphs() -> bool:
    """Whether this torch (2.6 and later) can run a compiled model as if it were not."""
    return hasattr(torch.compiler, "set_stance")


@dataclass(frozen=True, eq=False)
class SafeConfig:
    """Everything the nodes ask of a run; None or OFF: not asked."""

    masks: MaskMode = MaskMode.OFF
    partition: PartitionConfig | None = None
    schedule: ScheduleConfig | None = None
    guidance: GuidanceConfig | None = None


@dataclass(frozen=True)
class CondCall:
    """A cond as a host sees it in one call: conditioning identity and its index among the conditionings of the evaluation."""

    identity: Hashable
    index: int


@dataclass(frozen=True)
class Fallback:
    """Why a call must run at full length, as the end of a sentence. `readable`: its rows still lie where the backbone says."""

    reason: str
    readable: bool = False


class Run:
    """State of one sampling run over a latent `[images, C, H, W]`, or a video's `[images, C, frames, H, W]`.

    `sigmas`: noise levels, the last one the end of the run. `window`: half-open range of steps that need not be computed in full.
    `backbones`: the host's table of model families. `progress`: how far the run has come at each level (steps/levels.py; default: as in
    a flow-matching model). `sampler`: what it makes of a prediction (default: Euler's method).
    """

    def __init__(
        self,
        config: SafeConfig,
        module: nn.Module,
        sigmas: Sequence[float],
        latent_shape: tuple[int, ...],
        window: tuple[int, int],
        memory: Memory | None = None,
        backbones: tuple[Backbone, ...] = BACKBONES,
        progress: Sequence[float] | None = None,
        sampler: Sampler = EULER,
    ) -> None:
        self.config = config
        self.sigmas = tuple(sigmas)
        self.ledger = MaskLedger(config.masks, bracketed=True)
        self.cache = CondCache()
        self.key_values = KeyValues(self.cache)
        self.report = RunReport(total_steps=len(self.sigmas) - 1)
        self.report.ledger = self.ledger if config.masks is not MaskMode.OFF else None
        self._partitioning = config.partition or PartitionConfig()
        self._evidence = Evidence()
        self._module = module
        self._images, self._spatial = latent_shape[0], latent_shape[2:]
        self._frames = latent_shape[2] if len(latent_shape) == 5 else 1
        self._started = time.perf_counter()
        asked = config.schedule or ScheduleConfig(refresh_interval=1)
        schedule = sampler.limit(asked)
        warmup = self._partitioning.warmup_steps
        self.progress = tuple(progress) if progress is not None else flow_progress(self.sigmas)
        self._sampler = sampler
        self._clock = StepClock(self.sigmas)
        self.report.progress, self.report.window = self.progress, (0, 0) if sampler.full else window
        self.report.sampler = sampler
        self.plan = plan_steps(self.progress, warmup, schedule, self.report.window)
        # Steps computed in full or not at all ask nothing of the model: neither its family nor what else works on it matters to them.
        self._selects = StepKind.SELECTIVE in self.plan
        self._holds = StepKind.SKIPPED in self.plan
        self._backbone = self._fit(module, latent_shape, backbones)
        # Of selective steps alone: steps that compute nothing do not depend on them.
        self._selective_allowed = self._partitioning.keep_ratio < 1.0
        self._memory = MemoryPlan(schedule.cache, memory)
        self._fell_back = False
        self._interval, self._spaced = schedule.refresh_interval, schedule.spaced
        forecast, corrects = schedule.forecast if sampler.forecast else 0.0, schedule.corrector and sampler.corrector
        self._new_forecaster = partial(Forecaster, forecast, corrects)
        self._forecaster = self._new_forecaster()
        self._active: Hashable = None
        self._unsettled = 0
        self._renewed: set[Hashable] = set()
        self._evidence_fits = True
        self._nan: Tensor | None = None
        self._all_arrive = True
        self._last_full: int | None = None  # step
        self._answered: int | None = None  # the last step that was skipped
        self._dense_rows = 0
        self._sigma = self.sigmas[0]
        self._begin_step(0)
        self._judge_plan(asked)
        self._judge_painting()

    def _fit(self, module: nn.Module, latent_shape: tuple[int, ...], backbones: tuple[Backbone, ...]) -> Backbone | None:
        wanted = self.config.schedule is not None or self.config.partition is not None or self.config.guidance is not None
        if not wanted:
            return None
        if len(latent_shape) not in (4, 5):
            self._runs_without("The latent is neither a picture nor a video (it is sound, or several latents packed into one)")
            return None
        fit = find_backbone(module, backbones)
        if fit.backbone is None:
            self._runs_without(fit.reason)
            return None
        self.report.backbone = fit.backbone.name
        rows, columns = fit.backbone.grid(module, *self._spatial[-2:])
        self._grid = (self._frames * rows, columns)  # of a video, frame under frame
        return fit.backbone

    def _runs_without(self, reason: str) -> None:
        if self._selects and self._holds:
            self.note(f"{reason}; its selective steps run in full.", NoteLevel.WARNING)
        elif self._selects or self.config.schedule is None:
            self.note(f"{reason}; it runs dense.", NoteLevel.WARNING)
        elif self.config.guidance is not None:
            self.note(f"{reason}; there is no map of its tokens, so guidance is not weighted by it.", NoteLevel.WARNING)

    def _judge_plan(self, schedule: ScheduleConfig) -> None:
        asked = self.config.schedule is not None and schedule.refresh_interval > 1
        if asked and (schedule.skipped_steps or self._selective_allowed) and all(kind.full for kind in self.plan):
            reason = why_full(self.progress, self._sampler.why_full(schedule), schedule.spaced)
            self.note(f"Every step is computed, so nothing is saved: {reason}.")

    def _runs_full(self, reason: str) -> None:
        self.note(f"{'Selective steps run in full' if self._holds else 'Dense'}, because {reason}.", NoteLevel.WARNING)

    def _judge_painting(self) -> None:
        painting = self._partitioning.painting
        if painting is None or self._backbone is None:
            return
        if not self._may_skip or not self._selects:
            self.note(
                "What was painted on the map has no effect: no step of this run computes a part of the tokens. Use the preset paper, or "
                "custom with a keep ratio below 1.0 and fewer held steps."
            )
        elif tuple(painting.shape) != self._grid:
            (height, width), (rows, columns) = painting.shape, self._grid
            # A painting of the same proportions is only made finer or coarser: nothing to be warned of.
            level = NoteLevel.WARNING if distorted(painting, self._grid) else NoteLevel.INFO
            self.note(f"The map was painted on {width} x {height} tokens; it is resized to the {columns} x {rows} of this run.", level)

    def note(self, sentence: str, level: NoteLevel = NoteLevel.INFO) -> None:
        """Put a sentence in the report and, the first time, in the log."""
        if self.report.note(sentence, level):
            log.info("SAFE-DiT: %s", sentence)

    def read_prompt(self, text: str | None) -> None:
        """Find the focus words in the prompt's text; None: the host could not find it."""
        request = self._partitioning.focus
        if request is None or self._backbone is None:
            return
        if self._partitioning.signal is not Signal.ATTENTION:
            self.note(f"Focus words count in the signal attention alone; with {self._partitioning.signal.value} they have no effect.")
        found = Focus(missing=request.phrases) if text is None else find_focus(request, text)
        if found.missing:
            phrases = ", ".join(f"`{phrase}`" for phrase in found.missing)
            rest = "the others are counted" if found.places else "all words are counted"
            self.note(f"The prompt does not hold the focus words {phrases}; {rest}.", NoteLevel.WARNING)
        self._evidence.focus = found if found.places else None

    # Evaluations

    def _begin_step(self, step: int, device: torch.device | None = None) -> None:
        self.step = step
        self.kind = self.plan[step] if self.plan else StepKind.REFRESH
        self._rows = [0, 0]
        self._selected: Partition | None = None
        # One cond at full length and another held back would guide with two different pictures: after an fallback, all run dense.
        self._blocked, self._fell_back = self._fell_back, False
        self._executed_dense = self._skipped = self._settling = False
        self._ran_full = self._ran_selective = False
        self._passes: Counter[Hashable] = Counter()
        self._capturing = False
        self._in_batch: Counter[tuple[Hashable, int]] = Counter()
        self._looked_at: frozenset[int] = frozenset()
        self._stopwatch = Stopwatch(device)

    def begin_evaluation(
        self, sigma: float, active: Hashable = None, device: torch.device | None = None, step: int | None = None
    ) -> None:
        """A model evaluation at noise level `sigma` begins.

        `active`: stands for the conditionings in force at that level. `device`: of its latent, None where nothing is queued. `step`: where
        the host knows to which one it belongs.
        """
        before, self._sigma = self.step, sigma
        self._begin_step(self._clock.at(sigma) if step is None else self._clock.set(step), device)
        self._follow_conditionings(active)
        if self.step - before not in (0, 1):  # what became of the steps in between is not known here
            self._forecaster.lose_count()
            self._all_arrive = False
        if self._backbone is not None and (self.kind is not StepKind.WARMUP or self.step == self._map_from):
            self._make_map()

    def _follow_conditionings(self, active: Hashable) -> None:
        """Predictions under other conditionings tell nothing of the coming ones, and right after a change these move fast."""
        self._active, before = active, self._active
        if self._forecaster.ready and active != before:
            self._forecaster = self._new_forecaster()
            self._unsettled = STEPS_AFTER_CHANGE
        self._settling, self._unsettled = self._unsettled > 0, max(self._unsettled - 1, 0)
        self._blocked |= self._settling
        if self._settling and not self.kind.full:
            self.note(f"The conditionings change during the run; the {STEPS_AFTER_CHANGE} steps from there run in full.")

    def compute_all(self, reason: str) -> None:
        """Leave out nothing from the next evaluation on; `reason`: the end of a sentence."""
        if not all(kind.full for kind in self.plan):
            self.plan = tuple(kind if kind.full else StepKind.REFRESH for kind in self.plan)
            self.note(f"Every step is computed, so nothing is saved: {reason}.", NoteLevel.WARNING)

    def skipped(self) -> Tensor | None:
        """The prediction of an evaluation for which nothing needs to run; None: run it."""
        ready = self._may_skip and self._forecaster.ready and not self._settling
        if self.kind is not StepKind.SKIPPED or not ready or not self._near_enough:
            return None
        if not self._all_arrive:
            self.note("Another node or the sampler leaves out steps of its own, so none are skipped from there on.", NoteLevel.WARNING)
            return None
        if not reaches(self.progress, self._last_full or 0, self.step):
            self.note("Steps that are left out lie far apart; where the picture changes too much, take more steps or a preset.")
        self._rows[1] = self._dense_rows
        self._skipped, self._answered = True, self.step
        return self._forecaster.skipped(self._sigma, self._weight, self._trust(1))

    @property
    def _near_enough(self) -> bool:
        """Whether what was really computed lies near enough for this step not to be computed: not every planned step need have arrived."""
        last = self._last_full
        if last is None or not 0 < self.step - last < self._interval or not reaches(self.progress, last, self.step, self._spaced):
            return False
        return self._clock.on_level or self._answered == self.step

    def _trust(self, ahead: int) -> float:
        """How far to believe the line from the last full step to this one, or to so many steps `ahead`."""
        return trust(self.progress, self._last_full or 0, self.step + ahead, self._spaced) if self._spaced else 1.0

    @property
    def _weight(self) -> float:
        return weight_of(self._sigma, self.sigmas[self.step + 1])

    def begin_batch(self, conditional: frozenset[int]) -> None:
        """A batch of conditionings begins; `conditional`: indices of those that carry the prompt (not the negative)."""
        self._passes.update({identity for identity, _ in self._in_batch})
        self._in_batch.clear()
        self._looked_at = conditional

    def end_batch(self, cond: Tensor | None, uncond: Tensor | None) -> None:
        """A batch of conditionings ended with these denoised predictions."""
        if cond is None or uncond is None or not (self._is_whole(cond) and self._is_whole(uncond)):
            return
        if self._collecting and not self._passes:
            self._evidence.add_guidance(guidance_strength(cond, uncond, self._grid))

    def must_repeat(self) -> bool:
        """Whether the batch that just ended must run again, now in full: of its conditionings, some ran in full and others in part.

        What guides is the difference of two predictions, and both must be computed alike.
        """
        if not (self._ran_full and self._ran_selective):
            return False
        self._blocked, self._ran_selective, self._selected = True, False, None
        self._rows = [0, 0]
        self._in_batch.clear()
        return True

    def _is_whole(self, x: Tensor) -> bool:
        """Whether this is a prediction for the whole latent of the run, not for a window or a tile of it."""
        frames, *size = (1, *x.shape[2:])[-3:]  # a picture may come with a frame that its latent does not have
        return x.shape[0] == self._images and (frames, *size) == (1, *self._spatial)[-3:]

    def computed(self, prediction: Tensor, x: Tensor) -> Tensor:
        """What the sampler is to get for the guided prediction of an evaluation that ran at latent `x`, both `[images, C, H, W]`."""
        self._nan = prediction.isnan().any() if self._nan is None else self._nan | prediction.isnan().any()
        if self._ran_full and self._ran_selective:  # the host could not run it again
            self._skipped = True
            return self._forecaster.skipped(self._sigma, self._weight, self._trust(1))
        if not self._may_skip:
            return prediction
        partition = self._selected
        if partition is None or self._backbone is None:
            believed = self._trust(0)
            self._last_full = self.step
            return self._forecaster.refreshed(prediction, self._sigma, self._weight, believed)
        fresh = partition.pixels(self._backbone.edge(self._module), tuple(prediction.shape[2:])).to(prediction.device)
        return self._forecaster.selected(prediction, self._sigma, self._weight, fresh, self._trust(1))

    def end_evaluation(self) -> StepRecord:
        """The evaluation ended; returns what it was."""
        kind = self.kind
        if not kind.full and not self._skipped and (self._executed_dense or self._rows[1] == 0):
            kind = StepKind.REFRESH
        self._fell_back |= self._selected is not None and self._executed_dense
        self._dense_rows = max(self._dense_rows, self._rows[1])
        record = StepRecord(self.step, kind, self._rows[0], self._rows[1], self._stopwatch.stop())
        self.report.evaluations.append(record)
        self.report.cache_bytes = max(self.report.cache_bytes, self.cache.bytes + self.key_values.bytes)
        if self._backbone is not None and self._memory.predicted is None and self.selects:
            self._plan_memory()
        return record

    def _plan_memory(self) -> None:
        storage = self._memory.decide(kept_tokens(self._grid[0] * self._grid[1], self._partitioning.keep_ratio, 0, 0), self._device)
        if storage is None:
            return
        if storage != self.key_values.storage:  # what was remembered in another way cannot be read any more
            self.cache.clear()
        self.key_values.storage = storage
        self.report.cache_predicted, self.report.storage = self._memory.predicted, storage

    # Model calls

    def use(self, module: nn.Module) -> None:
        """The calls to come are of this model, another of the same family: a pipeline may hand over to a second one on the way."""
        if module is self._module:
            return
        self._module = module
        self._forget()
        # Nothing is held or followed from one model to another: the first evaluation of the new one is computed.
        self._forecaster = self._new_forecaster()

    def runs(self, module: nn.Module) -> bool:
        """Whether calls of `module` are of this run's model; where no model is known, it makes no difference."""
        return self._backbone is None or module is self._module

    def begin_call(self, conds: Sequence[CondCall], x: Tensor, fallback: Fallback | None) -> ModelCall | None:
        """What a model call on `x` `[len(conds) * images, C, H, W]` should do; None: run it as if the pack were not there."""
        self.ledger.begin_call()
        if self._backbone is None:
            return None
        self._device = x.device
        keys = tuple(self._cond_key(cond, x) for cond in conds)
        extra = self.repeats(conds)
        fallback = fallback or self._shape_fallback(conds, x)
        if fallback is not None and self._selects:
            self._tell_fallback(fallback, extra)
        plan = self._plan_of(conds, keys, fallback, extra)
        if not extra and (plan is None or plan.partition is None):
            self._executed_dense = True
            if fallback is not None and not fallback.readable:
                self._mark_full()
        if plan is None or (not self._selects and not plan.evidence_of):  # else nobody reads what hooks would tell
            return None
        if plan.capture:
            self._remember(keys)
        tokens = self._grid[0] * self._grid[1]
        return ModelCall(self._module, self._backbone, plan, keys, tokens, self.cache, self.key_values, self._evidence)

    def _mark_full(self) -> None:
        """A call computes all rows: so must the others of this evaluation, but those that stand beside it (of another node)."""
        self._ran_full = self._blocked = True

    def repeats(self, conds: Sequence[CondCall]) -> bool:
        """Whether this evaluation has seen one of these conditionings before: a guidance node evaluates the model once more."""
        return any(self._passes[cond.identity] > 0 for cond in conds)

    def _tell_fallback(self, fallback: Fallback, extra: bool) -> None:
        if not extra:
            self._runs_full(fallback.reason)
        elif not self._fell_back:
            self.note(f"Steps in which a guidance node evaluates the model once more run in full, because {fallback.reason}.")
        self._fell_back = True

    def _plan_of(
        self, conds: Sequence[CondCall], keys: tuple[Hashable, ...], fallback: Fallback | None, extra: bool
    ) -> CallPlan | None:
        if fallback is not None:
            return CallPlan(evidence_of=self._to_look_at(conds)) if fallback.readable and not extra else None
        return self._extra_plan(keys) if extra else self._call_plan(conds, keys)

    def _extra_plan(self, keys: tuple[Hashable, ...]) -> CallPlan | None:
        """Guidance subtracts one evaluation from another, so an extra one computes what the others of its step do; None: all of it."""
        if self._selected is None:
            return CallPlan(capture=True, known=self._known, extra=True) if self._must_capture else None
        if self._remembered(keys):
            return CallPlan(partition=self._selected, extra=True)
        self._fell_back = True
        return None

    def _remember(self, keys: tuple[Hashable, ...]) -> None:
        if not self._capturing:
            self._renewed.clear()
        self._capturing = True
        self._renewed.update(keys)

    def _remembered(self, keys: tuple[Hashable, ...]) -> bool:
        """Whether the last refresh renewed all of these: what one left out is older than the rest."""
        return self._renewed.issuperset(keys) and self.cache.has(HEAD, keys)

    def _cond_key(self, cond: CondCall, x: Tensor) -> Hashable:
        pair = (cond.identity, cond.index)
        self._in_batch[pair] += 1
        which = (self._passes[cond.identity], self._in_batch[pair])
        return (id(self._module), *pair, *which, tuple(x.shape[1:]), x.dtype, x.device)

    def _shape_fallback(self, conds: Sequence[CondCall], x: Tensor) -> Fallback | None:
        if tuple(x.shape[2:]) != self._spatial:
            return Fallback("a model call works on a part of the latent: an area of a prompt, a window or a tile")
        if x.shape[0] != len(conds) * self._images:
            return Fallback(f"a model call holds {x.shape[0]} latents where {len(conds)} x {self._images} were expected")
        return None

    @property
    def selects(self) -> bool:
        """Whether steps are still to come that compute a part of the tokens."""
        return self._selects and self._selective_allowed and self._backbone is not None

    @property
    def lent_attention(self) -> str | None:
        """Python module whose attention function the host must replace for the length of a call."""
        return None if self._backbone is None else self._backbone.lent_attention

    def refusal(self, arguments: Mapping[str, object]) -> Fallback | None:
        """Why a call with these model arguments must run dense; None if it need not."""
        refusals = self._backbone.refusals if self._backbone is not None else ()
        return next((Fallback(reason) for name, reason in refusals if _given(arguments.get(name))), None)

    def follows(self, control: Mapping[str, Sequence[Tensor | None]]) -> bool:
        """Whether what a ControlNet adds, lists of `[B, tokens, C]` by place, can be cut down to the rows that are computed."""
        if self._backbone is None:
            return True
        tokens = self._grid[0] * self._grid[1]
        given = {place: [add for add in adds if add is not None] for place, adds in control.items()}
        known = all(place in self._backbone.controls for place, adds in given.items() if adds)
        return known and all(add.ndim == 3 and add.shape[1] == tokens for adds in given.values() for add in adds)

    def _call_plan(self, conds: Sequence[CondCall], keys: tuple[Hashable, ...]) -> CallPlan:
        partition = self.report.partition
        ready = self._selective_allowed and not self._blocked and self.kind is StepKind.SELECTIVE
        if ready and partition is None:
            self._runs_full("the warm-up steps, which show where the prompt acts, did not run as planned")
        if ready and partition is not None and self._remembered(keys):
            return CallPlan(partition=partition)
        self._blocked |= ready  # a conditioning that is new runs in full, and those beside it with it
        return CallPlan(capture=self._must_capture, known=self._known, evidence_of=self._to_look_at(conds))

    @property
    def _known(self) -> Partition | None:
        """Tokens that need not be remembered, because they are fresh in every selective step to come."""
        return None if self.key_values.storage.whole else self.report.partition

    def _to_look_at(self, conds: Sequence[CondCall]) -> tuple[int, ...]:
        return tuple(i for i, cond in enumerate(conds) if cond.index in self._looked_at) if self._collecting else ()

    @property
    def _may_skip(self) -> bool:
        return self._partitioning.keep_ratio < 1.0 and any(not kind.full for kind in self.plan)

    @property
    def _must_capture(self) -> bool:
        until_refreshed = itertools.takewhile(lambda kind: not kind.full, self.plan[self.step + 1 :])
        return self._selective_allowed and StepKind.SELECTIVE in (self.kind, *until_refreshed)

    @property
    def _collecting(self) -> bool:
        # A map nobody reads is not worth its time.
        wanted = self.selects or self.config.guidance is not None or self.config.schedule is None
        if self._backbone is None or self.kind is not StepKind.WARMUP or not wanted or not self._evidence_fits:
            return False
        last = self._map_from if self._map_from is not None else self.plan.count(StepKind.WARMUP)
        return last - EVIDENCE_STEPS <= self.step < last

    @property
    def _map_from(self) -> int | None:
        """Step of the warm-up at which the map is made already, so that the first cache holds context rows alone; None: after it."""
        last = self.plan.count(StepKind.WARMUP) - 1
        return last if last >= 1 and self._selects else None

    def end_call(self, call: ModelCall) -> None:
        """A call ran."""
        if self._selects and not call.plan.extra:  # without selective steps rows are seen in a few calls only
            self._rows[0] += call.rows_active
            self._rows[1] += call.rows_total
        self._executed_dense |= not call.plan.extra and call.plan.partition is None
        if call.executed and call.plan.partition is None:
            self._memory.add(call.sizes)
        reason = self._unfit(call)
        if reason is not None and self._selects:
            self._give_up(reason)
        if call.executed and not call.plan.extra:
            self._ran(call.plan.partition)
        if not call.executed and call.plan.capture:  # an outer cache answered instead of the model
            self.cache.drop(call.conds)

    def _ran(self, partition: Partition | None) -> None:
        if partition is None:
            self._mark_full()
        else:
            self._selected, self._ran_selective = partition, True

    def _give_up(self, reason: str) -> None:
        self._selective_allowed = False
        self._forget()
        self._runs_full(reason)

    def _forget(self) -> None:
        self.cache.clear()
        self.key_values.clear()

    def out_of_memory(self, call: ModelCall | None) -> bool:
        """A call failed for want of memory: frees what is remembered, of caches and of evidence, and runs dense from here on.

        False: there was nothing to free.
        """
        remembers = self.cache.bytes > 0 or (call is not None and call.plan.capture)
        looks = call is not None and len(call.plan.evidence_of) > 0
        if not remembers and not looks:
            return False
        if remembers:
            self._give_up("memory ran out; what was remembered between refreshes is freed")
        elif self._selects:
            self._give_up("memory ran out while the map of its tokens was made")
        else:
            self.note("Memory ran out while the map of the tokens was made, so there is none.", NoteLevel.WARNING)
        self._evidence, self._evidence_fits = Evidence(), False
        self._executed_dense = True
        self._mark_full()
        return True

    def _unfit(self, call: ModelCall) -> str | None:
        """Why no call of this run can be selective, as far as this one shows."""
        if call.misfit is not None:
            return call.misfit
        if call.masked_per_query:
            return "the model masks attention per query"
        if call.executed and call.plan.capture and not call.attended:
            return "the model's attention could not be reached"
        return None

    # Map and partition

    def _divide(self, sensitivity: Tensor) -> None:
        config = self._partitioning
        if self._backbone is not None and self._backbone.shared_rows:
            sensitivity = sensitivity.mean(0, keepdim=True)
        forced, barred = forced_tokens(config, sensitivity.shape[0], self._grid, sensitivity.device, self._frames)
        if barred is not None and barred.all():
            self.note("All tokens are painted as context; the most sensitive one is computed all the same.")
        sensitivity = sensitivity.nan_to_num(0.0)
        partition = select_rows(sensitivity, config.keep_ratio, forced, barred)
        self.report.divide(sensitivity, partition)
        if partition.full:
            self._leave_nothing_out(forced is not None and bool(forced.all()))

    def _leave_nothing_out(self, all_forced: bool) -> None:
        if not self.selects:
            return
        self._selective_allowed = False
        if self._grid[0] * self._grid[1] == 1:
            reason = "the picture is a single token"
        elif all_forced and self._partitioning.painting is not None:
            reason = "every token is painted as sensitive"
        elif all_forced:
            reason = "the mask covers every token"
        else:
            reason = f"the keep ratio leaves none of {self._grid[0] * self._grid[1]} tokens out"
        self._runs_full(reason)

    def _make_map(self) -> None:
        if self.report.sensitivity is not None or not (self._evidence.has_attention or self._evidence.has_guidance):
            return
        self._divide(self._sensitivity(self._partitioning))

    def _sensitivity(self, config: PartitionConfig) -> Tensor:
        attention, guidance = self._evidence.has_attention, self._evidence.has_guidance
        if config.signal is not Signal.ATTENTION and not guidance:
            self.note("There is no guidance signal at CFG 1; the map comes from attention alone.")
        if config.signal is not Signal.GUIDANCE and not attention:
            self.note("The model's attention could not be read; the map comes from the guidance signal alone.")
        use_attention = attention and (config.signal is not Signal.GUIDANCE or not guidance)
        use_guidance = guidance and (config.signal is not Signal.ATTENTION or not attention)
        maps = []
        if use_attention:
            maps.append(self._evidence.attention_map(self._grid, config.smoothing, self._frames))
        if use_guidance:
            maps.append(self._evidence.guidance_map(config.smoothing, self._frames))
        return sum(maps[1:], maps[0]) / len(maps)

    def guidance_scales(self) -> Tensor | None:
        """Guidance scale of every latent pixel `[images, 1, H, W]`; None until there is a map."""
        if self.config.guidance is None or self.report.sensitivity is None or self._backbone is None:
            return None
        self.report.guided = True
        tokens = to_pixels(self.report.sensitivity, self._backbone.edge(self._module), self._spatial)
        return scale_map(self.config.guidance, tokens)

    def close(self) -> RunReport:
        """Free everything but the report and return it."""
        self._make_map()
        if self._nan is not None and self._nan:
            self.note("The model predicted NaN, which is no number, in at least one step: the picture cannot be right.", NoteLevel.WARNING)
        self.report.finish()
        self.report.seconds = time.perf_counter() - self._started
        if self.ledger.mode is not MaskMode.OFF:
            self.report.masks = self.ledger.sentence()
        self._forget()
        self._evidence = Evidence()
        return self.report


def _given(value: object) -> bool:
    return value is not None and not (isinstance(value, (list, tuple)) and not value)
