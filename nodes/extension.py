"""The pack's list of nodes."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .accelerate import SafeDitAccelerate
from .demo_model import SafeDitDemoModel
from .mask_elision import SafeDitMaskElision
from .partitioner import SafeDitPartitioner
from .report import SafeDitReport
from .selective_sampler import SafeDitSelectiveSampler
from .sensitivity_cfg import SafeDitSensitivityCFG


class SafeDitExtension(ComfyExtension):
    """SAFE-DiT for ComfyUI."""

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
