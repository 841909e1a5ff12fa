"""Families that give attention no options (PixArt, Ernie-Image): their module's attention function is lent one for the length of a call."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from ..support.families import FAMILIES, PIXART, configured
from .test_backbones import TinyFamily

MODULES = {"PixArt": "comfy.ldm.pixart.blocks", "Ernie-Image": "comfy.ldm.ernie.model"}


@pytest.fixture(scope="module", params=MODULES)
def tiny(request: pytest.FixtureRequest, comfy: Any) -> TinyFamily:
    return TinyFamily(comfy, next(family for family in FAMILIES if family.name == request.param))


def attention(tiny: TinyFamily) -> Any:
    return importlib.import_module(MODULES[tiny.family.name]).optimized_attention


@contextmanager
def watched(block: nn.Module, seen: list[Any], tiny: TinyFamily) -> Iterator[None]:
    handle = block.register_forward_pre_hook(lambda *_: seen.append(attention(tiny)))
    try:
        yield
    finally:
        handle.remove()


def last_block(tiny: TinyFamily) -> nn.Module:
    module = tiny.model.model.diffusion_model
    return (module.blocks if hasattr(module, "blocks") else module.layers)[-1]


def test_lent_for_the_length_of_a_call(tiny: TinyFamily) -> None:
    own = attention(tiny)
    seen: list[Any] = []
    with watched(last_block(tiny), seen, tiny):
        tiny.sample(tiny.accelerated())
    assert len(set(seen)) == len(seen) == 8 and own not in seen
    assert attention(tiny) is own
    with watched(last_block(tiny), seen := [], tiny):
        tiny.sample(tiny.model)
    assert set(seen) == {own}


def test_masks_are_judged_where_steps_are_only_skipped(tiny: TinyFamily) -> None:
    """Nothing is hooked then, but these models are to have their masks elided all the same."""
    values = {"keep_ratio": 0.25, "refresh_interval": 2, "warmup_steps": 2, "forecast": 0.0, "early_refresh": False, "skipped_steps": 1}
    tiny.sample(tiny.comfy.execute("SafeDitAccelerate", model=tiny.model, preset="custom", **values)[0])
    assert tiny.report().counts()["skipped"] > 0
    assert tiny.report().ledger.calls > 0 and "no attention call was seen" not in tiny.report().masks


def test_given_back_after_an_error(tiny: TinyFamily) -> None:
    own = attention(tiny)
    plain = tiny.sample(tiny.model)

    def fail(*_: Any) -> None:
        raise MemoryError("out of memory")

    handle = last_block(tiny).register_forward_pre_hook(fail)
    try:
        with pytest.raises(MemoryError):
            tiny.sample(tiny.accelerated())
    finally:
        handle.remove()
    assert attention(tiny) is own and tiny.leftovers() == []
    assert torch.equal(tiny.sample(tiny.model), plain)


def test_compressed_keys_run_in_full(comfy: Any) -> None:
    """A KV-compressed PixArt: only every second image row has keys."""
    tiny = TinyFamily(comfy, next(family for family in FAMILIES if family.name == "PixArt"))
    compression = {"sampling": "uniform_every", "scale_factor": 2, "kv_compress_layer": [1]}
    tiny.model = configured("PixArtSigma", {**PIXART, "kv_compress_config": compression}, torch.float32)
    assert torch.equal(tiny.sample(tiny.accelerated()), tiny.sample(tiny.model))
    assert tiny.report().notes == ["Computed in full, because the model attends to fewer keys than there are image rows."]
