"""One call of a `diffusers` pipeline: what stands before its transformer and its scheduler, and the run they serve.

The transformer is called by the pipeline, which also combines the branches. So a held step hands it what the branches gave last, and
`step` puts the held prediction in place of what became of that: as in ComfyUI, it is the guided, denoised one that is held.
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from ..attention import attending
from ..backbones.diffusers import DIFFUSERS
from ..execution import ModelCall
from ..masks import MaskLedger, MaskMode
from ..memory import MEMORY_ERRORS, Memory, is_out_of_memory
from ..report import NoteLevel, RunReport
from ..run import FROZEN, UNCOMPILED, BranchCall, Obstacle, Run, SafeConfig, leaves_graphs
from .diffusers_guidance import NEGATIVE, PROMPT, UNPAIRED, branch_pair, moved
from .diffusers_latents import grid_of, latents_of, like
from .diffusers_schedulers import Prediction, prediction_of

log = logging.getLogger("safe_dit")

# Functions of a pipeline's module that give the same large table in every step, in held ones too: made on the CPU, 40 MB for Lumina-Next.
TABLES = ("get_2d_rotary_pos_embed_lumina",)
# Pipelines that put the prompt before the negative one, where both run in one batch; the others do the reverse.
PROMPT_FIRST = frozenset({"LuminaNextDiT2DModel", "ZImageTransformer2DModel"})


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
        self._pipeline_module = sys.modules[type(pipe).__module__]
        found = (getattr(pipe, name, None) for name in ("transformer", "transformer_2"))
        self._modules = [module for module in found if isinstance(module, nn.Module)]
        self._config = config
        self._run: Run | None = None
        self._ledger: MaskLedger | None = None
        self._note = ""
        self._grid: tuple[int, int] | None = None
        self._begin = 0
        self._calls = 0
        # Numbers of calls that were seen to attend without masks.
        self._unmasked: set[int] = set()
        self._outputs: list[Any] = []
        self._roles: list[list[int]] = []
        self._held: Tensor | None = None
        self._evaluating = False
        self._compiled = any(_is_compiled(part) for module in self._modules for part in module.modules())

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Stand before the transformer and the scheduler, and go whatever happens."""
        wrapped: list[tuple[Any, str, Any, Any]] = []
        try:
            for module in self._modules:
                # A compiled module is called there, and what stands in its `forward` is compiled with it.
                name = "forward" if module._compiled_call_impl is None else "_compiled_call_impl"
                wrapped.append(_stand_before(module, name, self._forward_of(module)))
            wrapped.append(_stand_before(self._scheduler, "step", self._step))
            tables = [name for name in TABLES if name in vars(self._pipeline_module)]
            wrapped += [_stand_before(self._pipeline_module, name, _made_once()) for name in tables]
            yield
        finally:
            for owner, name, wrapper, before in wrapped:
                _give_back(owner, name, wrapper, before)

    def close(self) -> RunReport:
        """End the run; its report."""
        if self._run is not None:
            return self._run.close()
        report = empty_report(self._note or "The pipeline did not call its transformer.")
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
        if self._note or (self._run is None and not self._start(module, arguments)):
            return False
        assert self._run is not None
        reached = self._scheduler.step_index
        self._index = 0 if reached is None else reached - self._begin
        if not 0 <= self._index < len(self._run.sigmas) - 1:
            return False
        self._calls, self._evaluating = 0, True
        self._run.begin_evaluation(self._run.sigmas[self._index], latents_of(arguments).device)
        self._run.begin_batch(frozenset({PROMPT}))
        self._held = self._run.held()
        return True

    def _start(self, module: nn.Module, arguments: dict[str, Any]) -> bool:
        scheduler = self._scheduler
        levels = [float(level) for level in getattr(scheduler, "sigmas", ())]
        falling = len(levels) == len(scheduler.timesteps) + 1 and all(a > b for a, b in zip(levels, levels[1:], strict=False))
        if prediction_of(scheduler, 1.0) is None or not falling:
            self._ledger = None if self._config.masks is MaskMode.OFF else MaskLedger(self._config.masks, bracketed=True)
            self._give_up(f"Dense, because the scheduler `{type(scheduler).__name__}`, as it is set, is not known to the engine.")
            return False
        self._begin = scheduler.begin_index or 0
        self._grid = grid_of(arguments)
        x = self._picture(latents_of(arguments))
        shape = (self.images or x.shape[0], *x.shape[1:])
        levels = levels[self._begin :]
        self._run = Run(self._config, module, levels, shape, self._window(len(levels) - 1), _memory_of(x.device), DIFFUSERS)
        return True

    def _window(self, steps: int) -> tuple[int, int]:
        schedule = self._config.schedule
        return (0, steps) if schedule is None else (round(schedule.start_percent * steps), round(schedule.end_percent * steps))

    def _give_up(self, sentence: str) -> None:
        self._note = sentence
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
        branches = self._branches(module, x.shape[0], number)
        self._roles[number:] = [[branch.index for branch in branches]]
        run.use(module)
        call = run.begin_call(branches, x, self._obstacle(run, module, arguments))
        try:
            return self._run_call(run, call, number, original, args, kwargs)
        except MEMORY_ERRORS as error:
            if not is_out_of_memory(error) or not run.out_of_memory(call):
                raise
        # Outside of the handler: an exception being handled holds the failed call's tensors.
        return self._run_call(run, None, number, original, args, kwargs)

    def _branches(self, module: nn.Module, batch: int, number: int) -> list[BranchCall]:
        count = max(1, batch // (self.images or batch))
        if count == 1:
            return [BranchCall(number, min(number, NEGATIVE))]
        order = range(count) if type(module).__name__ in PROMPT_FIRST else range(count - 1, -1, -1)
        return [BranchCall(number, index) for index in order]

    def _obstacle(self, run: Run, module: nn.Module, arguments: dict[str, Any]) -> Obstacle | None:
        found = self._in_the_way(run, module, arguments)
        # Hooks cannot reach into a compiled graph: calls with hooks do without it, so there are none where nothing is left out.
        if not self._compiled or (found is None and run.selects and leaves_graphs()):
            return found
        return Obstacle(FROZEN) if found is None else replace(found, readable=False)

    def _in_the_way(self, run: Run, module: nn.Module, arguments: dict[str, Any]) -> Obstacle | None:
        if getattr(module, "is_cache_enabled", False):
            return Obstacle("a cache of diffusers' own works on the transformer's blocks")
        partition = run.report.partition
        if partition is not None and partition.kept == 1:
            return Obstacle("a single token is to be computed, and attention may be scaled by their number")
        timestep = arguments.get("timestep")
        if isinstance(timestep, Tensor) and timestep.ndim > 1:
            return Obstacle("the noise level differs from row to row")
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
        if self._evaluating:
            model_output = self._guided(model_output, timestep, sample)
        return original(model_output, timestep, sample, *args, **kwargs)

    def _guided(self, model_output: Tensor, timestep: Any, sample: Tensor) -> Tensor:
        """What the scheduler is to get for a step's prediction."""
        run = self._run
        assert run is not None
        self._evaluating = False
        if self._scheduler.step_index is None:
            self._scheduler._init_step_index(timestep)  # as its `step` does
        if self._scheduler.step_index - self._begin != self._index:
            self._give_up("Dense, because the pipeline begins between the scheduler's steps without telling it.")
            run.note(self._note, NoteLevel.WARNING)
            return model_output
        prediction = prediction_of(self._scheduler, run.sigmas[self._index])
        assert prediction is not None
        if self._held is None:
            model_output = self._reweighted(run, model_output)
        found = self._settled(run, prediction, model_output, sample)
        run.end_evaluation()
        return model_output if found is None else prediction.output(found, sample).to(model_output.dtype)

    def _reweighted(self, run: Run, guided: Tensor) -> Tensor:
        """A guided prediction with the scales of the map; the run is shown what the branches gave."""
        pair = branch_pair(self._outputs, self._roles, guided.shape)
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


def _stand_before(owner: Any, name: str, wrapper: Callable[..., Any]) -> tuple[Any, str, Any, Any]:
    """Put `wrapper(original, ...)` where an object has a method of its own or of its class; returns what `_give_back` takes."""
    before = vars(owner).get(name)
    original = getattr(owner, name)

    @wraps(original)
    def standing(*args: Any, **kwargs: Any) -> Any:
        return wrapper(original, *args, **kwargs)

    vars(owner)[name] = standing
    return owner, name, standing, before


def _made_once() -> Callable[..., Any]:
    known: dict[Any, Any] = {}

    def made(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        asked = (args, tuple(kwargs.items()))
        if asked not in known:
            known[asked] = original(*args, **kwargs)
        return known[asked]

    return made


def _give_back(owner: Any, name: str, standing: Any, before: Any) -> None:
    if vars(owner).get(name) is not standing:
        return  # offloading took its hooks off and put them on again: ours went with them
    if before is None:
        del vars(owner)[name]
    else:
        vars(owner)[name] = before


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
