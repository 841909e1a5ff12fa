"""The shipped weight files: what they are called, what their metadata says, writing and reading them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .network import LATENT_CHANNELS, NATIVE_GRID, Autoencoder, DiTConfig, NextDiT, TextConfig, TextEncoder
from .scenes import ALIASES, TEXT_LENGTH, VOCABULARY

WEIGHTS_FOLDER = Path(__file__).parent / "weights"
FILES = {"dit": "demo_dit.safetensors", "text": "demo_text.safetensors", "vae": "demo_vae.safetensors"}
VERSION = "1"
SAMPLING: dict[str, Any] = {"shift": 2.0, "steps": 20, "cfg": 4.0, "sampler": "euler", "scheduler": "simple"}


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


def save_transformer(networks: DemoNetworks, training: dict[str, Any], folder: Path = WEIGHTS_FOLDER) -> None:
    """Write transformer and text encoder, which belong together; each file appears whole or not at all."""
    dit = {"unet_config": networks.dit.config.unet_config(), "sampling": SAMPLING, "native_grid": NATIVE_GRID, "training": training}
    text = {"text_config": TextConfig().model_config(), "vocabulary": VOCABULARY, "aliases": ALIASES, "text_length": TEXT_LENGTH}
    _save(networks.dit.state_dict(), dit, folder / FILES["dit"], torch.bfloat16)
    _save(networks.text.state_dict(), text, folder / FILES["text"], torch.float16)


def save_autoencoder(networks: DemoNetworks, training: dict[str, Any], folder: Path = WEIGHTS_FOLDER) -> None:
    """Write the autoencoder in the stock loader's format."""
    fields = {"latent_channels": LATENT_CHANNELS, "training": training}
    _save(networks.vae.stock_state(), fields, folder / FILES["vae"], torch.float16)


def _save(state: dict[str, Tensor], fields: dict[str, Any], path: Path, dtype: torch.dtype) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt", "version": VERSION, **{key: json.dumps(value) for key, value in fields.items()}}
    part = path.with_suffix(".part")
    save_file({key: value.detach().to("cpu", dtype).contiguous() for key, value in state.items()}, part, metadata)
    part.chmod(0o644)
    os.replace(part, path)


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
