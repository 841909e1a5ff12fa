"""The vocabulary backbones are written in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from operator import attrgetter
from typing import Any

from torch import Tensor, nn

# Why a call runs in full, where no family says how what is added can be cut down to the rows that are computed.
CONTROLNET = "a ControlNet adds to the image at full length"


class Layout(Enum):
    """What stands in a sequence, in this order. Image rows may be followed by rows that are no token: padding, reference images."""

    IMAGE = "image"
    TEXT = "text"
    TEXT_IMAGE = "text, image"
    IMAGE_TEXT = "image, text"
    CROSS = "image rows look at text rows"

    @property
    def has_image(self) -> bool:
        """Whether keys of image rows stand in it."""
        return self in (Layout.IMAGE, Layout.TEXT_IMAGE, Layout.IMAGE_TEXT)

    @property
    def shows_text(self) -> bool:
        """Whether attention over it tells what image rows think of the text."""
        return self in (Layout.TEXT_IMAGE, Layout.IMAGE_TEXT, Layout.CROSS)


class Extras(Enum):
    """What becomes of image rows that are no token of the picture, in a selective step."""

    ACTIVE = "always computed"
    CONTEXT = "kept like context"


@dataclass(frozen=True)
class RowArgument:
    """An argument of a block, by name or position, with one entry per row of a sequence of `layout` along `dim`: goes with the rows.

    `part`: the place of the tensor, where the argument is a tuple of several.
    """

    name: str | int
    dim: int
    layout: Layout
    part: int | None = None


@dataclass(frozen=True)
class BlockGroup:
    """A list of blocks run one after the other on one sequence.

    `layout`: of the sequence `hidden`, an argument by name or position. `row_arguments`: what else has an entry per row. `attentions`:
    what each attention call of a block attends over, in their order; None and calls beyond the list are left alone. `gathered`: the rows
    come gathered from the group before. `restore`: return to full length after the last block (its output must be one tensor).
    `constant`: what comes out depends on the conditioning alone, so selective calls take what the last refresh gave. `kv_heads`: path, on
    a block, of the number of key heads, where the family repeats them before attention. `unset`: arguments that must be None.
    `single`: arguments with one entry for all rows along a dimension, and the reason to run in full where there are more.
    """

    path: str
    layout: Layout
    hidden: str | int
    row_arguments: tuple[RowArgument, ...] = ()
    attentions: tuple[Layout | None, ...] = ()
    gathered: bool = False
    restore: bool = False
    constant: bool = False
    kv_heads: str | None = None
    unset: tuple[str, ...] = ()
    single: tuple[tuple[str, int, str], ...] = ()

    @property
    def shows_text(self) -> bool:
        """Whether the prompt can be read from its attention."""
        return any(layout.shows_text for layout in self.attentions if layout is not None)

    @property
    def arguments(self) -> tuple[str | int, ...]:
        """Every argument of a block that is named here."""
        return (self.hidden, *(argument.name for argument in self.row_arguments), *self.unset, *(name for name, _, _ in self.single))


@dataclass(frozen=True)
class MaskSource:
    """Every attention mask inside the modules of the list `blocks` is made from their argument `argument`, from shapes and types, and
    from nothing else: so the first verdict of a call serves all layers. Nothing is taken on trust about values."""

    blocks: str
    argument: str


@dataclass(frozen=True)
class Backbone:
    """A model family.

    `class_names`: of the diffusion module; `mark`: path of what only this variant of the class has. `groups` in the order they run. `head`:
    path of the module after the last block that also runs on the active rows, and `head_layout` of the sequence it gets. `patch`: path of
    the token's edge in latent pixels, its last entry counts where there are several; or that edge itself. `pad`: path of the multiple the
    image rows are padded to, or that multiple. `extras`: other image rows behind the tokens. `refusals`: call arguments that change the
    token layout, with the reason; a call that carries one (not empty) runs in full. `controls`: names of the lists in a ControlNet's output
    that are added to image rows. `lent_attention`: Python module whose `optimized_attention` is another for the length of a call, where the
    family gives attention no options. `shared_rows`: some row argument has no batch dimension, so that all images must have the same rows.
    `length_base`: call argument and its entry, a base of the logarithm of the number of rows that scales attention. `mask_source`: what
    the masks of all layers are made from. `smallest`: fewest latent pixels a side that the family runs on. `source`: file that was read.
    """

    name: str
    class_names: tuple[str, ...]
    groups: tuple[BlockGroup, ...]
    head: str
    head_layout: Layout
    mark: str | None = None
    patch: str | int = "patch_size"
    pad: str | int | None = None
    extras: Extras = Extras.ACTIVE
    refusals: tuple[tuple[str, str], ...] = ()
    controls: tuple[str, ...] = ()
    lent_attention: str | None = None
    shared_rows: bool = False
    length_base: tuple[str, str] | None = None
    mask_source: MaskSource | None = None
    smallest: int = 1
    source: str = ""

    def edge(self, module: nn.Module) -> int:
        """Edge of a token in latent pixels."""
        found: Any = self.patch if isinstance(self.patch, int) else attrgetter(self.patch)(module)
        return int(found if isinstance(found, int) else found[-1])

    def refusal(self, arguments: Mapping[str, object]) -> str | None:
        """Why a call with these model arguments must run in full, as the end of a sentence; None if it need not."""
        return next((reason for name, reason in self.refusals if _given(arguments.get(name))), None)

    def can_cut(self, control: Mapping[str, Sequence[Tensor | None]], tokens: int) -> bool:
        """Whether what a ControlNet adds, lists of `[B, tokens, C]` by place, can be cut down to the rows that are computed."""
        given = {place: [add for add in adds if add is not None] for place, adds in control.items()}
        known = all(place in self.controls for place, adds in given.items() if adds)
        return known and all(add.ndim == 3 and add.shape[1] == tokens for adds in given.values() for add in adds)

    def padded(self, module: nn.Module, tokens: int) -> int:
        """Image rows of the sequence: `tokens` plus the model's own padding rows."""
        multiple = attrgetter(self.pad)(module) if isinstance(self.pad, str) else self.pad
        return tokens if not multiple else -(-tokens // multiple) * multiple


def _given(value: object) -> bool:
    return value is not None and not (isinstance(value, (list, tuple)) and not value)


def layers_of(module: nn.Module, path: str) -> list[tuple[str, nn.Module]]:
    """Blocks of a group with their names."""
    return [(f"{path}.{index}", block) for index, block in enumerate(attrgetter(path)(module))]
