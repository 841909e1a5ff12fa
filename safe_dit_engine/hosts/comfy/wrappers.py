"""ComfyUI: puts a run around sampling through the model patcher's own wrappers.

| wrapper | what it does here |
| --- | --- |
| OUTER_SAMPLE | makes the run, closes it in `finally` |
| PREDICT_NOISE | one model evaluation |
| CALC_COND_BATCH | tells which conditionings carry the prompt; collects the guidance signal |
| APPLY_MODEL | one model call: hooks, attention override, result (calls.py) |

The wrappers are stateless functions; all state is the `Sampling` in the `transformer_options` of this sampling run alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...guidance import reweight
from ...presets import SafeConfig
from ...steps.samplers import PARTS
from .calls import Executor, apply_model, sampling_of
from .coarse import why_not_coarse
from .conds import active_at
from .sampler import KEY, RUN, SelectiveSampler, function_name
from .sampling import Sampling
from .start import start_run

CONFIG = "safe_dit_config"
POST_CFG = "sampler_post_cfg_function"

AT_CFG_1 = "Sensitivity-Weighted CFG has nothing to weight: at CFG 1 there is no unconditional prediction."


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


# Wrappers


def outer_sample(executor: Executor, noise: Tensor, latent: Tensor, sampler: Any, sigmas: Tensor, *args: Any, **kwargs: Any) -> Any:
    """One sampling run."""
    guider = executor.class_obj  # type: ignore[attr-defined]
    original = guider.model_options
    options = _clone_options(original)
    config: SafeConfig = options["transformer_options"][CONFIG]
    start = partial(start_run, guider, config, tuple(latent.shape), function_name(sampler))
    run = start(sampler if isinstance(sampler, SelectiveSampler) else None, sigmas.tolist())
    functions = list(options.get(POST_CFG, ()))
    weighted = run.config.guidance is not None
    sampling = Sampling(run, start, sampler, len(functions) + weighted)
    options["transformer_options"][RUN] = sampling
    if weighted:
        options[POST_CFG] = [*functions, _reweight_with(sampling)]
    guider.model_options = options
    try:
        return executor(noise, latent, sampler, sigmas, *args, **kwargs)
    finally:
        guider.model_options = original
        sampling.close()


def _clone_options(model_options: dict[str, Any]) -> dict[str, Any]:
    from comfy.model_patcher import create_model_options_clone

    clone: dict[str, Any] = create_model_options_clone(model_options)
    return clone


def _reweight_with(sampling: Sampling) -> Callable[[dict[str, Any]], Tensor]:
    def post_cfg(args: dict[str, Any]) -> Tensor:
        guided: Tensor = args["denoised"]
        if args["uncond"] is None or args["cond_scale"] == 1.0:
            sampling.run.note(AT_CFG_1)
            return guided
        scales = sampling.run.guidance_scales()
        if scales is None:
            return guided
        return reweight(guided, args["cond_denoised"], args["uncond_denoised"], args["cond_scale"], scales.to(guided))

    post_cfg.safe_dit = True  # type: ignore[attr-defined]
    return post_cfg


def predict_noise(executor: Executor, x: Tensor, timestep: Tensor, model_options: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """One model evaluation."""
    guider = executor.class_obj  # type: ignore[attr-defined]
    sampling = sampling_of(guider.model_options)
    if sampling is None:
        return executor(x, timestep, model_options, *args, **kwargs)
    run, sigma = sampling.run, float(timestep.flatten()[0])
    sampling.know_roles(guider)
    if len(model_options.get(POST_CFG, ())) > sampling.post_cfg:  # the sampler itself listens in, as the CFG++ samplers do
        run.compute_all(f"this sampler {PARTS}")
    with run.evaluate(sigma, active_at(guider.conds, sigma), x.device) as evaluation:
        prediction = evaluation.skipped()
        if prediction is None:
            smaller = evaluation.coarse(x, partial(why_not_coarse, guider, model_options, sigma))
            if smaller is not None:
                x, timestep = smaller[0], torch.full_like(timestep, smaller[1])
            prediction = evaluation.computed(executor(x, timestep, model_options, *args, **kwargs))
    sampling.step(run.report.evaluations[-1])
    return prediction


def calc_cond_batch(
    executor: Executor, model: Any, conds: list[Any], x: Tensor, timestep: Tensor, model_options: dict[str, Any], **kwargs: Any
) -> Any:
    """The conditionings of one evaluation."""
    sampling = sampling_of(model_options)
    if sampling is None:
        return executor(model, conds, x, timestep, model_options, **kwargs)
    evaluation = sampling.run.evaluation
    roles = {index: sampling.role(cond, index) for index, cond in enumerate(conds) if cond}
    positive = frozenset(index for index, role in roles.items() if role != "negative")
    evaluation.begin_batch(positive)
    predictions = executor(model, conds, x, timestep, model_options, **kwargs)
    if evaluation.must_repeat():
        predictions = executor(model, conds, x, timestep, model_options, **kwargs)
    negative = next((index for index, role in roles.items() if role == "negative"), None)
    if positive and negative is not None:
        evaluation.end_batch(predictions[min(positive)], predictions[negative])
    return predictions
