"""One call of a `diffusers` pipeline: what stands before its transformer and its scheduler, and the run they serve.

The transformer is called by the pipeline, which also combines the conds. So a held step hands it what the conds gave last, and
`step` puts the held prediction in place of what became of that: as in ComfyUI, it is the guided, denoised one that is held.
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...backbones.diffusers import DIFFUSERS
from ...masks.certify import MaskLedger, MaskMode
from ...masks.sdpa import attending
from ...report import NoteLevel, RunReport
from ...run import FROZEN, UNCOMPILED, CondCall, Fallback, Run, SafeConfig, leaves_graphs
from ...selective.memory import MEMORY_ERRORS, Memory, is_out_of_memory
from ...selective.model_call import ModelCall
from ...steps.levels import flow_progress, plain_progress
from .guidance import NEGATIVE, PROMPT, UNPAIRED, cond_pair, moved
from .latents import grid_of, latents_of, like
from .position import Position
from .schedulers import Noise, Prediction, known_of, prediction_of, suited
from .standing import Standing, made_once

log = logging.getLogger("safe_dit")

# Functions of a pipeline's module that give the same large table in every step, in held ones too: made on the CPU, 40 MB for Lumina-Next.
TABLES = ("get_2d_rotary_pos_embed_lumina",)
# Pipelines that put the prompt before the negative one, where both run in one batch; the others do the reverse.
PROMPT_FIRST = frozenset({"LuminaNextDiT2DModel", "ZImageTransformer2DModel"})
# More calls of a transformer than any pipeline makes for one step.
MAX_CALLS = 64
# What a pipeline may tell `step`, so that it makes something else of a prediction than the table of schedulers says.
OWN_WORDS = ("per_token_timesteps", "pred_original_sample")

AGAIN = "The pipeline sampled more than once in this call; the report is about the last time."
NOT_FINITE = "Some predictions of the model were not finite numbers; such pictures come out black or as noise."
NOT_LEFT_OUT = "Dense, because with the scheduler `{}` fewer steps come closer to the full run than steps that are left out."
NOT_STEPPED = "Dense, because the pipeline does not step its own scheduler."
NOT_READ = "Dense, because the pipeline gives its scheduler noise levels or predictions of its own."


def empty_report(sentence: str) -> RunReport:
    """The report of a call of which there is nothing to say but this."""
    report = RunReport(total_steps=0)
    report.note(sentence, NoteLevel.WARNING)
    return report


class Invocation:
    """One call of a pipeline: its run, once the transformer is called for the first time."""

    def __init__(self, pipe: Any, config: SafeConfig) -> None:
        self.images: int | None = None
        self._scheduler = pipe.scheduler
        self._position = Position(pipe.scheduler)
        self._pipeline_module = sys.modules[type(pipe).__module__]
        found = (getattr(pipe, name, None) for name in ("transformer", "transformer_2"))
        self._modules = [module for module in found if isinstance(module, nn.Module)]
        self._config = config
        self._run: Run | None = None
        self._ledger: MaskLedger | None = None
        self._note = ""
        self._grid: tuple[int, int] | None = None
        self._shape: tuple[int, ...] = ()
        self._level = 0.0
        self._calls = 0
        # Numbers of calls that were seen to attend without masks.
        self._unmasked: set[int] = set()
        self._outputs: list[Any] = []
        self._roles: list[list[int]] = []
        self._held: Tensor | None = None
        self._evaluating = False
        self._attends_apart = False
        self._finite: Tensor | None = None
        self._compiled = any(_is_compiled(part) for module in self._modules for part in module.modules())

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Stand before the transformer and the scheduler, and go whatever happens."""
        wrapped: list[Standing] = []
        try:
            for module in self._modules:
                # A compiled module is called there, and what stands in its `forward` is compiled with it.
                name = "forward" if module._compiled_call_impl is None else "_compiled_call_impl"
                wrapped.append(Standing(module, name, self._forward_of(module)))
            wrapped.append(Standing(self._scheduler, "step", self._step))
            tables = [name for name in TABLES if name in vars(self._pipeline_module)]
            wrapped += [Standing(self._pipeline_module, name, made_once()) for name in tables]
            yield
        finally:
            for standing in wrapped:
                standing.give_back()

    def close(self) -> RunReport:
        """End the run; its report."""
        if self._run is not None:
            if not self._run.report.evaluations and not self._note:
                self._run.note(NOT_STEPPED, NoteLevel.WARNING)
            if self._finite is not None and not bool(self._finite):
                self._run.note(NOT_FINITE, NoteLevel.WARNING)
            return self._run.close()
        silent = NOT_STEPPED if self._shape else "The pipeline did not call its transformer."
        report = empty_report(self._note or silent)
        if self._ledger is not None:
            report.ledger, report.masks = self._ledger, self._ledger.sentence()
        return report

    # The transformer

    def _forward_of(self, module: nn.Module) -> Callable[..., Any]:
        inner: nn.Module = getattr(module, "_orig_mod", module)
        names = list(inspect.signature(inner.forward).parameters)

        def forward(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            arguments = dict(zip(names, args, strict=False)) | kwargs
            if not self._evaluating and not self._begin_evaluation(inner, arguments):
                return self._unplanned(original, args, kwargs)
            return self._called(inner, original, args, kwargs, arguments)

        return forward

    def _unplanned(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call of which nothing is known but its masks."""
        if self._ledger is None or self._compiled:
            return original(*args, **kwargs)
        self._ledger.begin_call()
        with attending(self._ledger, None):
            return original(*args, **kwargs)

    def _begin_evaluation(self, module: nn.Module, arguments: dict[str, Any]) -> bool:
        """The first call of the transformer in a step; False: no run can be made."""
        another = self._run is None or self._position.is_new or latents_of(arguments).shape[1:] != self._shape
        if self._note or (another and not self._start(module, arguments)):
            return False
        found, run = self._position.begin(), self._run
        if found is None or run is None:
            return False
        step, self._level = found
        self._calls, self._evaluating = 0, True
        run.use(module)
        run.begin_evaluation(self._level, device=latents_of(arguments).device, step=step)
        run.begin_batch(frozenset({PROMPT}))
        self._held = run.skipped()
        return True

    def _start(self, module: nn.Module, arguments: dict[str, Any]) -> bool:
        before, timetable = self._run, self._position.start()
        if timetable is None:
            self._ledger = None if self._config.masks is MaskMode.OFF else MaskLedger(self._config.masks, bracketed=True)
            self._stop(f"Dense, because the scheduler `{type(self._scheduler).__name__}`, as it is set, is not known to the engine.")
            return False
        processors = getattr(module, "attn_processors", {}).values()
        self._attends_apart = any(type(processor).__name__.startswith("PAG") for processor in processors)
        latents = latents_of(arguments)
        self._shape, self._grid, self._outputs = latents.shape[1:], grid_of(arguments), []
        x = self._picture(latents)
        shape, window = (self.images or x.shape[0], *x.shape[1:]), self._window(len(timetable.steps) - 1)
        progress = self._progress(timetable.steps)
        self._run = Run(self._suited(), module, timetable.steps, shape, window, _memory_of(x.device), DIFFUSERS, progress)
        if before is not None:
            before.close()
            self._run.note(AGAIN)
        asked, run = self._config.schedule, self._run.config.schedule
        if asked is not None and run is not None and run.refresh_interval < asked.refresh_interval:
            self._run.note(NOT_LEFT_OUT.format(type(self._scheduler).__name__))
        return True

    def _progress(self, levels: Sequence[float]) -> tuple[float, ...]:
        known = known_of(self._scheduler)
        flows = known is not None and (known.noise is Noise.FLOW or bool(self._scheduler.config.get("use_flow_sigmas")))
        return flow_progress(levels) if flows else plain_progress(levels)

    def _suited(self) -> SafeConfig:
        """What was asked for, as far as the scheduler bears it."""
        schedule, known = self._config.schedule, known_of(self._scheduler)
        return self._config if schedule is None or known is None else replace(self._config, schedule=suited(schedule, known))

    def _window(self, steps: int) -> tuple[int, int]:
        schedule = self._config.schedule
        return (0, steps) if schedule is None else (round(schedule.start_percent * steps), round(schedule.end_percent * steps))

    def _stop(self, sentence: str) -> None:
        """Run the rest of the call in full."""
        self._note, self._evaluating, self._outputs = sentence, False, []
        if self._run is not None:
            self._run.note(sentence, NoteLevel.WARNING)
        else:
            log.info("SAFE-DiT: %s", sentence)

    def _picture(self, x: Tensor) -> Tensor:
        """A latent as `[B, C, H, W]` or a video's `[B, C, frames, H, W]`, where it may be packed: `[B, tokens and others, C]`."""
        if x.ndim != 3 or self._grid is None:
            return x
        return x[:, : self._grid[0] * self._grid[1]].transpose(1, 2).unflatten(2, self._grid)

    def _called(
        self, module: nn.Module, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], arguments: dict[str, Any]
    ) -> Any:
        number, self._calls = self._calls, self._calls + 1
        if number == MAX_CALLS:
            self._stop(NOT_STEPPED)
            return self._unplanned(original, args, kwargs)
        if self._held is not None and number < len(self._outputs):
            return self._outputs[number]  # only its shape and type count: `step` has the prediction
        output = self._computed(module, original, args, kwargs, arguments, number)
        self._outputs[number:] = [output]
        return output

    def _computed(
        self,
        module: nn.Module,
        original: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        arguments: dict[str, Any],
        number: int,
    ) -> Any:
        run = self._run
        assert run is not None
        x = self._picture(latents_of(arguments))
        conds = self._conds_of(module, x.shape[0], number)
        self._roles[number:] = [[cond.index for cond in conds]]
        run.use(module)
        call = run.begin_call(conds, x, self._fallback(run, module, arguments))
        try:
            return self._run_call(run, call, number, original, args, kwargs)
        except MEMORY_ERRORS as error:
            if not is_out_of_memory(error) or not run.out_of_memory(call):
                raise
        # Outside of the handler: an exception being handled holds the failed call's tensors.
        return self._run_call(run, None, number, original, args, kwargs)

    def _conds_of(self, module: nn.Module, batch: int, number: int) -> list[CondCall]:
        count = max(1, batch // (self.images or batch))
        if count == 1:
            return [CondCall(number, min(number, NEGATIVE))]
        order = range(count) if type(module).__name__ in PROMPT_FIRST else range(count - 1, -1, -1)
        return [CondCall(number, index) for index in order]

    def _fallback(self, run: Run, module: nn.Module, arguments: dict[str, Any]) -> Fallback | None:
        found = self._in_the_way(run, module, arguments)
        # Hooks cannot reach into a compiled graph: calls with hooks do without it, so there are none where nothing is left out.
        if not self._compiled or (found is None and run.selects and leaves_graphs()):
            return found
        return Fallback(FROZEN) if found is None else replace(found, readable=False)

    def _in_the_way(self, run: Run, module: nn.Module, arguments: dict[str, Any]) -> Fallback | None:
        if self._attends_apart:
            return Fallback("perturbed-attention guidance attends to a part of the batch at a time")
        if getattr(module, "is_cache_enabled", False):
            return Fallback("a cache of diffusers' own works on the transformer's blocks")
        partition = run.report.partition
        if partition is not None and partition.kept == 1:
            return Fallback("a single token is to be computed, and attention may be scaled by their number")
        timestep = arguments.get("timestep")
        if isinstance(timestep, Tensor) and timestep.ndim > 1:
            return Fallback("the noise level differs from row to row")
        return run.refusal(arguments)

    def _run_call(
        self, run: Run, call: ModelCall | None, number: int, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        masks, seen = run.ledger.mode is not MaskMode.OFF and number not in self._unmasked, (run.ledger.calls, run.ledger.masked)
        with ExitStack() as around:
            if call is not None and self._compiled:
                around.enter_context(torch.compiler.set_stance("force_eager"))
                run.note(UNCOMPILED)
            # Compiled code keeps the attention it was traced with; it is told of masks by `certified_masks`.
            if call is not None or (masks and not self._compiled):
                around.enter_context(attending(run.ledger, call))
            if call is not None:
                around.enter_context(call.hooks())
            output = original(*args, **(kwargs if call is None else call.with_length_base(kwargs)))
        if call is not None:
            run.end_call(call)
        if run.ledger.mode is MaskMode.ELIDE and run.ledger.calls > seen[0] and run.ledger.masked == seen[1]:
            self._unmasked.add(number)
        return output

    # The scheduler

    def _step(self, original: Callable[..., Any], model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self._evaluating and (kwargs.get("s_churn") or any(kwargs.get(name) is not None for name in OWN_WORDS)):
            self._stop(NOT_READ)
        if self._evaluating:
            self._evaluating = False
            # Where a pipeline begins in the middle without telling, the run begins with the next evaluation.
            if self._position.is_at(timestep):
                model_output = self._guided(model_output, sample)
            else:
                self._run = None
        self._position.moved()
        return original(model_output, timestep, sample, *args, **kwargs)

    def _guided(self, model_output: Tensor, sample: Tensor) -> Tensor:
        """What the scheduler is to get for a step's prediction."""
        run, prediction = self._run, prediction_of(self._scheduler, self._level)
        assert run is not None and prediction is not None
        # A model that predicts its variance, too, puts it behind.
        mean, *variance = model_output.split(sample.shape[1], dim=1)
        if self._held is None:
            finite = torch.isfinite(mean).all()
            self._finite = finite if self._finite is None else self._finite & finite
            mean = self._reweighted(run, mean)
        found = self._settled(run, prediction, mean, sample)
        run.end_evaluation()
        mean = mean if found is None else prediction.output(found, sample).to(model_output.dtype)
        return torch.cat([mean, *variance], dim=1) if variance else mean

    def _reweighted(self, run: Run, guided: Tensor) -> Tensor:
        """A guided prediction with the scales of the map; the run is shown what the conds gave."""
        pair = cond_pair(self._outputs, self._roles, guided.shape)
        if pair is None:
            if self._config.guidance is not None:
                run.note(UNPAIRED)
            return guided
        # Of what is denoised it is a multiple, and the map is relative.
        run.end_batch(*(self._picture(output) for output in pair))
        scales = run.guidance_scales()
        return guided if scales is None else moved(guided, *pair, like(guided, scales))

    def _settled(self, run: Run, prediction: Prediction, model_output: Tensor, sample: Tensor) -> Tensor | None:
        """The denoised prediction that is to count; None: the one that was computed."""
        given = self._held
        if given is None:
            computed = self._picture(prediction.denoised(model_output, sample))
            given = run.computed(computed, self._picture(sample.float()))
            if given is computed:
                return None
        return like(sample, given)


def _is_compiled(module: nn.Module) -> bool:
    return module._compiled_call_impl is not None or hasattr(module, "_orig_mod")


def _memory_of(device: torch.device) -> Memory | None:
    """What is free on a GPU, what torch keeps for itself counted in."""
    if device.type != "cuda":
        return None

    def free(device: torch.device) -> int:
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept

    return Memory(free, lambda size, device: torch.cuda.empty_cache())
