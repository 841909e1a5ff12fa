"""Mask Elision Patcher: removes attention masks that provably change nothing, leaves out keys that are only padding."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..safe_dit_engine.hosts.comfy.wrappers import configure
from ..safe_dit_engine.masks.ledger import MaskMode


class SafeDitMaskElision(io.ComfyNode):
    """Mask mode -> model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="SafeDitMaskElision",
            display_name="Mask Elision Patcher",
            category="SAFE-DiT",
            description=(
                "Removes attention masks that provably change nothing and leaves out keys that are only padding, so that the fast "
                "attention kernel runs. Masks that matter are kept. Many models carry none; the node then says that there is nothing "
                "to elide."
            ),
            search_aliases=["attention mask", "flash attention", "mask elision", "safe-dit"],
            inputs=[
                io.Model.Input("model", tooltip="The diffusion transformer. It is not changed: a patched copy comes out."),
                io.Combo.Input(
                    "mode",
                    options=[mode.value for mode in MaskMode],
                    default=MaskMode.ELIDE.value,
                    tooltip=(
                        "elide: remove masks proven to change nothing, leave out keys that are only padding. "
                        "observe: only count them for the report. off: do not look."
                    ),
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model with the rule attached.")],
        )

    @classmethod
    def execute(cls, model: Any, mode: str) -> io.NodeOutput:
        """Attach the mode to a copy of the model."""
        return io.NodeOutput(configure(model, masks=MaskMode(mode)))
