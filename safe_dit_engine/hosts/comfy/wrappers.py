"""ComfyUI: puts a run around sampling through the model patcher's own wrappers.

| wrapper | what it does here |
| --- | --- |
| OUTER_SAMPLE | makes the run, closes it in `finally` |
| PREDICT_NOISE | brackets one model evaluation |
| CALC_COND_BATCH | tells which conditionings carry the prompt; collects the guidance signal |
| APPLY_MODEL | one model call: hooks, attention override, result |

The wrappers are stateless functions; all state is the `Run` in the `transformer_options` of this sampling run alone.
"""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor

from ...backbones.base import CONTROLNET
from ...guidance import reweight
from ...masks.certify import MaskMode
from ...masks.sdpa import AttentionOverride, compiled_override, judged, name_functions
from ...masks.sources import tracked
from ...run import FROZEN, UNCOMPILED, CondCall, Fallback, Run, SafeConfig, leaves_graphs
from ...selective.memory import Memory
from ...selective.model_call import ModelCall
from ...steps.levels import progress_of
from ...steps.plan import ScheduleConfig, window_of_sigmas
from ...steps.samplers import PARTS, find_sampler
from ...tokens.partition import PartitionConfig
from .conds import active_at
from .live import LiveRun

log = logging.getLogger("safe_dit")

KEY = "safe_dit"
CONFIG = "safe_dit_config"
RUN = "safe_dit_run"
OVERRIDE = "optimized_attention_override"
POST_CFG = "sampler_post_cfg_function"

# Patches that want the image at full length after a block.
FULL_LENGTH_PATCHES = frozenset(
    {"double_block", "single_block", "noise_refiner", "attn1_patch", "attn1_output_patch", "attn2_patch", "post_input"}
)

Executor = Callable[..., Any]


def configure(model: Any, **parts: Any) -> Any:
    """A clone of the model patcher with these parts of its `SafeConfig` set; the wrappers are there once, however often it is called."""
    from comfy.patcher_extension import WrappersMP

    patched = model.clone()
    options = patched.model_options.setdefault("transformer_options", {})
    options[CONFIG] = replace(options.get(CONFIG, SafeConfig()), **parts)
    wrappers = {
        WrappersMP.OUTER_SAMPLE: outer_sample,
        WrappersMP.PREDICT_NOISE: predict_noise,
        WrappersMP.CALC_COND_BATCH: calc_cond_batch,
        WrappersMP.APPLY_MODEL: apply_model,
    }
    for kind, wrapper in wrappers.items():
        patched.remove_wrappers_with_key(kind, KEY)
        patched.add_wrapper_with_key(kind, KEY, wrapper)
    return patched


def config_of(model: Any) -> SafeConfig:
    """What the nodes have asked of this model patcher so far."""
    config: SafeConfig = model.model_options.get("transformer_options", {}).get(CONFIG, SafeConfig())
    return config


def token_ids(clip: Any, text: str) -> dict[str, list[int]]:
    """Ids of a text's tokens by text encoder, in the order of the rows they become; embeddings in a prompt count as -1."""
    batches = clip.tokenize(text)
    ids = {name: [token[0] for chunk in chunks for token in chunk] for name, chunks in batches.items()}
    return {name: [token if isinstance(token, int) else -1 for token in tokens] for name, tokens in ids.items()}


class SelectiveSampler:
    """A sampler that carries a schedule, and tokens painted on its map (painting.py); everything else is the sampler it wraps."""

    def __init__(self, sampler: Any, schedule: ScheduleConfig, painting: Tensor | None = None) -> None:
        self.sampler = sampler
        self.schedule = schedule
        self.painting = painting

    def __getattr__(self, name: str) -> Any:
        if name in ("sampler", "schedule", "painting"):  # not set yet: being copied or unpickled
            raise AttributeError(name)
        return getattr(self.sampler, name)

    def sample(self, model_wrap: Any, sigmas: Tensor, extra_args: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Sample with the wrapped sampler; says so when the model was not prepared for selective updates."""
        with self._scheduled(sigmas, extra_args):
            return self.sampler.sample(model_wrap, sigmas, extra_args, *args, **kwargs)

    @property
    def sampler_function(self) -> Callable[..., Any]:
        """The wrapped sampler's function: samplers of other packs call it, and never `sample`."""
        function = self.sampler.sampler_function

        @wraps(function)
        def scheduled(model: Any, x: Tensor, sigmas: Tensor, *args: Any, **kwargs: Any) -> Any:
            with self._scheduled(sigmas, kwargs.get("extra_args") or {}):
                return function(model, x, sigmas, *args, **kwargs)

        return scheduled

    @contextmanager
    def _scheduled(self, sigmas: Tensor, extra_args: dict[str, Any]) -> Iterator[None]:
        """The run follows this schedule from here on, whatever else wraps this sampler, and nothing is left out after it."""
        live = extra_args.get("model_options", {}).get("transformer_options", {}).get(RUN)
        if live is None:
            log.warning(
                "SAFE-DiT: the Selective Update Sampler got a model without a Prompt Token Partitioner, so every step is dense; "
                "put a Prompt Token Partitioner between the model loader and the guider."
            )
            yield
            return
        live.follow(self, sigmas.tolist())
        try:
            yield
        finally:
            live.over = True


def default_sampler() -> Any:
    """The sampler used where none is connected."""
    from comfy.samplers import sampler_object

    return sampler_object("euler")


# Wrappers


def outer_sample(executor: Executor, noise: Tensor, latent: Tensor, sampler: Any, sigmas: Tensor, *args: Any, **kwargs: Any) -> Any:
    """One sampling run."""
    guider = executor.class_obj  # type: ignore[attr-defined]
    original = guider.model_options
    options = _clone_options(original)
    start = partial(_start_run, guider, options["transformer_options"][CONFIG], tuple(latent.shape), _function_name(sampler))
    live = LiveRun(start(sampler if isinstance(sampler, SelectiveSampler) else None, sigmas.tolist()))
    live.start, live.followed = start, sampler
    live.post_cfg = len(options.get(POST_CFG, ()))
    options["transformer_options"][RUN] = live
    if live.run.config.guidance is not None:
        options[POST_CFG] = [*options.get(POST_CFG, []), _reweight_with(live)]
        live.post_cfg += 1
    guider.model_options = options
    try:
        return executor(noise, latent, sampler, sigmas, *args, **kwargs)
    finally:
        guider.model_options = original
        live.close()


def _clone_options(model_options: dict[str, Any]) -> dict[str, Any]:
    from comfy.model_patcher import create_model_options_clone

    clone: dict[str, Any] = create_model_options_clone(model_options)
    return clone


def _function_name(sampler: Any) -> str | None:
    """Name of a sampler's function; None where it has none."""
    return getattr(getattr(sampler, "sampler_function", None), "__name__", None)


def _start_run(
    guider: Any, config: SafeConfig, latent: tuple[int, ...], name: str | None, sampler: SelectiveSampler | None, levels: list[float]
) -> Run:
    """A run over these noise levels with the sampler function `name`, by the schedule of `sampler`, where there is one."""
    name = name if sampler is None else _function_name(sampler.sampler)
    schedule = config.schedule
    if sampler is not None:
        config = replace(config, schedule=sampler.schedule)
        if sampler.painting is not None:
            config = replace(config, partition=replace(config.partition or PartitionConfig(), painting=sampler.painting))
    patcher = guider.model_patcher
    # Asked of the patcher: its patches are applied to the model only later.
    sampling = patcher.get_model_object("model_sampling")
    run = Run(
        config,
        patcher.get_model_object("diffusion_model"),
        levels,
        latent,
        _window(config.schedule, sampling, levels),
        _memory_of(patcher.model),
        progress=_progress(sampling, levels),
        sampler=find_sampler(name),
    )
    if sampler is not None and schedule is not None:
        run.note("The schedule of the Selective Update Sampler is followed, not that of SAFE-DiT Accelerate.")
    return run


def _progress(sampling: Any, levels: list[float]) -> list[float]:
    """Progress at noise levels: the model's own sampling object is asked how much picture and noise a latent holds there."""
    sigmas = torch.tensor(levels).view(-1, 1, 1, 1)
    zeros, ones = torch.zeros_like(sigmas), torch.ones_like(sigmas)
    parts = torch.stack((sampling.noise_scaling(sigmas, zeros, ones), sampling.noise_scaling(sigmas, ones, zeros)), dim=-1)
    return [progress_of(*pair) for pair in parts.view(-1, 2).tolist()]


def _memory_of(base_model: Any) -> Memory:
    """ComfyUI's own account of memory. Room is made by unloading other models, never one of this run: the one that samples, a ControlNet,
    a second one, or whatever else ComfyUI holds to be in use."""
    import comfy.model_management as management

    def make_room(size: int, device: torch.device) -> None:
        loaded = [each for each in management.current_loaded_models if each.model is not None]
        in_use = [each for each in loaded if each.currently_used or each.model.model is base_model]
        management.free_memory(size, device, keep_loaded=in_use)

    return Memory(management.get_free_memory, make_room)


def _window(schedule: ScheduleConfig | None, model_sampling: Any, levels: list[float]) -> tuple[int, int]:
    if schedule is None:
        return (0, len(levels) - 1)
    to_sigma = model_sampling.percent_to_sigma
    return window_of_sigmas(levels, float(to_sigma(schedule.start_percent)), float(to_sigma(schedule.end_percent)))


def _reweight_with(live: LiveRun) -> Callable[[dict[str, Any]], Tensor]:
    def post_cfg(args: dict[str, Any]) -> Tensor:
        guided: Tensor = args["denoised"]
        run = live.run
        if args["uncond"] is None or args["cond_scale"] == 1.0:
            run.note("Sensitivity-Weighted CFG has nothing to weight: at CFG 1 there is no unconditional prediction.")
            return guided
        scales = run.guidance_scales()
        if scales is None:
            return guided
        return reweight(guided, args["cond_denoised"], args["uncond_denoised"], args["cond_scale"], scales.to(guided))

    return post_cfg


def predict_noise(executor: Executor, x: Tensor, timestep: Tensor, model_options: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """One model evaluation."""
    live = _live(executor.class_obj.model_options)  # type: ignore[attr-defined]
    if live is None:
        return executor(x, timestep, model_options, *args, **kwargs)
    guider, sigma = executor.class_obj, float(timestep.flatten()[0])  # type: ignore[attr-defined]
    live.roles = _roles(guider)
    if len(model_options.get(POST_CFG, ())) > live.post_cfg:  # the sampler itself listens in, as the CFG++ samplers do
        live.run.compute_all(f"this sampler {PARTS}")
    live.run.begin_evaluation(sigma, active_at(guider.conds, sigma), x.device)
    prediction = live.run.skipped()
    if prediction is None:
        prediction = live.run.computed(executor(x, timestep, model_options, *args, **kwargs), x)
    live.step(live.run.end_evaluation())
    return prediction


def _roles(guider: Any) -> dict[int, str]:
    return {id(conds): role for role, conds in guider.conds.items()}


def calc_cond_batch(
    executor: Executor, model: Any, conds: list[Any], x: Tensor, timestep: Tensor, model_options: dict[str, Any], **kwargs: Any
) -> Any:
    """The conditionings of one evaluation."""
    live = _live(model_options)
    if live is None:
        return executor(model, conds, x, timestep, model_options, **kwargs)
    # Guiders differ in the order of their lists, so the role is found by the list itself; unknown lists go by the usual order.
    roles = [live.roles.get(id(cond), "negative" if index == 1 else "positive") for index, cond in enumerate(conds)]
    present = [index for index, cond in enumerate(conds) if cond]
    carrying = frozenset(index for index in present if roles[index] != "negative")
    live.run.begin_batch(carrying)
    predictions = executor(model, conds, x, timestep, model_options, **kwargs)
    if live.run.must_repeat():
        predictions = executor(model, conds, x, timestep, model_options, **kwargs)
    negative = next((index for index in present if roles[index] == "negative"), None)
    if carrying and negative is not None:
        live.run.end_batch(predictions[min(carrying)], predictions[negative])
    return predictions


def apply_model(
    executor: Executor,
    x: Tensor,
    t: Tensor,
    c_concat: Tensor | None = None,
    c_crossattn: Tensor | None = None,
    control: Any = None,
    transformer_options: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    """One call of the model."""
    options = transformer_options if transformer_options is not None else {}
    live = _live({"transformer_options": options})
    if live is None:
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
    run: Run = live.run
    conds = _conds_of(options)
    module = executor.class_obj.diffusion_model  # type: ignore[attr-defined]
    module = getattr(module, "_orig_mod", module)  # torch.compile's wrapper is not the model
    call = run.begin_call(conds, x, _whose_call(live, conds, module, options) or _fallback(run, module, control, options, kwargs))
    composition = tuple(options.get("uuids", ()))
    if call is None and (run.ledger.mode is MaskMode.OFF or composition in live.unmasked):
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
    given, options = options, _with_override(run, call, options)
    seen = (run.ledger.calls, run.ledger.masked)
    # Such patches are handed the mask and may write to it, which nothing would tell us: ComfyUI samples in inference mode.
    run.ledger.bracketed = not (options.get("patches_replace", {}).get("dit") or options.get("patches", {}).get("attn1_patch"))
    inputs = (x, t, c_concat, c_crossattn, control)
    try:
        denoised = _call(executor, run, call, options, inputs, kwargs)
        if run.ledger.mode is MaskMode.ELIDE and run.ledger.calls > seen[0] and run.ledger.masked == seen[1]:
            live.unmasked.add(composition)
        return denoised
    except _memory_errors() as error:
        if not _is_out_of_memory(error) or not run.out_of_memory(call):
            raise
    # Outside of the handler: an exception being handled holds the failed call's tensors.
    return _call(executor, run, None, _with_override(run, None, given), inputs, kwargs)


def _memory_errors() -> tuple[type[Exception], ...]:
    """What may say that memory ran out, by ComfyUI's own check."""
    import comfy.model_management as management

    return (management.OOM_EXCEPTION, management.ACCELERATOR_ERROR)


def _is_out_of_memory(error: Exception) -> bool:
    import comfy.model_management as management

    found: bool = management.is_oom(error)
    return found


def _conds_of(options: dict[str, Any]) -> list[CondCall]:
    """The conditionings of a model call; empty where their lists do not belong together any more."""
    identities, indices = options.get("uuids", ()), options.get("cond_or_uncond", ())
    return [CondCall(*pair) for pair in zip(identities, indices)] if len(identities) == len(indices) else []


def _whose_call(live: LiveRun, conds: list[CondCall], module: Any, options: dict[str, Any]) -> Fallback | None:
    """Why a call is none that the run knows from its other steps; None if it is one."""
    if not conds:
        return Fallback("another node changed the list of conditionings of a model call")
    if not live.run.runs(module):
        return Fallback("the guider runs a second model")
    if not live.run.repeats(conds):
        live.attention = options.get(OVERRIDE)
    elif options.get(OVERRIDE) is not live.attention:
        return Fallback("it changes the model's attention")
    return None


def _call(
    executor: Executor, run: Run, call: ModelCall | None, options: dict[str, Any], inputs: tuple[Any, ...], arguments: dict[str, Any]
) -> Any:
    *tensors, control = inputs
    with ExitStack() as hooks:
        if call is not None and _compiled(options):
            hooks.enter_context(torch.compiler.set_stance("force_eager"))
            run.note(UNCOMPILED)
        if call is None and _compiled(options):
            run.ledger.compiled = True
            hooks.enter_context(judged(run.ledger))
        elif run.ledger.mode is not MaskMode.OFF:
            hooks.enter_context(tracked(executor.class_obj.diffusion_model, run.ledger))  # type: ignore[attr-defined]
        if call is not None:
            hooks.enter_context(call.hooks())
            control = control and call.gathered_control(control)
        if call is not None or not _compiled(options):
            hooks.enter_context(_lent_attention(run, call))
        denoised = executor(*tensors, control, options, **arguments)
    if call is not None:
        run.end_call(call)
    return denoised


def _with_override(run: Run, call: ModelCall | None, options: dict[str, Any]) -> dict[str, Any]:
    """A copy of a call's options with our attention in them, before that of another pack."""
    options, before = copy.copy(options), options.get(OVERRIDE)
    if call is not None or not _compiled(options):
        options[OVERRIDE] = AttentionOverride(run.ledger, call, before)
    elif before is None:  # what is traced into a graph stays there: one function for all runs, and none around another pack's
        name_functions(_attention_functions())
        options[OVERRIDE] = compiled_override
    return options


def _attention_functions() -> dict[str, Callable[..., Tensor]]:
    """ComfyUI's attention functions as an override is given them."""
    from comfy.ldm.modules import attention

    named = {name: value for name, value in vars(attention).items() if name.startswith("attention")}
    return {name: value.__wrapped__ for name, value in named.items() if hasattr(value, "__wrapped__")}


@contextmanager
def _lent_attention(run: Run, call: ModelCall | None) -> Iterator[None]:
    """Families that give attention no options find another function in their module, for the length of one call."""
    name = run.lent_attention
    if name is None:
        yield
        return
    module = sys.modules[name]
    original = module.optimized_attention
    # No override of another node ever reached these models, and none is to reach them through us.
    override = AttentionOverride(run.ledger, call, None)

    def attention(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return override(original, q, k, v, *args, **kwargs)

    module.optimized_attention = attention  # type: ignore[attr-defined]
    try:
        yield
    finally:
        if module.optimized_attention is attention:  # else another pack has put its own there
            module.optimized_attention = original  # type: ignore[attr-defined]


def _compiled(options: dict[str, Any]) -> bool:
    return bool(options.get("wrappers", {}).get("apply_model", {}).get("torch.compile"))


def _live(model_options: dict[str, Any]) -> LiveRun | None:
    live: LiveRun | None = model_options.get("transformer_options", {}).get(RUN)
    return None if live is None or live.over else live


def _fallback(run: Run, module: Any, control: Any, options: dict[str, Any], arguments: dict[str, Any]) -> Fallback | None:
    """Why this call must run at full length; None if it need not."""
    found = _in_the_way(run, module, control, options, arguments)
    if not _compiled(options):
        return found
    # Hooks cannot reach into a compiled graph: calls with hooks do without it, so there are none where nothing is left out.
    if found is not None:
        return replace(found, readable=False)
    return None if run.selects and leaves_graphs() else Fallback(FROZEN)


def _in_the_way(run: Run, module: Any, control: Any, options: dict[str, Any], arguments: dict[str, Any]) -> Fallback | None:
    if options.get("context_window") is not None:
        return Fallback("context windows slide over the latent")
    if "multigpu_thread_device" in options:
        return Fallback("the model is split over several GPUs")
    refusal = run.refusal(arguments)
    if refusal is not None:
        return refusal
    if control is not None and not run.follows(control):
        return Fallback(CONTROLNET, readable=True)
    if options.get("patches_replace", {}).get("dit") and _lets_blocks_be_replaced(module):
        return Fallback("another node replaces blocks of the model", readable=True)
    patches = options.get("patches", {})
    found = sorted(FULL_LENGTH_PATCHES.intersection(name for name, functions in patches.items() if functions))
    if found:
        return Fallback(f"a model patch (`{found[0]}`) works on the image at full length", readable=True)
    return None


def _lets_blocks_be_replaced(module: Any) -> bool:
    """Whether a model looks for replacements of its blocks at all: some families never do, so there is nothing to be careful of."""
    functions = (function for kind in type(module).__mro__ for function in vars(kind).values())
    return any("patches_replace" in code.co_consts for function in functions if (code := getattr(function, "__code__", None)) is not None)
