"""What other people's packs do around a model evaluation: guidance with an evaluation of its own, samplers around samplers, loops."""

from __future__ import annotations

from typing import Any

import torch


def _values(func: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Attention that looks at itself alone, as perturbed-attention guidance has it."""
    return v.transpose(1, 2).flatten(2) if kwargs.get("skip_reshape") else v


class StandInGuidance:
    """Guides away from one more evaluation of the prompt, in which attention is changed, or nothing is."""

    CATEGORY, FUNCTION, RETURN_TYPES = "stand-in", "patch", ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """A model, how strongly, below which noise level, and whether attention is changed."""
        numbers = {name: ("FLOAT", {"default": 1.0}) for name in ("scale", "below")}
        return {"required": {"model": ("MODEL",), **numbers, "changed": ("BOOLEAN", {"default": False})}}

    def patch(self, model: Any, scale: float, below: float, changed: bool) -> tuple[Any]:
        """A copy of the model with the guidance."""
        from comfy.samplers import calc_cond_batch

        def guide(args: dict[str, Any]) -> torch.Tensor:
            guided: torch.Tensor = args["denoised"]
            if float(args["sigma"][0]) > below:
                return guided
            options = {**args["model_options"], "transformer_options": dict(args["model_options"]["transformer_options"])}
            if changed:
                options["transformer_options"]["optimized_attention_override"] = _values
            (perturbed,) = calc_cond_batch(args["model"], [args["cond"]], args["input"], args["sigma"], options)
            return guided + scale * (args["cond_denoised"] - perturbed)

        model = model.clone()
        model.set_model_sampler_post_cfg_function(guide)
        return (model,)


class _Around:
    """A sampler around a sampler, which passes on what it does not know."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def sample(self, *args: Any, **kwargs: Any) -> Any:
        """Nothing but the inner sampler."""
        return self.inner.sample(*args, **kwargs)


def _detailed(model: Any, x: torch.Tensor, sigmas: torch.Tensor, *, inner: Any, lie: float, **kwargs: Any) -> torch.Tensor:
    """The inner sampler's function, on a model that is told another noise level than it has."""

    def lied_to(x: torch.Tensor, sigma: torch.Tensor, **more: Any) -> Any:
        return model(x, sigma * lie, **more)

    lied_to.inner_model = model.inner_model  # type: ignore[attr-defined]
    sampled: torch.Tensor = inner.sampler_function(lied_to, x, sigmas, **kwargs, **inner.extra_options)
    return sampled


def _stepwise(model: Any, x: torch.Tensor, sigmas: torch.Tensor, *, inner: Any, **kwargs: Any) -> torch.Tensor:
    """The inner sampler's function, called anew for every step."""
    for first in range(len(sigmas) - 1):
        x = inner.sampler_function(model, x, sigmas[first : first + 2], **kwargs, **inner.extra_options)
    return x


def _at_the_end(model: Any, x: torch.Tensor, sigmas: torch.Tensor, *, inner: Any, **kwargs: Any) -> torch.Tensor:
    """Euler's method, the inner sampler for the second half, and another Euler step or two after it."""
    from comfy.k_diffusion.sampling import sample_euler

    half = len(sigmas) // 2
    x = sample_euler(model, x, sigmas[: half + 1], **kwargs)
    x = inner.sampler_function(model, x, sigmas[half:-2], **kwargs, **inner.extra_options)
    return sample_euler(model, x, sigmas[-3:], **kwargs)


class StandInSampler:
    """A sampler that has another one inside."""

    CATEGORY, FUNCTION, RETURN_TYPES = "stand-in", "wrap", ("SAMPLER",)
    HOWS = ("sample", "function", "lie", "stepwise", "half")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The inner sampler, and how it is called."""
        return {"required": {"sampler": ("SAMPLER",), "how": (list(cls.HOWS),)}}

    def wrap(self, sampler: Any, how: str) -> tuple[Any]:
        """A sampler around it."""
        from comfy.samplers import KSAMPLER

        if how == "sample":
            return (_Around(sampler),)
        if how in ("stepwise", "half"):
            return (KSAMPLER(_stepwise if how == "stepwise" else _at_the_end, {"inner": sampler}),)
        return (KSAMPLER(_detailed, {"inner": sampler, "lie": 0.97 if how == "lie" else 1.0}),)


class StandInNumber:
    """A number that comes over a link, and need not be one."""

    CATEGORY, FUNCTION, RETURN_TYPES = "stand-in", "number", ("FLOAT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The number as text."""
        return {"required": {"text": ("STRING", {"default": "0.5"})}}

    def number(self, text: str) -> tuple[float]:
        """The number."""
        return (float(text),)


class StandInLoop:
    """Samples once more and reports on it, with nodes that it makes while the prompt runs and shows as those before it."""

    CATEGORY, FUNCTION, RETURN_TYPES = "stand-in", "loop", ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Links as they are, but the latent; and the nodes that the new ones are shown as."""
        kinds = {"model": "MODEL", "positive": "CONDITIONING", "negative": "CONDITIONING"}
        links = {name: (kind, {"rawLink": True}) for name, kind in kinds.items()}
        shown = {name: ("STRING", {"default": ""}) for name in ("sampler", "report")}
        return {"required": {**links, **shown, "latent": ("LATENT",), "steps": ("INT", {"default": 8})}}

    def loop(self, sampler: str, report: str, latent: Any, steps: int, **links: Any) -> dict[str, Any]:
        """The second pass."""
        from comfy_execution.graph_utils import GraphBuilder

        graph = GraphBuilder()
        settings = {"seed": 99, "steps": steps, "cfg": 4.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
        sampling = graph.node("KSampler", latent_image=latent, **links, **settings)
        sampling.set_override_display_id(sampler)
        reporting = graph.node("SafeDitReport", latent=sampling.out(0))
        reporting.set_override_display_id(report)
        return {"result": (reporting.out(0),), "expand": graph.finalize()}


class StandInEditor:
    """Changes one of the lists that ComfyUI keeps of a model call's conditionings."""

    CATEGORY, FUNCTION, RETURN_TYPES = "stand-in", "patch", ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """A model."""
        return {"required": {"model": ("MODEL",)}}

    def patch(self, model: Any) -> tuple[Any]:
        """A copy of the model, each of whose calls carries one identity too few."""

        def edit(apply_model: Any, given: dict[str, Any]) -> torch.Tensor:
            options = given["c"]["transformer_options"]
            options["uuids"] = options["uuids"][1:]
            denoised: torch.Tensor = apply_model(given["input"], given["timestep"], **given["c"])
            return denoised

        model = model.clone()
        model.set_model_unet_function_wrapper(edit)
        return (model,)


class StandInCache:
    """A cache that ComfyUI knows nothing of: it answers every third evaluation with its last prediction."""

    CATEGORY, FUNCTION, RETURN_TYPES = "stand-in", "patch", ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """A model."""
        return {"required": {"model": ("MODEL",)}}

    def patch(self, model: Any) -> tuple[Any]:
        """A copy of the model."""
        from comfy.patcher_extension import WrappersMP

        calls, last = 0, torch.empty(0)

        def answer(executor: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
            nonlocal calls, last
            calls += 1
            if calls % 3:
                last = executor(*args, **kwargs)
            return last

        model = model.clone()
        model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "stand-in", answer)
        return (model,)


AROUND = (StandInGuidance, StandInSampler, StandInNumber, StandInLoop, StandInEditor, StandInCache)
