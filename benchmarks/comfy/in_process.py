"""ComfyUI inside this process, for benches that call the model themselves."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from devtools.server import ServerError, comfyui_path

from ..command import Wrong


def import_comfyui(device: str = "cpu", base: Path | None = None) -> ModuleType:
    """Import ComfyUI from `COMFYUI_PATH` and return its `nodes`; it goes first on the path, else it would find the pack's `nodes/`."""
    path = comfyui_path()
    sys.path.insert(0, str(path))
    args = importlib.import_module("comfy.cli_args").args
    args.cpu = device == "cpu"
    # ComfyUI's default on the CPU cuts queries into chunks by their number: slower, and it rounds differently for other row counts.
    args.use_pytorch_cross_attention = True
    if base is not None:
        args.base_directory = str(base)
    nodes = importlib.import_module("nodes")
    if Path(str(nodes.__file__)).parent != path:
        raise ServerError(f"`import nodes` gave {nodes.__file__} instead of ComfyUI's: import no `nodes` before this.")
    return nodes


def known_names(kind: str, names: Sequence[str]) -> None:
    """Wrong where ComfyUI, imported before, has no `sampler` or `scheduler` (the `kind`) of a name."""
    from comfy.samplers import SAMPLER_NAMES, SCHEDULER_NAMES

    known = SAMPLER_NAMES if kind == "sampler" else SCHEDULER_NAMES
    for name in names:
        if name not in known:
            raise Wrong(f"`{name}` is no {kind}; use {', '.join(known)}.")
