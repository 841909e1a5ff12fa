"""Where a model family's attention masks come from: provenance that certifies them once a call instead of once a layer.

Some models make a new mask tensor in every layer from one tensor they are given. Judging each would read the device once a layer; the
table says what they are made from, so that the first verdict of a call serves all its layers. Nothing is taken on trust about values.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .certify import MaskLedger


@dataclass(frozen=True)
class MaskSource:
    """Every attention mask inside `blocks` is made from their argument `argument`, from shapes and types, and from nothing else."""

    class_name: str
    blocks: str
    argument: str


SOURCES = (
    # comfy/ldm/lens/model.py, LensJointAttention.forward: the joint mask, cast to the type of the queries.
    MaskSource("LensTransformer2DModel", "transformer_blocks", "attention_mask"),
    # comfy/ldm/qwen_image/model.py, Attention.forward: zeros for the image, the text's mask before them. Mage-Flow uses the same blocks.
    MaskSource("QwenImageTransformer2DModel", "transformer_blocks", "encoder_hidden_states_mask"),
    MaskSource("MageFlowTransformer2DModel", "transformer_blocks", "encoder_hidden_states_mask"),
)


@contextmanager
def tracked(module: nn.Module, ledger: MaskLedger) -> Iterator[None]:
    """Tell the ledger, for the length of one model call, what the masks inside each block are made from."""
    origin = next((origin for origin in SOURCES if origin.class_name == type(module).__name__), None)
    handles = [] if origin is None else _hooks(getattr(module, origin.blocks), origin.argument, ledger)
    try:
        yield
    finally:
        ledger.origin = None
        for handle in handles:
            handle.remove()


def _hooks(blocks: Any, argument: str, ledger: MaskLedger) -> list[Any]:
    def enter(_module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        made_from: Tensor | None = kwargs.get(argument)
        ledger.origin = made_from

    def leave(*_: Any) -> None:
        ledger.origin = None

    handles = [block.register_forward_pre_hook(enter, with_kwargs=True) for block in blocks]
    return handles + [block.register_forward_hook(leave) for block in blocks]
