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

from torch import Tensor, nn

from .backbones import BACKBONES, Backbone, find_backbone
from .cache import BranchCache, KeyValues
from .execution import HEAD, CallPlan, ModelCall
from .focus import Focus, find_focus
from .guidance import GuidanceConfig, scale_map, to_pixels
from .masks import MaskLedger, MaskMode
from .memory import Memory, MemoryPlan
from .painting import distorted, kept_tokens
from .partition import Partition, PartitionConfig, Signal, forced_tokens, select_rows
from .policies import SpreadPolicy
from .report import NoteLevel, RunReport, StepRecord
from .sensitivity import Evidence, guidance_strength
from .steps.forecast import Forecaster, weight_of
from .steps.plan import ScheduleConfig, StepKind, plan_steps, step_of_sigma

log = logging.getLogger("safe_dit")

# The last warm-up steps know the picture best; looking at more costs time and adds little.
EVIDENCE_STEPS = 2

UNCOMPILED = "Without torch.compile, which cannot leave out a part of the tokens; presets that leave out whole steps keep it."


@dataclass(frozen=True, eq=False)
class SafeConfig:
    """Everything the nodes ask of a run; None or OFF: not asked."""

    masks: MaskMode = MaskMode.OFF
    partition: PartitionConfig | None = None
    schedule: ScheduleConfig | None = None
    guidance: GuidanceConfig | None = None


@dataclass(frozen=True)
class BranchCall:
    """A branch as a host sees it in one call: conditioning identity and its index among the conditionings of the evaluation."""

    identity: Hashable
    index: int


@dataclass(frozen=True)
class Obstacle:
    """Why a call must run at full length, as the end of a sentence. `readable`: its rows still lie where the backbone says."""

    reason: str
    readable: bool = False


class Run:
    """State of one sampling run over a latent `[images, C, H, W]`, or a video's `[images, C, frames, H, W]`.

    `sigmas`: noise levels, falling, the last one the end of the run. `window`: half-open range of steps that may be selective.
    `backbones`: the host's table of model families.
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
    ) -> None:
        self.config = config
        self.sigmas = tuple(sigmas)
        self.ledger = MaskLedger(config.masks, bracketed=True)
        self.cache = BranchCache()
        self.key_values = KeyValues(self.cache)
        self.report = RunReport(total_steps=len(self.sigmas) - 1)
        self.report.ledger = self.ledger if config.masks is not MaskMode.OFF else None
        self._partitioning = config.partition or PartitionConfig()
        self._evidence = Evidence()
        self._module = module
        self._images, self._spatial = latent_shape[0], latent_shape[2:]
        self._frames = latent_shape[2] if len(latent_shape) == 5 else 1
        self._started = time.perf_counter()
        schedule = config.schedule or ScheduleConfig(refresh_interval=1)
        warmup = self._partitioning.warmup_steps
        self.plan = plan_steps(self.report.total_steps, warmup, schedule, window)
        # Steps computed in full or not at all ask nothing of the model: neither its family nor what else works on it matters to them.
        self._selects = StepKind.SELECTIVE in self.plan
        self._backbone = self._fit(module, latent_shape, backbones)
        self._selective_allowed = self._partitioning.keep_ratio < 1.0
        self._memory = MemoryPlan(schedule.cache, memory)
        self._obstructed = False
        self._forecaster = self._new_forecaster()
        self._policy = SpreadPolicy() if self._partitioning.signal.moves else None
        self._evaluated: set[int] = set()
        self._regular = True
        self._dense_rows = 0
        self._sigma = self.sigmas[0]
        self._begin_step(0)
        self._judge_painting()

    def _fit(self, module: nn.Module, latent_shape: tuple[int, ...], backbones: tuple[Backbone, ...]) -> Backbone | None:
        wanted = self.config.schedule is not None or self.config.partition is not None or self.config.guidance is not None
        if not wanted:
            return None
        if len(latent_shape) not in (4, 5):
            expected = "[images, channels, height, width], or for videos [images, channels, frames, height, width], is expected"
            self._runs_without(f"The latent has {len(latent_shape)} dimensions where {expected}")
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
        if self._selects or self.config.schedule is None:
            self.note(f"{reason}; it runs dense.", NoteLevel.WARNING)
        else:
            self.note(f"{reason}; steps are held all the same, but there is no map of its tokens.")

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

    def _begin_step(self, step: int) -> None:
        self.step = step
        self.kind = self.plan[step] if self.plan else StepKind.ANCHOR
        self._rows = [0, 0]
        self._selected: Partition | None = None
        # One branch at full length and another held back would guide with two different pictures: after an obstacle, all run dense.
        self._blocked, self._obstructed = self._obstructed, False
        self._executed_dense = self._skipped = False
        self._seen: set[tuple[Hashable, int]] = set()
        self._in_batch: Counter[tuple[Hashable, int]] = Counter()
        self._looked_at: frozenset[int] = frozenset()
        self._evaluation_started = time.perf_counter()

    def begin_evaluation(self, sigma: float, step: int | None = None) -> None:
        """A model evaluation at noise level `sigma` begins; `step`: where the host knows to which step it belongs."""
        self._sigma = sigma
        self._begin_step(step_of_sigma(self.sigmas, sigma) if step is None else step)
        # What a sampler that evaluates a step more than once, or between steps, makes of a prediction is not known here.
        self._regular &= self.step not in self._evaluated and abs(self.sigmas[self.step] - sigma) <= 1e-4 * sigma
        self._evaluated.add(self.step)
        if self._backbone is not None and (self.kind is not StepKind.WARMUP or self.step == self._map_from):
            self._make_map()

    def held(self) -> Tensor | None:
        """The prediction of an evaluation for which nothing needs to run; None: run it."""
        ready = self._may_skip and not self._blocked and self._forecaster.ready
        if self.kind is not StepKind.HELD or not ready:
            return None
        self._rows[1] = self._dense_rows
        self._skipped = True
        return self._forecaster.skipped(self._sigma, self._weight)

    @property
    def _weight(self) -> float:
        return weight_of(self._sigma, self.sigmas[self.step + 1]) if self._regular else 0.0

    def begin_batch(self, conditional: frozenset[int]) -> None:
        """A batch of conditionings begins; `conditional`: indices of those that carry the prompt (not the negative)."""
        self._seen.update(self._in_batch)
        self._in_batch.clear()
        self._looked_at = conditional

    def end_batch(self, cond: Tensor | None, uncond: Tensor | None) -> None:
        """A batch of conditionings ended with these denoised predictions."""
        if self._collecting and cond is not None and uncond is not None and not self._seen:
            self._evidence.add_guidance(guidance_strength(cond, uncond, self._grid))

    def computed(self, prediction: Tensor, x: Tensor) -> Tensor:
        """What the sampler is to get for the guided prediction of an evaluation that ran at latent `x`, both `[images, C, H, W]`."""
        if not self._may_skip or (self._backbone is None and self._selects):
            return prediction
        partition = self._selected
        if self._policy is not None and self._backbone is not None:
            self._policy.observe((x - prediction) / self._sigma, None if partition is None else partition.sensitive, self._grid)
        if partition is None or self._backbone is None:
            return self._forecaster.refreshed(prediction, self._sigma, self._weight)
        fresh = partition.pixels(self._backbone.edge(self._module), tuple(prediction.shape[2:])).to(prediction.device)
        return self._forecaster.selected(prediction, self._sigma, self._weight, fresh)

    def end_evaluation(self) -> StepRecord:
        """The evaluation ended; returns what it was."""
        kind = self.kind
        if not kind.dense and not self._skipped and (self._executed_dense or self._rows[1] == 0):
            kind = StepKind.ANCHOR
        self._dense_rows = max(self._dense_rows, self._rows[1])
        spent = 1000.0 * (time.perf_counter() - self._evaluation_started)
        record = StepRecord(self.step, kind, self._rows[0], self._rows[1], spent)
        self.report.evaluations.append(record)
        self.report.cache_bytes = max(self.report.cache_bytes, self.cache.bytes + self.key_values.bytes)
        if self._backbone is not None and self._memory.predicted is None and self._may_skip and self._selects:
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

    def _new_forecaster(self) -> Forecaster:
        schedule = self.config.schedule or ScheduleConfig(refresh_interval=1)
        return Forecaster(schedule.forecast, schedule.settle)

    def begin_call(self, branches: Sequence[BranchCall], x: Tensor, obstacle: Obstacle | None) -> ModelCall | None:
        """What a model call on `x` `[len(branches) * images, C, H, W]` should do; None: run it as if the pack were not there."""
        self.ledger.begin_call()
        if self._backbone is None:
            return None
        self._device = x.device
        keys = tuple(self._branch_key(branch, x) for branch in branches)
        auxiliary = any((branch.identity, branch.index) in self._seen for branch in branches)
        obstacle = obstacle or self._shape_obstacle(branches, x)
        if obstacle is not None and self._selects:
            self._obstructed = True
            self.note(f"Dense, because {obstacle.reason}.", NoteLevel.WARNING)
        if auxiliary or (obstacle is not None and not obstacle.readable):
            self._executed_dense = True
            return None
        plan = self._call_plan(branches, keys) if obstacle is None else CallPlan(evidence_of=self._to_look_at(branches))
        self._executed_dense |= plan.partition is None
        tokens = self._grid[0] * self._grid[1]
        return ModelCall(self._module, self._backbone, plan, keys, tokens, self.cache, self.key_values, self._evidence)

    def _branch_key(self, branch: BranchCall, x: Tensor) -> Hashable:
        pair = (branch.identity, branch.index)
        self._in_batch[pair] += 1
        return (id(self._module), *pair, self._in_batch[pair], tuple(x.shape[1:]), x.dtype, x.device)

    def _shape_obstacle(self, branches: Sequence[BranchCall], x: Tensor) -> Obstacle | None:
        if tuple(x.shape[2:]) != self._spatial:
            return Obstacle("area conditioning crops the latent for some prompts")
        if x.shape[0] != len(branches) * self._images:
            return Obstacle(f"a model call holds {x.shape[0]} latents where {len(branches)} x {self._images} were expected")
        return None

    @property
    def selects(self) -> bool:
        """Whether steps are still to come that compute a part of the tokens."""
        return self._selects and self._selective_allowed and self._backbone is not None

    @property
    def lent_attention(self) -> str | None:
        """Python module whose attention function the host must replace for the length of a call."""
        return None if self._backbone is None else self._backbone.lent_attention

    def refusal(self, arguments: Mapping[str, object]) -> Obstacle | None:
        """Why a call with these model arguments must run dense; None if it need not."""
        refusals = self._backbone.refusals if self._backbone is not None else ()
        return next((Obstacle(reason) for name, reason in refusals if _given(arguments.get(name))), None)

    def follows(self, control: Mapping[str, Sequence[Tensor | None]]) -> bool:
        """Whether what a ControlNet adds, lists of `[B, tokens, C]` by place, can be cut down to the rows that are computed."""
        if self._backbone is None:
            return True
        tokens = self._grid[0] * self._grid[1]
        given = {place: [add for add in adds if add is not None] for place, adds in control.items()}
        known = all(place in self._backbone.controls for place, adds in given.items() if adds)
        return known and all(add.ndim == 3 and add.shape[1] == tokens for adds in given.values() for add in adds)

    def _call_plan(self, branches: Sequence[BranchCall], keys: tuple[Hashable, ...]) -> CallPlan:
        partition = self.report.partition
        ready = self._may_skip and not self._blocked and self.kind is StepKind.SELECTIVE
        if ready and partition is not None and self.cache.has(HEAD, keys):
            return CallPlan(partition=partition)
        known = None if self._partitioning.signal.moves or self.key_values.storage.whole else partition
        return CallPlan(capture=self._must_capture, known=known, evidence_of=self._to_look_at(branches))

    def _to_look_at(self, branches: Sequence[BranchCall]) -> tuple[int, ...]:
        return tuple(i for i, branch in enumerate(branches) if branch.index in self._looked_at) if self._collecting else ()

    @property
    def _may_skip(self) -> bool:
        return self._selective_allowed and any(not kind.dense for kind in self.plan)

    @property
    def _must_capture(self) -> bool:
        until_refreshed = itertools.takewhile(lambda kind: not kind.dense, self.plan[self.step + 1 :])
        return self._selective_allowed and StepKind.SELECTIVE in (self.kind, *until_refreshed)

    @property
    def _collecting(self) -> bool:
        # A map nobody reads is not worth its time.
        wanted = (self._may_skip and self._policy is None) or self.config.guidance is not None or self.config.schedule is None
        if self._backbone is None or self.kind is not StepKind.WARMUP or not wanted:
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
        self._rows[0] += call.rows_active
        self._rows[1] += call.rows_total
        self._executed_dense |= call.plan.partition is None
        if call.executed and call.plan.partition is None:
            self._memory.add(call.sizes)
        reason = self._unfit(call)
        if reason is not None and self._selects:
            self._give_up(reason)
        if call.executed and call.plan.partition is not None:
            self._selected = call.plan.partition
        if not call.executed and call.plan.capture:  # an outer cache answered instead of the model
            self.cache.drop(call.branches)

    def _give_up(self, reason: str) -> None:
        self._selective_allowed = False
        self._forget()
        self.note(f"Dense, because {reason}.", NoteLevel.WARNING)

    def _forget(self) -> None:
        self.cache.clear()
        self.key_values.clear()

    def out_of_memory(self, call: ModelCall) -> bool:
        """A call failed for want of memory: frees what is remembered and runs dense from here on. False: there was nothing to free."""
        if self.cache.bytes == 0 and not call.plan.capture:
            return False
        self._give_up("memory ran out; what was remembered between refreshes is freed")
        self._executed_dense = True
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
        partition = select_rows(sensitivity, config.keep_ratio, forced, barred)
        self.report.divide(sensitivity, partition)
        self._selective_allowed &= not partition.full

    def _make_map(self) -> None:
        if self._policy is not None:
            if self._policy.score is not None and self.kind is StepKind.SELECTIVE:
                self._divide(self._policy.score)
            return
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
        self.report.seconds = time.perf_counter() - self._started
        if self.ledger.mode is not MaskMode.OFF:
            self.report.masks = self.ledger.sentence()
        self._forget()
        self._evidence = Evidence()
        return self.report


def _given(value: object) -> bool:
    return value is not None and not (isinstance(value, (list, tuple)) and not value)
