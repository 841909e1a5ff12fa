"""What a `diffusers` pipeline is compared with: caches of `diffusers` and of `cache-dit`, and whole steps reused.

Each leaves the pipeline as it was. A library is told of a transformer it does not know by what it offers for that. Where it still does not
run, `Unsupported` says why.
"""

from __future__ import annotations

import inspect
import io
import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any
from weakref import WeakKeyDictionary

import torch
from diffusers import hooks
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS
from diffusers.models.cache_utils import CacheMixin
from torch import Tensor, nn

from safe_dit_engine.hosts.diffusers.schedulers import prediction_of, timetable_of

from ..measure.in_turn import Unsupported
from ..measure.methods import Place
from ..measure.whole_steps import Known, extrapolated

Arguments = dict[str, Any]
Enable = Callable[[Any], AbstractContextManager[None]]
# What is done around one call of a pipeline, whose arguments may be changed.
Install = Callable[[Any, Arguments], AbstractContextManager[None]]
# The configuration of a cache for a pipeline.
Configure = Callable[[Any], Any]
# MagCache's ratios by transformer and number of steps.
Ratios = WeakKeyDictionary[nn.Module, dict[int, list[float]]]

# Not every class of transformers has `enable_cache`.
ATTACH = {
    hooks.FirstBlockCacheConfig: hooks.apply_first_block_cache,
    hooks.TaylorSeerCacheConfig: hooks.apply_taylorseer_cache,
    hooks.MagCacheConfig: hooks.apply_mag_cache,
}
# What peers put on modules where something may stand already.
HIDDEN = ("forward", "_diffusers_hook")


@dataclass(frozen=True)
class Traits:
    """What peers must be told of a class of transformers.

    `blocks`, `attentions` and `head` are patterns of module names. `renamed`: what the blocks call `hidden_states`. `ends_in_text`: the
    last block returns text, too.
    """

    blocks: str
    attentions: str
    head: str
    renamed: str = "hidden_states"
    ends_in_text: bool = True


_LAYERS, _BLOCKS = r"layers\.\d+", r"transformer_blocks\.\d+"
TRAITS = {
    "LuminaNextDiT2DModel": Traits(_LAYERS, _LAYERS + r"\.attn\d", "norm_out"),
    "Lumina2Transformer2DModel": Traits(_LAYERS, _LAYERS + r"\.attn", "norm_out"),
    "ZImageTransformer2DModel": Traits(_LAYERS, _LAYERS + r"\.attention", r"all_final_layer\.2-1", "x"),
    "PixArtTransformer2DModel": Traits(_BLOCKS, _BLOCKS + r"\.attn\d", "proj_out"),
    "SD3Transformer2DModel": Traits(_BLOCKS, _BLOCKS + r"\.attn\d?", "proj_out", ends_in_text=False),
    "FluxTransformer2DModel": Traits("(single_)?" + _BLOCKS, "(single_)?" + _BLOCKS + r"\.attn", "proj_out"),
}

def traits_of(transformer: nn.Module) -> Traits:
    """What is known of a transformer; Unsupported where nothing is."""
    if (name := type(transformer).__name__) not in TRAITS:
        raise Unsupported(f"`{name}` has not been described for this peer; described are {', '.join(TRAITS)}.")
    return TRAITS[name]


def _blocks_of(transformer: nn.Module) -> list[nn.Module]:
    pattern = re.compile(traits_of(transformer).blocks)
    return [part for name, part in transformer.named_modules() if pattern.fullmatch(name)]


# Around a pipeline and its calls


@contextmanager
def _own_class(pipe: Any, **members: Any) -> Iterator[None]:
    """Give the pipeline a class of its own, of the same name, with these members."""
    original = type(pipe)
    pipe.__class__ = type(original.__name__, (original,), {"__module__": original.__module__, **members})
    try:
        yield
    finally:
        pipe.__class__ = original


def around_calls(install: Install, pipe: Any) -> AbstractContextManager[None]:
    """Have every call of the pipeline in the block run within `install(pipe, arguments)`."""
    original = type(pipe).__call__
    signature = inspect.signature(original)

    @wraps(original)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = signature.bind(self, *args, **kwargs)
        given.apply_defaults()
        with install(self, given.arguments):
            return original(*given.args, **given.kwargs)

    return _own_class(pipe, __call__=call)


@contextmanager
def _undone(transformer: nn.Module) -> Iterator[None]:
    """Take from all modules what the block put there, and give back what it hid."""
    before = [(part, vars(part).copy(), dict(part.named_children())) for part in transformer.modules()]
    for part, *_ in before:
        vars(part).pop("_diffusers_hook", None)  # what a registry remembers of hooks under it would be outdated
    try:
        yield
    finally:
        for part, own, children in before:
            for key in [key for key in vars(part) if key not in own or key in HIDDEN]:
                del vars(part)[key]
            vars(part).update({key: own[key] for key in HIDDEN if key in own})
            for name, child in children.items():
                part._modules[name] = part._modules.pop(name, child)  # cache-dit takes blocks out and puts them back last


@contextmanager
def _quiet() -> Iterator[None]:
    """Both libraries log a line or more for each time they are enabled."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _wrap_forward(pipe: Any, wrapper: Callable[[Callable[..., Any], int, Any, Any], Any]) -> None:
    """Put `wrapper(original, number of the call within its step, args, kwargs)` where the transformer's `forward` is, within `_undone`."""
    transformer, scheduler = pipe.transformer, pipe.scheduler
    original = transformer.forward
    place = [-1, 0]

    @wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        step = _step(scheduler)
        place[:] = [step, place[1] + 1 if step == place[0] else 0]
        return wrapper(original, place[1], args, kwargs)

    transformer.forward = forward


def _step(scheduler: Any) -> int:
    reached = scheduler.step_index
    return (scheduler.begin_index or 0) if reached is None else int(reached)


# Hooks of diffusers


def hooked(configure: Configure) -> Enable:
    """A cache of `diffusers`."""
    return partial(around_calls, partial(_hooked, configure))


@contextmanager
def _hooked(configure: Configure, pipe: Any, arguments: Arguments) -> Iterator[None]:
    wanted = configure(pipe)
    transformer = pipe.transformer

    def in_context(original: Callable[..., Any], number: int, args: Any, kwargs: Any) -> Any:
        with CacheMixin.cache_context(transformer, f"call {number}"):
            return original(*args, **kwargs)

    with _undone(transformer), _registered(transformer):
        with _quiet():
            ATTACH[type(wanted)](transformer, wanted)
        _wrap_forward(pipe, in_context)
        yield


@contextmanager
def _registered(transformer: nn.Module) -> Iterator[None]:
    """Tell `diffusers` of the blocks of a transformer it does not know, or does not know well enough."""
    renamed = traits_of(transformer).renamed

    class Renamed(TransformerBlockMetadata):
        def _get_parameter_from_args_kwargs(self, identifier: str, args: Any = (), kwargs: Any = None) -> Any:
            name = renamed if identifier == "hidden_states" else identifier
            return super()._get_parameter_from_args_kwargs(name, args, kwargs)

    block_class = type(_blocks_of(transformer)[0])
    TransformerBlockRegistry._register()
    known = TransformerBlockRegistry._registry
    before = known.get(block_class)
    if before is None or renamed != "hidden_states":
        TransformerBlockRegistry.register(block_class, Renamed(return_hidden_states_index=0))
    try:
        yield
    finally:
        known[block_class] = before
        if before is None:
            del known[block_class]


def first_block(pipe: Any, **values: Any) -> Any:
    """FirstBlockCache."""
    _check_end(pipe, "FirstBlockCache")
    return hooks.FirstBlockCacheConfig(**values)


def _check_end(pipe: Any, name: str) -> None:
    if not traits_of(pipe.transformer).ends_in_text:
        raise Unsupported(f"{name} wants text and image of every block, and the last of `{type(pipe.transformer).__name__}` gives no text.")


def taylor_seer(pipe: Any, lite: bool = False, **values: Any) -> Any:
    """TaylorSeer on attention; `lite`: on the head alone, blocks not run, in float32. With the library's own patterns where they fit."""
    traits = traits_of(pipe.transformer)
    if lite:
        _check_end(pipe, "TaylorSeer on the head alone")
        values["taylor_factors_dtype"] = torch.float32
    skipped, cached = ([traits.blocks], [traits.head]) if lite else (None, [traits.attentions])
    return hooks.TaylorSeerCacheConfig(skip_predict_identifiers=skipped, cache_identifiers=cached, **values)


# MagCache


def magnitudes(known: Ratios, **values: Any) -> Enable:
    """MagCache with ratios of its own calibration, or those the library has for Flux."""
    return partial(around_calls, partial(_magnitudes, known, values))


@contextmanager
def _magnitudes(known: Ratios, values: Arguments, pipe: Any, arguments: Arguments) -> Iterator[None]:
    steps = arguments["num_inference_steps"]
    shipped = {steps: FLUX_MAG_RATIOS.tolist()} if type(pipe.transformer).__name__ == "FluxTransformer2DModel" else {}
    of_steps = known.setdefault(pipe.transformer, shipped)
    printed = io.StringIO()
    config = hooks.MagCacheConfig(num_inference_steps=steps, mag_ratios=of_steps.get(steps), calibrate=steps not in of_steps, **values)
    # Calibration prints what it found, and keeps it nowhere else.
    with redirect_stdout(printed) if config.calibrate else nullcontext(), _hooked(lambda _: config, pipe, arguments):
        yield
    if config.calibrate:
        of_steps[steps] = next(json.loads(line) for line in printed.getvalue().splitlines() if line.startswith("[") and line.endswith("]"))


# cache-dit


@contextmanager
def cache_dit(values: Arguments, order: int, pipe: Any) -> Iterator[None]:
    """DBCache with these values of its configuration; `order` of its TaylorSeer calibrator, 0 for none."""
    import cache_dit
    from cache_dit import DBCacheConfig, TaylorSeerCalibratorConfig

    config, blocks = DBCacheConfig(**values), len(_blocks_of(pipe.transformer))
    if (first := config.Fn_compute_blocks) > blocks:
        raise Unsupported(f"DBCache is to compute {first} blocks first, and `{type(pipe.transformer).__name__}` has {blocks} here.")
    calibrator = TaylorSeerCalibratorConfig(taylorseer_order=order) if order else None
    with _undone(pipe.transformer), _own_class(pipe):
        with _quiet():
            cache_dit.enable_cache(_adapter(pipe), config, calibrator)
        try:
            yield
        finally:
            with _quiet():
                cache_dit.disable_cache(pipe)


def _adapter(pipe: Any) -> Any:
    """The pipeline where the library knows it by name, else what it offers for others."""
    from cache_dit import BlockAdapter, ForwardPattern
    from cache_dit.caching import BlockAdapterRegister

    if BlockAdapterRegister.is_supported(pipe):
        return pipe
    blocks = getattr(pipe.transformer, traits_of(pipe.transformer).blocks.partition("\\")[0])
    return BlockAdapter(pipe=pipe, transformer=pipe.transformer, blocks=blocks, forward_pattern=ForwardPattern.Pattern_3)


# Whole steps


@dataclass
class WholeSteps:
    """One call of a pipeline in which only some steps are computed; the guided prediction of the others is held or extrapolated."""

    scheduler: Any
    place: Place
    order: int
    damping: float
    known: list[Known] = field(default_factory=list)
    outputs: dict[int, Any] = field(default_factory=dict)

    def _is_computed(self) -> bool:
        return not self.known or _step(self.scheduler) in self.place(len(self.scheduler.timesteps))

    def forward(self, original: Callable[..., Any], number: int, args: Any, kwargs: Any) -> Any:
        """The transformer, or what it gave last, of which only the shape counts."""
        if self._is_computed():
            self.outputs[number] = original(*args, **kwargs)
        return self.outputs[number]

    def step(self, original: Callable[..., Any], model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The scheduler's step with the prediction of this step."""
        timetable = timetable_of(self.scheduler, 0)
        sigma = 0.0 if timetable is None else timetable.evaluations[_step(self.scheduler)]
        prediction = prediction_of(self.scheduler, sigma)
        if timetable is None or timetable.per_step > 1 or prediction is None:
            raise Unsupported(f"What `{type(self.scheduler).__name__}` takes a model to predict is not known.")
        if self._is_computed():
            self.known[:] = [*self.known[-2:], (sigma, prediction.denoised(model_output, sample))]
        else:
            reused = extrapolated(self.known, sigma, self.order, self.damping)
            model_output = prediction.output(reused, sample).to(model_output.dtype)
        return original(model_output, timestep, sample, *args, **kwargs)


def whole_steps(place: Place, order: int, damping: float) -> Enable:
    """Whole steps reused, as `whole_steps.reuse_whole_steps` does in ComfyUI."""

    @contextmanager
    def install(pipe: Any, arguments: Arguments) -> Iterator[None]:
        reused = WholeSteps(pipe.scheduler, place, order, damping)
        with _undone(pipe.transformer):
            _wrap_forward(pipe, reused.forward)
            pipe.scheduler.step = partial(reused.step, pipe.scheduler.step)
            try:
                yield
            finally:
                del pipe.scheduler.step

    return partial(around_calls, install)
