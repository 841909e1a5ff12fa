"""Stands in for other people's packs in tests: an attention override set as those for Sage and Flash attention set theirs, and prompts."""

from __future__ import annotations

from typing import Any

import torch


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


NODE_CLASS_MAPPINGS = {"StandInOverride": StandInOverride, "StandInPrompt": StandInPrompt}
