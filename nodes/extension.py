"""The pack's list of nodes."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from ..safe_dit_engine.hosts.comfy.demo import offer_loras
from ..safe_dit_engine.hosts.comfy.prompt import running_server
from ..safe_dit_engine.hosts.comfy.sampler_times import listen
from .accelerate import SafeDitAccelerate
from .demo_model import SafeDitDemoModel
from .mask_elision import SafeDitMaskElision
from .old_names import add_old_names
from .partitioner import SafeDitPartitioner
from .report import SafeDitReport
from .routes import add_routes
from .selective_sampler import SafeDitSelectiveSampler
from .sensitivity_cfg import SafeDitSensitivityCFG


class SafeDitExtension(ComfyExtension):
    """SAFE-DiT for ComfyUI."""

    async def on_load(self) -> None:
        """Offer the demo model's LoRAs, add the routes, read old prompts, time samplers; ComfyUI without a server (scripts, tests in
        process) has none of the last three."""
        offer_loras()
        server = running_server()
        if server is not None:
            add_routes(server)
            add_old_names(server)
            listen(server)

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Node classes in menu order."""
        return [
            SafeDitAccelerate,
            SafeDitMaskElision,
            SafeDitPartitioner,
            SafeDitSelectiveSampler,
            SafeDitSensitivityCFG,
            SafeDitReport,
            SafeDitDemoModel,
        ]
