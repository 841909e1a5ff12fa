"""SAFE-DiT Demo Model: a small text-to-image transformer that comes with the pack."""

from __future__ import annotations

from comfy_api.latest import io

from ..safe_dit_engine.hosts.comfy.demo import load_demo


class SafeDitDemoModel(io.ComfyNode):
    """The shipped model, ready to sample."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="SafeDitDemoModel",
            display_name="SAFE-DiT Demo Model",
            category="SAFE-DiT",
            description=(
                "Loads the small text-to-image transformer shipped with the pack, to try the other nodes without a download. It draws "
                "coloured shapes at named places, from a closed vocabulary, at 256 to 512 pixels: "
                "\"a large red circle at the top left on a striped blue background\"."
            ),
            search_aliases=["demo", "example model", "safe-dit"],
            inputs=[],
            outputs=[
                io.Model.Output(display_name="model", tooltip="Diffusion transformer (NextDiT, the Lumina 2 family)."),
                io.Clip.Output(display_name="clip", tooltip="Text encoder with a closed vocabulary."),
                io.Vae.Output(display_name="vae", tooltip="Small autoencoder for its 16-channel latents."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        """Load the model."""
        return io.NodeOutput(*load_demo())
