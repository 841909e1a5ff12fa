"""One call of a `diffusers` pipeline: what stands before its transformer and its scheduler, and the run they serve.

The transformer is called by the pipeline, which also combines what its conds gave. So a skipped step hands it what they gave last, and
`step` puts the stand-in's prediction in place of what became of that: as in ComfyUI, it is the guided, denoised one that counts.
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...masks.ledger import MaskLedger, MaskMode
from ...masks.sdpa import attending
from ...presets import SafeConfig
from ...report import NoteLevel, RunReport
from ...run import Run
from .calls import Calls
from .coarse import Smaller, TimestepLaw, law_of, smaller
from .guidance import PROMPT, UNPAIRED, cond_pair, moved
from .latents import grid_of, latents_of, like
from .position import Position
from .schedulers import Prediction, prediction_of
from .standing import Standing, made_once
from .start import empty_report, start_run

log = logging.getLogger("safe_dit")

# Functions of a pipeline's module that give the same large table in every step, in skipped ones too: made on the CPU, 40 MB for
# Lumina-Next.
TABLES = ("get_2d_rotary_pos_embed_lumina",)
# More calls of a transformer than any pipeline makes for one step.
MAX_CALLS = 64
# What a pipeline may tell `step`, so that it makes something else of a prediction than the table of schedulers says.
OWN_WORDS = ("per_token_timesteps", "pred_original_sample")

AGAIN = "The pipeline sampled more than once in this call; the report is about the last time."
NOT_FINITE = "Some predictions of the model were not finite numbers; such pictures come out black or as noise."
NOT_STEPPED = "Computed in full, because the pipeline does not step its own scheduler."
NOT_READ = "Computed in full, because the pipeline gives its scheduler noise levels or predictions of its own."
NOT_KNOWN = "Computed in full, because the scheduler `{}`, as it is set, is not known to the engine."
NOT_CALLED = "The pipeline did not call its transformer."


class Invocation:
    """One call of a pipeline: its run, once the transformer is called for the first time."""

    def __init__(self, pipe: Any, config: SafeConfig) -> None:
        self._scheduler = pipe.scheduler
        self._position = Position(pipe.scheduler)
        self._pipeline_module = sys.modules[type(pipe).__module__]
        found = (getattr(pipe, name, None) for name in ("transformer", "transformer_2"))
        self._modules = [module for module in found if isinstance(module, nn.Module)]
        self._compiled = any(_is_compiled(part) for module in self._modules for part in module.modules())
        self._calls = Calls(self._compiled)
        self._config = config
        self._images: int | None = None
        self._run: Run | None = None
        self._ledger: MaskLedger | None = None
        self._note = ""
        self._grid: tuple[int, int] | None = None
        self._shape: tuple[int, ...] = ()
        self._stand_in: Tensor | None = None
        self._law: TimestepLaw | None = None
        self._smaller: Smaller | None = None
        self._evaluating = False
        self._finite: Tensor | None = None

    def makes(self, images: int) -> None:
        """The pipeline makes so many images."""
        self._images = images

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
        report = empty_report(self._note or (NOT_STEPPED if self._shape else NOT_CALLED))
        return report if self._ledger is None else report.with_masks(self._ledger)

    # The transformer

    def _forward_of(self, module: nn.Module) -> Callable[..., Any]:
        inner: nn.Module = getattr(module, "_orig_mod", module)
        names = list(inspect.signature(inner.forward).parameters)

        def forward(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            arguments = dict(zip(names, args, strict=False)) | kwargs
            if not self._evaluating and not self._begin_evaluation(inner, arguments):
                return self._unplanned(original, args, kwargs)
            if self._calls.count == MAX_CALLS:
                self._stop(NOT_STEPPED)
                return self._unplanned(original, args, kwargs)
            if self._stand_in is not None and self._calls.known():
                return self._calls.repeat()  # only its shape and type count: `step` has the prediction
            assert self._run is not None
            x = self._picture(latents_of(arguments))
            call, given = partial(original, *args), kwargs
            if self._smaller is not None:
                call, given = partial(self._smaller.call, original, arguments), {}
            return self._calls.run(self._run, inner, x, self._images, call, given, arguments)

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
        step, level = found
        self._calls.begin()
        self._evaluating = True
        run.use(module)
        evaluation = run.evaluate(level, device=latents_of(arguments).device, step=step)
        evaluation.begin_batch(frozenset({PROMPT}))
        self._stand_in = evaluation.skipped()
        self._smaller = smaller(evaluation, latents_of(arguments)[: run.latent.images], self._law)
        return True

    def _start(self, module: nn.Module, arguments: dict[str, Any]) -> bool:
        before, timetable = self._run, self._position.start()
        if timetable is None:
            self._ledger = None if self._config.masks is MaskMode.OFF else MaskLedger(self._config.masks, bracketed=True)
            self._stop(NOT_KNOWN.format(type(self._scheduler).__name__))
            return False
        self._calls.start(module)
        latents = latents_of(arguments)
        self._shape, self._grid = latents.shape[1:], grid_of(arguments)
        x = self._picture(latents)
        shape = (self._images or x.shape[0], *x.shape[1:])
        self._law = law_of(self._scheduler, module, arguments, timetable.evaluations[0])
        self._run = start_run(self._config, self._scheduler, module, timetable.steps, shape, x.device, self._law is not None)
        if before is not None:
            before.close()
            self._run.note(AGAIN)
        return True

    def _stop(self, sentence: str) -> None:
        """Run the rest of the call in full."""
        self._note, self._evaluating = sentence, False
        self._calls.forget()
        if self._run is not None:
            self._run.note(sentence, NoteLevel.WARNING)
        else:
            log.info("SAFE-DiT: %s", sentence)

    def _picture(self, x: Tensor) -> Tensor:
        """A latent as `[B, C, H, W]` or a video's `[B, C, frames, H, W]`, where it may be packed: `[B, tokens and others, C]`."""
        if x.ndim != 3 or self._grid is None:
            return x
        return x[:, : self._grid[0] * self._grid[1]].transpose(1, 2).unflatten(2, self._grid)

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
        run = self._run
        assert run is not None
        prediction = prediction_of(self._scheduler, run.evaluation.sigma)
        assert prediction is not None
        if not run.report.evaluations and self._calls.of_prompt_alone:
            run.skipping.unguided()
        # A model that predicts its variance, too, puts it behind.
        mean, *variance = model_output.split(sample.shape[1], dim=1)
        if self._stand_in is None:
            finite = torch.isfinite(mean).all()
            self._finite = finite if self._finite is None else self._finite & finite
            mean = self._reweighted(run, mean)
        found = self._given(run, prediction, mean, sample)
        run.evaluation.end()
        mean = mean if found is None else prediction.output(found, sample).to(model_output.dtype)
        return torch.cat([mean, *variance], dim=1) if variance else mean

    def _reweighted(self, run: Run, guided: Tensor) -> Tensor:
        """A guided prediction with the scales of the map; the run is shown what the conds gave."""
        pair = cond_pair(self._calls.outputs, self._calls.roles, guided.shape)
        if pair is None:
            if self._config.guidance is not None:
                run.note(UNPAIRED)
            return guided
        # Of what is denoised it is a multiple, and the map is relative.
        run.evaluation.end_batch(*(self._picture(output) for output in pair))
        scales = run.guidance_scales()
        return guided if scales is None else moved(guided, *pair, like(guided, scales))

    def _given(self, run: Run, prediction: Prediction, model_output: Tensor, sample: Tensor) -> Tensor | None:
        """The denoised prediction that is to count; None: the one that was computed."""
        given = self._stand_in
        if given is None:
            judge = prediction if self._smaller is None else self._smaller
            computed = self._picture(judge.denoised(model_output, sample))
            given = run.evaluation.computed(computed)
            if given is computed:
                return None
        return like(sample, given)


def _is_compiled(module: nn.Module) -> bool:
    return module._compiled_call_impl is not None or hasattr(module, "_orig_mod")
