"""Stands in for other people's packs in tests: an attention override set as those for Sage and Flash attention set theirs, and prompts.

And for what a test cannot have: a text encoder of a real size, and a loader of small models where ComfyUI knows one size only.
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import torch

from .around import AROUND


class Dimmed:
    """An attention override with an effect that shows: it scales what attention gives, and remembers the masks it was given."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.masks: list[torch.Tensor | None] = []

    def __call__(self, func: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Attention, scaled."""
        self.masks.append(args[4] if len(args) > 4 else kwargs.get("mask"))
        scaled: torch.Tensor = func(*args, **kwargs) * self.factor
        return scaled


class StandInOverride:
    """Takes ComfyUI's one slot for an attention override, whoever has it."""

    CATEGORY, FUNCTION, RETURN_TYPES = "stand-in", "patch", ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """A model, and how visible the effect is."""
        return {"required": {"model": ("MODEL",), "factor": ("FLOAT", {"default": 0.99})}}

    def patch(self, model: Any, factor: float) -> tuple[Any]:
        """A copy of the model with the override."""
        model = model.clone()
        model.model_options["transformer_options"]["optimized_attention_override"] = Dimmed(factor)
        return (model,)


class StandInPrompt:
    """A text encoder of random numbers that pads."""

    CATEGORY, FUNCTION, RETURN_TYPES = "stand-in", "encode", ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Shape and seed of the text."""
        return {"required": {name: ("INT", {"default": 0}) for name in ("seed", "tokens", "width", "padding")}}

    def encode(self, seed: int, tokens: int, width: int, padding: int) -> tuple[list[list[Any]]]:
        """Random rows; the last `padding` of them masked, as ComfyUI's text encoders say it."""
        rows = torch.randn(1, tokens, width, generator=torch.Generator().manual_seed(seed))
        mask = torch.ones(1, tokens, dtype=torch.long)
        mask[:, tokens - padding :] = 0
        return ([[rows, {"attention_mask": mask} if padding else {}]],)


class StandInClip:
    """ComfyUI's own CLIP, small, with random weights; text and pooled text are as wide as the model after it wants them."""

    CATEGORY, FUNCTION, RETURN_TYPES = "stand-in", "build", ("CLIP",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Widths of a text row and of the pooled text."""
        return {"required": {name: ("INT", {"default": 48, "max": 4096}) for name in ("text_width", "pooled_width")}}

    def build(self, text_width: int, pooled_width: int) -> tuple[Any]:
        """The encoder, with ComfyUI's own tokenizer."""
        from comfy import sd, sd1_clip

        class Pooled(sd1_clip.SD1ClipModel):
            def encode_token_weights(self, token_weight_pairs: Any) -> Any:
                rows, told, *others = super().encode_token_weights(token_weight_pairs)
                return rows, told.repeat(1, -(-pooled_width // text_width))[:, :pooled_width], *others

        sizes = {"hidden_size": text_width, "intermediate_size": text_width, "num_attention_heads": 2, "num_hidden_layers": 2}
        clip = sd.CLIP(
            SimpleNamespace(params={}, clip=Pooled, tokenizer=sd1_clip.SD1Tokenizer), model_options={"clip_l_model_config": sizes}
        )
        generator = torch.Generator().manual_seed(0)
        for weights in clip.cond_stage_model.parameters():
            weights.data.normal_(generator=generator)
        return (clip,)


class StandInLoader:
    """ComfyUI's diffusion model loader, told the sizes that it would not find."""

    CATEGORY, FUNCTION, RETURN_TYPES = "stand-in", "load", ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The file; the name of ComfyUI's configuration of that family, and its values as JSON."""
        return {"required": {name: ("STRING", {"default": ""}) for name in ("unet_name", "config_class", "options")}}

    def load(self, unet_name: str, config_class: str, options: str) -> tuple[Any]:
        """The model with the weights of the file."""
        import folder_paths
        from comfy import model_patcher, supported_models, utils

        config = getattr(supported_models, config_class)(json.loads(options))
        config.set_inference_dtype(torch.float32, None)
        model = config.get_model({}, "")
        weights = utils.load_torch_file(folder_paths.get_full_path_or_raise("diffusion_models", unet_name))
        model.diffusion_model.load_state_dict(weights)
        return (model_patcher.CoreModelPatcher(model.eval(), torch.device("cpu"), torch.device("cpu")),)


NODES = (StandInOverride, StandInPrompt, StandInClip, StandInLoader, *AROUND)
NODE_CLASS_MAPPINGS = {node.__name__: node for node in NODES}
