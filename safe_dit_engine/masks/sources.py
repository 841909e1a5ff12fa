"""What the masks of a model are made from: certifies them once a call instead of once a layer.

Some models make a new mask tensor in every layer from one tensor they are given. Judging each would read the device once a layer; the
model's backbone says what they are made from, so that the first verdict of a call serves all its layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

from torch import nn

from ..backbones import MaskSource
from .ledger import MaskLedger


@contextmanager
def tracked(module: nn.Module, source: MaskSource | None, ledger: MaskLedger) -> Iterator[None]:
    """Tell the ledger, for the length of one model call, what the masks inside each block are made from."""
    handles = [] if source is None else _hooks(attrgetter(source.blocks)(module), source.argument, ledger)
    try:
        yield
    finally:
        ledger.enter(None)
        for handle in handles:
            handle.remove()


def _hooks(blocks: Any, argument: str, ledger: MaskLedger) -> list[Any]:
    def enter(_module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ledger.enter(kwargs.get(argument))

    def leave(*_: Any) -> None:
        ledger.enter(None)

    handles = [block.register_forward_pre_hook(enter, with_kwargs=True) for block in blocks]
    return handles + [block.register_forward_hook(leave) for block in blocks]
