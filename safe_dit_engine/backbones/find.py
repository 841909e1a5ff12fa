"""Finds the description of a model: every file of a host's folder describes a family, and nothing else has to name it."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from .base import Backbone, MaskSource, layers_of

# A signature takes some 30 microseconds to read, and every step asks for those of all blocks. Weak: a method that another node put into
# a block may hold the block.
_NAMES_OF_METHODS: WeakKeyDictionary[Callable[..., Any], list[str]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Fit:
    """Outcome of looking for a backbone: the backbone, or None with the reason, a sentence without its end."""

    backbone: Backbone | None
    reason: str = ""


def described_in(package: str, path: Sequence[str]) -> tuple[Backbone, ...]:
    """Every backbone that a module of `package`, whose folders are `path`, describes. Variants, which have a mark, come first."""
    names = sorted(info.name for info in pkgutil.iter_modules(path))
    modules = [importlib.import_module(f"{package}.{name}") for name in names]
    found = {id(value): value for module in modules for value in vars(module).values() if isinstance(value, Backbone)}
    return tuple(sorted(found.values(), key=lambda backbone: backbone.mark is None))


def mask_source_of(module: nn.Module, backbones: tuple[Backbone, ...]) -> MaskSource | None:
    """What a model's masks are made from, where its family says so."""
    name = type(module).__name__
    return next((backbone.mask_source for backbone in backbones if name in backbone.class_names), None)


def find_backbone(module: nn.Module, backbones: tuple[Backbone, ...]) -> Fit:
    """The backbone of a host's table that describes this diffusion module, checked against what the module really has."""
    from .comfy.left_dense import LEFT_DENSE

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
