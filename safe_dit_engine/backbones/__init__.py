"""Model families as data: where blocks and head are, where image rows are, which arguments are per row."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from .base import Backbone, BlockGroup, RowArgument
from .nextdit import NEXTDIT

__all__ = ["BACKBONES", "Backbone", "BlockGroup", "RowArgument", "Fit", "find_backbone"]

BACKBONES = (NEXTDIT,)


@dataclass(frozen=True)
class Fit:
    """Outcome of looking for a backbone: the backbone, or None with the reason in one sentence."""

    backbone: Backbone | None
    reason: str = ""


def find_backbone(module: nn.Module) -> Fit:
    """The backbone that describes this diffusion module, checked against what the module really has."""
    name = type(module).__name__
    for backbone in BACKBONES:
        if name in backbone.class_names:
            missing = _first_misfit(backbone, module)
            if missing is None:
                return Fit(backbone)
            return Fit(None, f"The model `{name}` no longer fits the {backbone.name} backbone: {missing}; it runs dense.")
    known = ", ".join(sorted(name for backbone in BACKBONES for name in backbone.class_names))
    return Fit(None, f"The model class `{name}` is not supported yet (supported: {known}); it runs dense.")


def _first_misfit(backbone: Backbone, module: nn.Module) -> str | None:
    attributes = (*backbone.required_attributes, *(group.path for group in backbone.groups))
    missing = [name for name in attributes if not hasattr(module, name)]
    if missing:
        return f"it has no `{missing[0]}`"
    if len(getattr(module, backbone.main.path)) == 0:
        return f"its `{backbone.main.path}` is empty"
    for group in backbone.groups:
        for block in getattr(module, group.path):
            names = _positional_names(block.forward)
            for argument in group.row_arguments:
                if len(names) <= argument.position or names[argument.position] != argument.name:
                    return f"argument {argument.position} of a block in `{group.path}` is not `{argument.name}`"
    return None


def _positional_names(function: Callable[..., object]) -> list[str]:
    return list(inspect.signature(function).parameters)
