"""The shipped weight files: what they are called, and reading them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from .autoencoder import Autoencoder
from .network import DiTConfig, NextDiT, TextConfig, TextEncoder
from .words import TEXT_LENGTH

WEIGHTS_FOLDER = Path(__file__).parent / "weights"
FILES = {"dit": "demo_dit.safetensors", "text": "demo_text.safetensors", "vae": "demo_vae.safetensors"}
# LoRAs for few steps without guidance; in ComfyUI, a folder that its LoRA loaders list.
LORAS_FOLDER = WEIGHTS_FOLDER / "loras"
SAMPLING: dict[str, Any] = {"shift": 2.0, "steps": 20, "cfg": 4.0, "sampler": "euler", "scheduler": "simple"}


def lora_file(steps: int) -> str:
    """Name of the LoRA for so many steps."""
    return f"safe_dit_demo_{steps}_steps.safetensors"


@dataclass
class DemoNetworks:
    """The three networks on one device."""

    dit: NextDiT
    text: TextEncoder
    vae: Autoencoder

    @classmethod
    def create(cls) -> DemoNetworks:
        """Fresh networks with random weights."""
        return cls(NextDiT(DiTConfig()), TextEncoder(TextConfig(), TEXT_LENGTH), Autoencoder())


def read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and decoded metadata of one weight file."""
    if not path.is_file():
        raise FileNotFoundError(f"The demo weight file `{path.name}` must lie in `{path.parent}`: train it or restore it.")
    with safe_open(path, framework="pt") as handle:
        state = {key: handle.get_tensor(key) for key in handle.keys()}
        metadata = handle.metadata() or {}
    plain = {key: metadata[key] for key in ("format", "version") if key in metadata}
    return state, {**{key: json.loads(value) for key, value in metadata.items() if key not in plain}, **plain}


def load_networks(folder: Path = WEIGHTS_FOLDER) -> DemoNetworks:
    """The networks with the weights from `folder`, in float32 on the CPU."""
    networks = DemoNetworks.create()
    for name, module in (("dit", networks.dit), ("text", networks.text), ("vae", networks.vae)):
        state, _ = read_file(folder / FILES[name])
        wanted = {key: value.float() for key, value in state.items() if not key.startswith("vae_")}
        module.load_state_dict(wanted, strict=name != "vae")
    return networks
