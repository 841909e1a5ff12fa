"""Loads a `diffusers` pipeline for the command line: from a folder or the local cache of models, or with random weights.

Everything that can be seen before weights are read is looked at first, and what is missing is said in one sentence: FileNotFoundError where
something is not there, ValueError where it is, and cannot be used.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from huggingface_hub import constants, snapshot_download
from torch import Tensor, nn

INDEX = "model_index.json"
SAVED = "a folder that `save_pretrained` of a pipeline wrote"
SAVE_AGAIN = "Save the whole pipeline again with `save_pretrained`."
# All that random weights need; the rest of a model is not looked for.
DRAWN = ("transformer", "scheduler")


@dataclass(frozen=True)
class Source:
    """A pipeline as its folder describes it. `index`: what `model_index.json` says."""

    folder: Path
    index: Mapping[str, Any]

    @property
    def pipeline(self) -> Any:
        """The pipeline's class."""
        return getattr(diffusers, self.index["_class_name"])

    def parts(self) -> list[str]:
        """The names of its parts, those that it is saved without left out."""
        return [name for name, value in self.index.items() if isinstance(value, list) and value[0] is not None]


@dataclass(frozen=True)
class TextShape:
    """What a pipeline makes of a prompt: `tokens` rows, and which entries of the transformer's configuration say how wide they are.

    `mask`: under which name it wants a mask of the rows. `listed`: as a list of `[tokens, width]`, not as `[1, tokens, width]`.
    `others`: further arguments of the pipeline.
    """

    tokens: int
    width: str
    pooled: str = ""
    mask: str = ""
    listed: bool = False
    others: Mapping[str, Any] = field(default_factory=dict)


JOINT, POOLED, MASK = "joint_attention_dim", "pooled_projection_dim", "prompt_attention_mask"
# As many rows as the pipeline pads every prompt to; of the last two, which do not pad, those of a long prompt.
TEXTS = {
    "SD3Transformer2DModel": TextShape(77 + 256, JOINT, POOLED),
    "FluxTransformer2DModel": TextShape(512, JOINT, POOLED),
    "LuminaNextDiT2DModel": TextShape(256, "cross_attention_dim", mask=MASK),
    # Sizes are to be those asked for, not the nearest it was trained with.
    "PixArtTransformer2DModel": TextShape(300, "caption_channels", mask=MASK, others={"use_resolution_binning": False}),
    "Lumina2Transformer2DModel": TextShape(256, "cap_feat_dim", mask=MASK),
    "ZImageTransformer2DModel": TextShape(128, "cap_feat_dim", listed=True),
    "QwenImageTransformer2DModel": TextShape(128, JOINT, mask="prompt_embeds_mask"),
}


# What is there


def find_source(model: str, download: bool, drawn: bool) -> Source:
    """The pipeline behind a folder or a model id; `download` lets an id be fetched. `drawn`: its weights will be random.

    FileNotFoundError where it, or a part of it, is not there; ValueError where it makes no pictures by a transformer that is known.
    """
    folder = _folder_of(model, download)
    if not (folder / INDEX).is_file():
        raise FileNotFoundError(f"`{model}` has no `{INDEX}`; give {SAVED}, not one of its parts.")
    source = Source(folder, json.loads((folder / INDEX).read_text(encoding="utf-8")))
    _judge_class(source)
    wanted = [name for name in source.parts() if name in DRAWN or not drawn]
    missing = [name for name in wanted if not (folder / name).is_dir()]
    if missing:
        names = ", ".join(f"`{name}`" for name in missing)
        raise FileNotFoundError(f"`{model}` lacks the folder of {names}, which its `{INDEX}` names. {SAVE_AGAIN}")
    if drawn:
        text_shape(source.index["transformer"][1])
    return source


def _folder_of(model: str, download: bool) -> Path:
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ValueError(f"`{model}` is a file; give {SAVED}, or a model id.")
    try:
        return _cached(model, download)
    # A name that cannot be an id is a ValueError of the hub's.
    except (OSError, ValueError) as error:
        where = f"`{model}` is neither a folder nor in the local cache of models, `{constants.HF_HUB_CACHE}`"
        if download:
            raise FileNotFoundError(f"{where}, and it could not be downloaded: {_first_line(error)}") from error
        raise FileNotFoundError(f"{where}. Give {SAVED}, or add `--download` to let a model id be downloaded.") from error


def _cached(model: str, download: bool) -> Path:
    """The folder of the cache with a model's configurations."""
    try:
        return Path(snapshot_download(model, allow_patterns=["*.json"], local_files_only=True))
    except FileNotFoundError:
        if not download:
            raise
    return Path(snapshot_download(model, allow_patterns=["*.json"]))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _judge_class(source: Source) -> None:
    name = source.index["_class_name"]
    if not hasattr(diffusers, name):
        raise ValueError(f"The pipeline `{name}` is not in `diffusers` {diffusers.__version__}; install the version it was saved by.")
    if "transformer" not in source.parts():
        raise ValueError(f"The pipeline `{name}` has no `transformer`; only diffusion transformers can be accelerated.")
    if "num_frames" in _arguments_of(source.pipeline):
        raise ValueError(f"The pipeline `{name}` makes videos; `generate` makes pictures. In Python, `apply` takes it.")


def _arguments_of(pipeline: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(pipeline.__call__).parameters


# Loading


def load(model: str, source: Source, download: bool, dtype: torch.dtype) -> Any:
    """The pipeline with its weights, in system memory; FileNotFoundError where there are none."""
    # A folder of the cache may hold configurations alone; an id finds the rest.
    is_folder = Path(model).expanduser().is_dir()
    try:
        place = str(source.folder) if is_folder else model
        return diffusers.DiffusionPipeline.from_pretrained(place, dtype=dtype, local_files_only=is_folder or not download)
    except OSError as error:
        hint = "Where only speed and memory are wanted, `--random-weights` needs none."
        raise FileNotFoundError(f"The weights of `{model}` cannot be read: {_first_line(error)} {hint}") from error


def load_random(source: Source, device: str, dtype: torch.dtype) -> Any:
    """The pipeline with a transformer of random weights on `device`, its scheduler, and nothing else: no text encoder, no VAE."""
    scheduler = getattr(diffusers, source.index["scheduler"][1]).from_pretrained(str(source.folder), subfolder="scheduler")
    return pipeline_of(source.pipeline, {"transformer": _drawn(source, device, dtype), "scheduler": scheduler})


def pipeline_of(kind: Any, parts: Mapping[str, Any]) -> Any:
    """A pipeline of these parts, and None for all others that it must be given."""
    parameters = inspect.signature(kind.__init__).parameters.values()
    needed = [parameter.name for parameter in parameters if parameter.default is parameter.empty and parameter.name != "self"]
    return kind(**{**dict.fromkeys(needed), **parts})


def made_on(device: str, dtype: torch.dtype, make: Callable[[], nn.Module]) -> nn.Module:
    """What `make` gives, on the device and in the type from the start: in a larger type it may not fit where it does in its own."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return make().eval()
    finally:
        torch.set_default_dtype(before)


def _drawn(source: Source, device: str, dtype: torch.dtype) -> nn.Module:
    model_class = getattr(diffusers, source.index["transformer"][1])
    config = model_class.load_config(str(source.folder), subfolder="transformer")
    model = made_on(device, dtype, partial(model_class.from_config, config))
    generator = torch.Generator(device).manual_seed(0)
    for weight in model.parameters():
        # As they come, some gates are zero, and blocks do nothing.
        nn.init.normal_(weight, std=0.3 if weight.ndim == 1 else weight.shape[-1] ** -0.5, generator=generator)
    return model.to(device)


def text_shape(transformer: str) -> TextShape:
    """What a prompt becomes for a transformer of this class; ValueError where that is not known."""
    if transformer not in TEXTS:
        raise ValueError(f"`--random-weights` does not know what prompts `{transformer}` takes; it knows those of {', '.join(TEXTS)}.")
    return TEXTS[transformer]


# Calling


@dataclass(frozen=True)
class Asked:
    """What a user asks of every picture; None: the pipeline's own."""

    steps: int | None = None
    width: int | None = None
    height: int | None = None
    guidance: float | None = None
    negative: str | None = None


def call_arguments(pipe: Any, asked: Asked) -> dict[str, Any]:
    """What a pipeline calls the things asked for; ValueError where it has no use for the negative prompt."""
    known, negative = _arguments_of(type(pipe)), asked.negative
    scale = "guidance_scale" if _is_distilled(pipe) or "true_cfg_scale" not in known else "true_cfg_scale"
    guidance = known[scale].default if asked.guidance is None else asked.guidance
    if negative is not None and (_is_distilled(pipe) or "negative_prompt" not in known or guidance <= 1.0):
        raise ValueError(f"`--negative` has no effect on this `{type(pipe).__name__}`: its guidance is distilled, or not above 1.")
    if scale == "true_cfg_scale" and asked.guidance is not None and negative is None:
        negative = " "  # without a negative prompt it would not guide
    sizes = {"num_inference_steps": asked.steps, "width": asked.width, "height": asked.height}
    found = {**sizes, scale: asked.guidance, "negative_prompt": negative}
    return {name: value for name, value in found.items() if value is not None}


def random_prompt(pipe: Any, seed: int) -> dict[str, Any]:
    """Arguments that stand for a prompt and, where there is one, a negative prompt, with random numbers."""
    shape, config = text_shape(type(pipe.transformer).__name__), pipe.transformer.config
    generator = torch.Generator().manual_seed(seed)
    has_negative = "negative_prompt" in _arguments_of(type(pipe)) and not _is_distilled(pipe)
    found: dict[str, Any] = {**shape.others, **({"negative_prompt": None} if has_negative else {})}
    for sign in ("", "negative_") if has_negative else ("",):
        rows = _noise(pipe, generator, shape.tokens, config[shape.width])
        found[f"{sign}prompt_embeds"] = list(rows) if shape.listed else rows
        if shape.pooled:
            found[f"{sign}pooled_prompt_embeds"] = _noise(pipe, generator, config[shape.pooled])
        if shape.mask:
            found[f"{sign}{shape.mask}"] = torch.ones(1, shape.tokens, dtype=torch.int64, device=rows.device)
    return found


def _noise(pipe: Any, generator: torch.Generator, *shape: int) -> Tensor:
    # Where parts are offloaded, the transformer's own device is not the one it runs on.
    return torch.randn(1, *shape, generator=generator, dtype=torch.float32).to(pipe._execution_device, pipe.transformer.dtype)


def _is_distilled(pipe: Any) -> bool:
    """Whether the transformer is told the guidance, instead of being called for a negative prompt, too."""
    return bool(pipe.transformer.config.get("guidance_embeds"))
