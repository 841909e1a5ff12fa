"""Model families as data: where blocks and head are, where image rows are, which arguments are per row."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from .base import Backbone, BlockGroup, Extras, Layout, RowArgument, layers_of
from .comfy.aura import AURA
from .comfy.chroma import CHROMA
from .comfy.cosmos import COSMOS
from .comfy.ernie import ERNIE
from .comfy.flux import FLUX
from .comfy.hidream import HIDREAM
from .comfy.hunyuan import HUNYUAN
from .comfy.ideogram import IDEOGRAM
from .comfy.kandinsky import KANDINSKY
from .comfy.krea2 import KREA2
from .comfy.left_dense import LEFT_DENSE
from .comfy.lens import LENS
from .comfy.nextdit import NEXTDIT
from .comfy.omnigen import OMNIGEN2
from .comfy.pixart import PIXART
from .comfy.qwen import MAGE_FLOW, QWEN
from .comfy.sd3 import SD3
from .comfy.wan import WAN, WAN_CLIP

__all__ = ["BACKBONES", "LEFT_DENSE", "Backbone", "BlockGroup", "Extras", "Fit", "Layout", "RowArgument", "find_backbone", "layers_of"]

BACKBONES = (
    NEXTDIT, FLUX, CHROMA, SD3, QWEN, MAGE_FLOW, LENS, HUNYUAN, AURA, HIDREAM, WAN_CLIP, WAN, PIXART, ERNIE, KREA2, COSMOS, IDEOGRAM,
    KANDINSKY, OMNIGEN2,
)  # fmt: skip

# A signature takes some 30 microseconds to read, and every step asks for those of all blocks. Weak: a method that another node put into
# a block may hold the block.
_NAMES_OF_METHODS: WeakKeyDictionary[Callable[..., Any], list[str]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Fit:
    """Outcome of looking for a backbone: the backbone, or None with the reason, a sentence without its end."""

    backbone: Backbone | None
    reason: str = ""


def find_backbone(module: nn.Module, backbones: tuple[Backbone, ...] = BACKBONES) -> Fit:
    """The backbone of a host's table that describes this diffusion module, checked against what the module really has."""
    name = type(module).__name__
    for backbone in backbones:
        if name in backbone.class_names and (backbone.mark is None or _has(module, backbone.mark)):
            missing = _first_misfit(backbone, module)
            if missing is None:
                return Fit(backbone)
            return Fit(None, f"The model `{name}` no longer fits the {backbone.name} backbone: {missing}")
    if name in LEFT_DENSE:
        return Fit(None, f"Part of its tokens cannot be computed alone with the model `{name}`: {LEFT_DENSE[name]}")
    known = ", ".join(sorted({backbone.name for backbone in backbones}))
    return Fit(None, f"The model class `{name}` is not supported yet (supported: {known})")


def _first_misfit(backbone: Backbone, module: nn.Module) -> str | None:
    """What the description names and the module lacks."""
    named = (backbone.head, backbone.patch, backbone.pad, *(group.path for group in backbone.groups))
    paths = [path for path in named if isinstance(path, str)]
    missing = next((path for path in paths if not _has(module, path)), None)
    if missing is not None:
        return f"it has no `{missing}`"
    if all(group.constant or not layers_of(module, group.path) for group in backbone.groups):
        return f"its `{backbone.groups[-1].path}` is empty"
    for group in backbone.groups:
        for name, block in layers_of(module, group.path):
            taken = argument_names(block)
            absent = next((argument for argument in group.arguments if isinstance(argument, str) and argument not in taken), None)
            if absent is not None:
                return f"`{name}` takes no argument `{absent}`"
    return None


def _has(module: nn.Module, path: str) -> bool:
    try:
        attrgetter(path)(module)
    except AttributeError:
        return False
    return True


def argument_names(block: nn.Module) -> list[str]:
    """Names of a block's arguments, in order."""
    forward = block.forward
    if not isinstance(forward, MethodType):
        return _names_of(forward)
    function = forward.__func__
    if function not in _NAMES_OF_METHODS:
        _NAMES_OF_METHODS[function] = _names_of(forward)
    return _NAMES_OF_METHODS[function]


def _names_of(forward: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(forward).parameters)
