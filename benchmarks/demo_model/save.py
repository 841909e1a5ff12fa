"""Writes the weight files that ship."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from safe_dit_engine.demo.autoencoder import LATENT_CHANNELS
from safe_dit_engine.demo.network import NATIVE_GRID, TextConfig
from safe_dit_engine.demo.weights import FILES, SAMPLING, WEIGHTS_FOLDER, DemoNetworks
from safe_dit_engine.demo.words import ALIASES, TEXT_LENGTH, VOCABULARY

VERSION = "1"


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


def save_lora(state: dict[str, Tensor], fields: dict[str, Any], path: Path) -> None:
    """Write a LoRA of the transformer."""
    _save(state, fields, path, torch.bfloat16)


def _save(state: dict[str, Tensor], fields: dict[str, Any], path: Path, dtype: torch.dtype) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt", "version": VERSION, **{key: json.dumps(value) for key, value in fields.items()}}
    part = path.with_suffix(".part")
    save_file({key: value.detach().to("cpu", dtype).contiguous() for key, value in state.items()}, part, metadata)
    part.chmod(0o644)
    os.replace(part, path)
