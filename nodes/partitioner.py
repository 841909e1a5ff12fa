"""Prompt Token Partitioner: which image tokens the prompt acts on."""

from __future__ import annotations

from functools import partial
from typing import Any

from comfy_api.latest import io

from ..safe_dit_engine.hosts.comfy.wrappers import configure, token_ids
from ..safe_dit_engine.presets import DEFAULT_PRESET, PRESETS
from ..safe_dit_engine.tokens.focus import FocusRequest
from ..safe_dit_engine.tokens.partition import MIN_KEEP_RATIO, PartitionConfig, Signal

DEFAULTS = PRESETS[DEFAULT_PRESET].partition


class SafeDitPartitioner(io.ComfyNode):
    """Partition settings -> model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="SafeDitPartitioner",
            display_name="Prompt Token Partitioner",
            category="SAFE-DiT",
            description=(
                "Finds out, during the first steps of sampling, which image tokens the prompt acts on. The Selective Update Sampler then "
                "computes those at every selective step, and Sensitivity-Weighted CFG guides them with a scale of their own."
            ),
            search_aliases=["token map", "sensitivity", "attention map", "partition", "safe-dit"],
            inputs=[
                io.Model.Input("model", tooltip="The diffusion transformer. It is not changed: a patched copy comes out."),
                io.Float.Input(
                    "keep_ratio",
                    default=DEFAULTS.keep_ratio,
                    min=MIN_KEEP_RATIO,
                    max=1.0,
                    step=0.05,
                    tooltip=(
                        "Share of image tokens that counts as sensitive. Higher: slower, closer to the picture without SAFE-DiT. "
                        "1.0: all of them."
                    ),
                ),
                io.Combo.Input(
                    "signal",
                    options=[signal.value for signal in Signal],
                    default=DEFAULTS.signal.value,
                    tooltip=(
                        "attention: how much a token looks at the prompt's words. guidance: how far the prompt moves it away from the "
                        "negative prompt (needs CFG above 1). both: their mean."
                    ),
                ),
                io.Int.Input(
                    "warmup_steps",
                    default=DEFAULTS.warmup_steps,
                    min=1,
                    max=64,
                    tooltip="Full steps at the start. In them the map is made.",
                ),
                io.Float.Input(
                    "smoothing",
                    default=DEFAULTS.smoothing,
                    min=0.0,
                    max=8.0,
                    step=0.1,
                    advanced=True,
                    tooltip="Blur of the map, in tokens: keeps single tokens from being chosen alone. 0: none.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="A mask you paint: tokens under it are always computed, whatever the map says. Any size; it is scaled.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The text encoder of your prompt, to find the focus words in it. Only needed with focus words.",
                ),
                io.String.Input(
                    "focus_words",
                    optional=True,
                    default="",
                    tooltip=(
                        "Words of your prompt whose attention alone makes the map, such as: the red fox, hat. Needs clip. Empty: all words."
                    ),
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model with the partition attached.")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        keep_ratio: float,
        signal: str,
        warmup_steps: int,
        smoothing: float,
        mask: Any = None,
        clip: Any = None,
        focus_words: str = "",
    ) -> io.NodeOutput:
        """Attach the partition to a copy of the model."""
        if focus_words.strip() and clip is None:
            raise ValueError(f"There are focus words ({focus_words}) but no clip; connect the text encoder of your prompt.")
        focus = FocusRequest(focus_words, partial(token_ids, clip)) if focus_words.strip() else None
        config = PartitionConfig(keep_ratio, Signal(signal), warmup_steps, smoothing, mask, focus=focus)
        return io.NodeOutput(configure(model, partition=config))
