"""Sensitivity-Weighted CFG: guidance that follows the sensitivity map."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..safe_dit_engine.guidance import GuidanceConfig
from ..safe_dit_engine.hosts.comfy.wrappers import configure

DEFAULTS = GuidanceConfig()


class SafeDitSensitivityCFG(io.ComfyNode):
    """Two guidance scales -> model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="SafeDitSensitivityCFG",
            display_name="Sensitivity-Weighted CFG",
            category="SAFE-DiT",
            description=(
                "Guides tokens the prompt acts on with one scale and the rest with another. It changes the picture on purpose. The "
                "sampler's own CFG is used during warm-up and replaced afterwards; at CFG 1 there is nothing to weight."
            ),
            search_aliases=["cfg", "guidance", "spatial cfg", "sensitivity", "safe-dit"],
            inputs=[
                io.Model.Input("model", tooltip="The diffusion transformer. It is not changed: a patched copy comes out."),
                io.Float.Input(
                    "context_scale",
                    default=DEFAULTS.context_scale,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="CFG scale of tokens the prompt does not act on (sensitivity 0). Replaces the sampler's CFG after warm-up.",
                ),
                io.Float.Input(
                    "sensitive_scale",
                    default=DEFAULTS.sensitive_scale,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="CFG scale of the most sensitive tokens (sensitivity 1). Tokens in between get a scale in between.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model with the guidance attached.")],
        )

    @classmethod
    def execute(cls, model: Any, context_scale: float, sensitive_scale: float) -> io.NodeOutput:
        """Attach the scales to a copy of the model."""
        return io.NodeOutput(configure(model, guidance=GuidanceConfig(context_scale, sensitive_scale)))
