"""The vocabulary backbones are written in."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class RowArgument:
    """A positional argument of a block with one entry per row along `dim`, to be gathered with the rows."""

    position: int
    name: str
    dim: int


@dataclass(frozen=True)
class BlockGroup:
    """A list of blocks run one after the other on one sequence.

    `text_first`: text rows stand before the image rows; else the sequence holds image rows only. `head`: name of the module after the
    last block that also runs on the active rows; without one, rows return to full length after the last block. `constant`: what comes out
    depends on the conditioning alone, so selective calls take the anchor's.
    """

    path: str
    text_first: bool
    row_arguments: tuple[RowArgument, ...]
    head: str | None = None
    constant: bool = False


@dataclass(frozen=True)
class Backbone:
    """A model family.

    `groups` in the order they run, the one with the head last. `patch_attribute` names the patch size, `pad_attribute` the multiple the
    image rows are padded to (None on the module: no padding). `refusals` are call arguments that change the token layout: name ->
    reason; a call that carries one (not empty) runs dense.
    """

    name: str
    class_names: tuple[str, ...]
    groups: tuple[BlockGroup, ...]
    patch_attribute: str
    pad_attribute: str | None
    refusals: tuple[tuple[str, str], ...] = ()

    @property
    def main(self) -> BlockGroup:
        """The group with the head."""
        return self.groups[-1]

    @property
    def required_attributes(self) -> tuple[str, ...]:
        """Attributes a module must have to fit."""
        head = (self.main.head,) if self.main.head else ()
        return (self.patch_attribute, *head)

    def patch(self, module: nn.Module) -> int:
        """Edge of a token in latent pixels."""
        return int(getattr(module, self.patch_attribute))

    def grid(self, module: nn.Module, height: int, width: int) -> tuple[int, int]:
        """Token grid of a latent of `height` x `width` (padded up to whole patches)."""
        patch = self.patch(module)
        return -(-height // patch), -(-width // patch)

    def padded(self, module: nn.Module, tokens: int) -> int:
        """Image rows of the sequence: `tokens` plus the model's own padding rows."""
        multiple = getattr(module, self.pad_attribute, None) if self.pad_attribute else None
        return tokens if not multiple else -(-tokens // multiple) * multiple
