"""One sampling run: wires plan, tokens, caches and report together and owns their lifetimes.

A host makes a `Run` when sampling starts, asks it to `evaluate` at every noise level, and closes it in `finally`. Nothing here survives
`close` but the report.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor, nn

from .backbones import BACKBONES, Backbone, Fit, find_backbone
from .evaluation import Evaluation
from .guidance import scale_map, to_pixels
from .latent import LatentShape
from .masks.ledger import MaskLedger, MaskMode
from .presets import SafeConfig
from .report import NoteLevel, RunReport, StepRecord
from .selective.memory import Memory
from .selective.model_call import ModelCall
from .selective.partial_steps import PartialSteps
from .steps.budget import plan_run, what_is_missed
from .steps.clock import StepClock
from .steps.coarse import Parts, why_not
from .steps.levels import flow_parts, flow_progress
from .steps.plan import ScheduleConfig, StepKind, why_full
from .steps.samplers import EULER, Sampler
from .steps.skipping import STEPS_AFTER_CHANGE, Skipping
from .tokens.grid import TokenGrid
from .tokens.painting import kept_tokens
from .tokens.partition import PartitionConfig
from .tokens.token_map import TokenMap

log = logging.getLogger("safe_dit")

NO_GRID = "The latent is neither a picture nor a video (it is sound, or several latents packed into one)"
IS_NAN = "The model predicted NaN, which is no number, in at least one step: the picture cannot be right."


class Run:
    """State of one sampling run over a latent `[images, C, H, W]`, or a video's `[images, C, frames, H, W]`.

    `sigmas`: noise levels, the last one the end of the run. `window`: half-open range of steps that need not be computed in full.
    `backbones`: the host's table of model families. `progress`: how far the run has come at each level (steps/levels.py; default: as in a
    flow-matching model). `sampler`: what it makes of a prediction (default: Euler's method). `parts`: see coarse.py; None: the host cannot
    run a smaller latent. `in_full`: why every step is to be computed, as the end of a sentence; empty where the host knows nothing of it.
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
        parts: Parts | None = flow_parts,
        in_full: str = "",
    ) -> None:
        self.config, self.sigmas, self.module = config, tuple(sigmas), module
        self.ledger = MaskLedger(config.masks, bracketed=True)
        self._started = time.perf_counter()
        self.latent = LatentShape(latent_shape[0], latent_shape[2:])
        asked, partitioning = config.schedule or ScheduleConfig(refresh_interval=1), config.partition or PartitionConfig()
        progress = tuple(progress) if progress is not None else flow_progress(self.sigmas)
        schedule, window = sampler.limit(asked), (0, 0) if in_full or sampler.full else window
        fit = _fit_of(config, module, latent_shape, backbones)
        self.backbone, self.parts = fit.backbone, parts
        no_coarse = why_not(self.latent.spatial, progress[0], parts, 1 if fit.backbone is None else fit.backbone.smallest)
        self.plan = plan_run(progress, partitioning.warmup_steps, schedule, sampler, window, no_coarse is None)
        seen = None if config.masks is MaskMode.OFF else self.ledger
        self.report = RunReport(len(self.plan), "", progress, window, sampler, no_coarse is None, ledger=seen)
        self.clock = StepClock(self.sigmas)
        self.skipping = Skipping(self.sigmas, progress, schedule, sampler, self.explain)
        if fit.reason and (consequence := _without_backbone(self.plan, config)) is not None:
            self.note(f"{fit.reason}; {consequence}.", NoteLevel.WARNING)
        self.tokens = None if self.backbone is None else _token_map(self, self.backbone, partitioning)
        self.report.backbone = self.backbone.name if self.backbone is not None else ""
        # Steps computed in full or not at all ask nothing of the model: neither its family nor what else works on it matters to them.
        self.partial = PartialSteps(schedule.cache, memory) if self.backbone is not None and StepKind.SELECTIVE in self.plan else None
        self._keeps_less = self._may_select = partitioning.keep_ratio < 1.0
        self._nan: Tensor | None = None
        self.evaluation = Evaluation(self, 0, self.sigmas[0])
        if _asks_to_leave_out(config, self._keeps_less):
            why = in_full or why_full(progress, sampler.why_full(asked, progress), asked.spaced)
            for sentence in what_is_missed(self.plan, asked, why, no_coarse):
                self.note(sentence)
        if self.tokens is not None:
            self.tokens.explain_painting(used=self.partial is not None and self.may_leave_out)

    def note(self, sentence: str, level: NoteLevel = NoteLevel.INFO) -> None:
        """Put a sentence in the report and, the first time, in the log."""
        if self.report.note(sentence, level):
            log.info("SAFE-DiT: %s", sentence)

    def explain_full(self, reason: str) -> None:
        """Say why selective steps are computed in full; `reason`: the end of a sentence."""
        what = "Selective steps run in full" if StepKind.SKIPPED in self.plan else "Computed in full"
        self.note(f"{what}, because {reason}.", NoteLevel.WARNING)

    def explain(self, sentence: str, warning: bool) -> None:
        """Put a sentence in the report; `warning`: something else was done than what was asked for."""
        self.note(sentence, NoteLevel.WARNING if warning else NoteLevel.INFO)

    @property
    def may_leave_out(self) -> bool:
        """Whether the plan has steps that are not computed in full."""
        return self._keeps_less and any(not kind.full for kind in self.plan)

    @property
    def selects(self) -> bool:
        """Whether steps are still to come that compute a part of the tokens."""
        return self.partial is not None and self._may_select

    @property
    def reads_map(self) -> bool:
        """Whether somebody reads the map of the tokens; else it is not worth its time."""
        return self.selects or self.config.guidance is not None or self.config.schedule is None

    @property
    def edge(self) -> int:
        """Edge of a token in latent pixels."""
        assert self.backbone is not None
        return self.backbone.edge(self.module)

    def compute_all(self, reason: str) -> None:
        """Leave out nothing from the next evaluation on; `reason`: the end of a sentence."""
        if not all(kind.full for kind in self.plan):
            self.plan = tuple(kind if kind.full else StepKind.REFRESH for kind in self.plan)
            self.note(f"Every step is computed, so nothing is saved: {reason}.", NoteLevel.WARNING)

    def evaluate(
        self, sigma: float, conditionings: Hashable = None, device: torch.device | None = None, step: int | None = None
    ) -> Evaluation:
        """A model evaluation at noise level `sigma`.

        `conditionings`: stands for those in force at that level. `device`: of its latent, None where nothing is queued. `step`: where the
        host knows to which one it belongs.
        """
        before = self.evaluation
        step = self.clock.at(sigma) if step is None else self.clock.set(step)
        changing = self.skipping.arrive(before.step, step, conditionings)
        self.evaluation = Evaluation(self, step, sigma, before.fell_back, changing, device)
        kind = self.evaluation.kind
        if changing and not kind.full:
            self.note(f"The conditionings change during the run; the {STEPS_AFTER_CHANGE} steps from there run in full.")
        if self.tokens is not None and self.tokens.may_be_made(step, kind is StepKind.WARMUP):
            self._make_map(self.tokens)
        return self.evaluation

    def finish(self, record: StepRecord, device: torch.device | None) -> None:
        """An evaluation is over."""
        self.report.evaluations.append(record)
        if self.partial is None:
            return
        kept = self.partial.bytes
        if self.selects and self.tokens is not None and device is not None:
            self.partial.plan_memory(kept_tokens(self.tokens.grid.tokens, self.tokens.config.keep_ratio, 0, 0), device)
        self.report.remember(kept, self.partial.predicted_bytes, self.partial.storage)

    def watch(self, prediction: Tensor) -> None:
        """Notice a prediction that is no number; the device is not asked before the run is over."""
        found = prediction.isnan().any()
        self._nan = found if self._nan is None else self._nan | found

    def use(self, module: nn.Module) -> None:
        """The calls to come are of this model, another of the same family: a pipeline may hand over to a second one on the way."""
        if module is self.module:
            return
        self.module = module
        self.skipping.start_over()  # nothing is carried over: the first evaluation of the new model is computed
        if self.partial is not None:
            self.partial.clear()

    def runs(self, module: nn.Module) -> bool:
        """Whether calls of `module` are of this run's model; where no model is known, it makes no difference."""
        return self.backbone is None or module is self.module

    def learn(self, call: ModelCall) -> None:
        """A call ran: it shows what there is to remember, and whether calls can compute a part of the rows at all."""
        partial = self.partial
        if partial is None:
            return
        if call.executed and call.plan.partition is None:
            partial.learn(call)
        if call.unfit is not None:
            self._give_up(partial, call.unfit)
        if not call.executed and call.plan.capture:  # an outer cache answered instead of the model
            partial.forget(call.conds)

    def _give_up(self, partial: PartialSteps, reason: str) -> None:
        self._may_select = False
        partial.clear()
        self.explain_full(reason)

    def free_memory(self, call: ModelCall | None) -> bool:
        """A call failed for want of memory: free what is remembered, of caches and of evidence. False: there was nothing."""
        partial, captures = self.partial, call is not None and call.plan.capture
        remembers = partial is not None and (partial.cache.bytes > 0 or captures)
        if not remembers and not (call is not None and call.plan.evidence_of):
            return False
        if partial is None:
            self.note("Memory ran out while the map of the tokens was made, so there is none.", NoteLevel.WARNING)
        elif remembers:
            self._give_up(partial, "memory ran out; what was remembered between refreshes is freed")
        else:
            self._give_up(partial, "memory ran out while the map of its tokens was made")
        if self.tokens is not None:
            self.tokens.give_up()
        return True

    def _make_map(self, tokens: TokenMap) -> None:
        if tokens.make() and tokens.sensitivity is not None and tokens.partition is not None:
            self.report.divide(tokens.sensitivity, tokens.partition)
            if tokens.partition.full and self.selects:
                self._may_select = False
                self.explain_full(tokens.why_all())

    def guidance_scales(self) -> Tensor | None:
        """Guidance scale of every latent pixel `[images, 1, H, W]`; None until there is a map."""
        if self.config.guidance is None or self.tokens is None or self.tokens.sensitivity is None:
            return None
        self.report.guided = True
        return scale_map(self.config.guidance, to_pixels(self.tokens.sensitivity, self.tokens.grid, self.edge, self.latent.spatial))

    def close(self) -> RunReport:
        """Free everything but the report and return it."""
        if self.tokens is not None:
            self._make_map(self.tokens)
            self.tokens.give_up()
        if self._nan is not None and self._nan:
            self.note(IS_NAN, NoteLevel.WARNING)
        if self.partial is not None:
            self.partial.clear()
        self.report.finish(time.perf_counter() - self._started)
        return self.report


def _token_map(run: Run, backbone: Backbone, config: PartitionConfig) -> TokenMap:
    """The map, made after the steps at the start that are warm-up, or coarse before them; one full step at least shows where the prompt
    acts."""
    warmup = sum(1 for _ in itertools.takewhile(lambda kind: kind in (StepKind.WARMUP, StepKind.COARSE), run.plan))
    early = StepKind.SELECTIVE in run.plan and run.plan.count(StepKind.WARMUP) > 1
    return TokenMap(config, TokenGrid.of_latent(run.latent.spatial, run.edge), warmup, early, backbone.shared_rows, run.explain)


def _fit_of(config: SafeConfig, module: nn.Module, latent_shape: tuple[int, ...], backbones: tuple[Backbone, ...]) -> Fit:
    """The backbone of the model; none, and no reason, where nothing was asked for that needs one."""
    if config.schedule is None and config.partition is None and config.guidance is None:
        return Fit(None)
    return find_backbone(module, backbones) if len(latent_shape) in (4, 5) else Fit(None, NO_GRID)


def _without_backbone(plan: Sequence[StepKind], config: SafeConfig) -> str | None:
    """What it means that the model's tokens are not known, as the end of a sentence; None: nothing that was asked for."""
    if StepKind.SELECTIVE in plan and StepKind.SKIPPED in plan:
        return "its selective steps run in full"
    if StepKind.SELECTIVE in plan or config.schedule is None:
        return "it runs in full"
    return None if config.guidance is None else "there is no map of its tokens, so guidance is not weighted by it"


def _asks_to_leave_out(config: SafeConfig, keeps_less: bool) -> bool:
    schedule = config.schedule
    if schedule is None:
        return False
    if schedule.speedup > 1.0 or schedule.coarse_steps > 0:
        return True
    return schedule.refresh_interval > 1 and (schedule.skipped_steps > 0 or keeps_less)
