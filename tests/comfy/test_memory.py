"""Memory between refreshes, in whole runs: predicted as measured, given back when it runs out, other precisions close."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ..support.families import FAMILIES
from .conftest import InProcessComfy, TinyNextDiT
from .test_backbones import TinyFamily

Record = Callable[[str, object], None]
FLUX = next(family for family in FAMILIES if family.name == "Flux")
SELECTIVE: dict[str, Any] = {"keep": 0.25, "interval": 4, "warmup": 2}


@pytest.fixture(scope="module")
def grouped(comfy: InProcessComfy) -> TinyNextDiT:
    """A NextDiT that repeats its key heads before attention, as the published ones do."""
    return TinyNextDiT(comfy, n_heads=4, n_kv_heads=2, axes_dims=[8, 8, 8])


@pytest.fixture(scope="module")
def flux(comfy: InProcessComfy) -> TinyFamily:
    return TinyFamily(comfy, FLUX)


def with_cache(tiny: Any, mode: str, **changes: Any) -> Any:
    """The accelerated model with another way of keeping keys and values."""
    host, schedule = (tiny.comfy.engine(name) for name in ("hosts.comfy.wrappers", "steps.plan"))
    model = tiny.accelerated(**{**SELECTIVE, **changes})
    known = host.config_of(model).schedule
    return host.configure(model, schedule=importlib.import_module("dataclasses").replace(known, cache=schedule.CacheMode(mode)))


# Predicted and measured


@pytest.mark.parametrize(("mode", "plenty"), [("model precision", True), ("model precision", False), ("8 bit", False)])
@pytest.mark.parametrize("keep", [0.1, 0.5])
@pytest.mark.parametrize("family", ["tiny", "grouped", "padded", "flux"])
def test_predicted_is_measured(
    request: pytest.FixtureRequest, family: str, keep: float, mode: str, plenty: bool, record_property: Record
) -> None:
    tiny = request.getfixturevalue(family)
    if not plenty:
        request.getfixturevalue("monkeypatch").setattr(tiny.comfy.engine("selective.memory"), "PLENTY", 0.0)
    tiny.sample(with_cache(tiny, mode, keep=keep), images=2)
    report = tiny.report()
    record_property("predicted over measured", report.cache_predicted / report.cache_bytes)
    assert report.cache_predicted == pytest.approx(report.cache_bytes, rel=0.05)


def test_prompts_that_run_one_by_one(flux: TinyFamily) -> None:
    flux.sample(with_cache(flux, "auto"), tokens=(24, 17))
    assert flux.report().cache_predicted == pytest.approx(flux.report().cache_bytes, rel=0.05)


@pytest.mark.parametrize("plenty", [True, False])
def test_repeated_heads_are_kept_once(grouped: TinyNextDiT, monkeypatch: pytest.MonkeyPatch, plenty: bool) -> None:
    """Keys and values for two conds, 2 of 4 heads of 24 numbers: of 64 tokens in the refiner, of 104 rows in three layers; or, where
    memory is scarce, of 48 tokens each."""
    if not plenty:
        monkeypatch.setattr(grouped.comfy.engine("selective.memory"), "PLENTY", 0.0)
    seen: list[int] = []
    grouped.sample(watched(with_cache(grouped, "auto"), lambda run: seen.append(run.partial.cache.bytes)))
    rows = 64 + 3 * 104 if plenty else 4 * 48
    head, refiner = 2 * (64 + 40) * 64 * 4, 2 * 40 * 96 * 4
    assert max(seen) == 2 * rows * 2 * 2 * 24 * 4 + head + refiner
    assert grouped.report().cache_predicted == pytest.approx(grouped.report().cache_bytes, rel=0.05)


# Precision


def test_eight_bits_stay_close(tiny: TinyNextDiT, record_property: Record) -> None:
    dense, exact = tiny.sample(tiny.model), tiny.sample(with_cache(tiny, "model precision"))
    coarse = tiny.sample(with_cache(tiny, "8 bit"))
    assert "8 bit" in tiny.report().log_line()
    drift, cost = (float((a - b).norm() / b.norm()) for a, b in ((coarse, exact), (exact, dense)))
    record_property("drift of 8 bit over what holding costs", drift / cost)
    assert 0 < drift < 0.3 * cost


def test_auto_is_exact_where_there_is_room(tiny: TinyNextDiT) -> None:
    assert torch.equal(tiny.sample(with_cache(tiny, "auto")), tiny.sample(with_cache(tiny, "model precision")))


# When memory runs out


def watched(model: Any, look: Callable[[Any], None]) -> Any:
    """The model, with `look(run)` after every call."""

    def after(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        output: Tensor = executor(*args, **kwargs)
        look(next(value for value in args if isinstance(value, dict) and "uuids" in value)["safe_dit_run"].run)
        return output

    patched = model.clone()
    patched.add_wrapper_with_key(importlib.import_module("comfy.patcher_extension").WrappersMP.APPLY_MODEL, "after", after)
    return patched


@pytest.mark.parametrize("at_call", [2, 4, 6])
def test_out_of_memory_finishes_the_picture(tiny: TinyNextDiT, at_call: int) -> None:
    """In the second call a cache is being filled, later ones are selective or a refresh."""
    calls, kept = 0, []

    def fail(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == at_call:
            raise torch.OutOfMemoryError("no memory left")

    accelerated = tiny.accelerated(**SELECTIVE)
    hook = tiny.model.model.diffusion_model.layers[1].register_forward_pre_hook(fail)
    try:
        found = tiny.sample(watched(accelerated, lambda run: kept.append(run.partial.bytes)))
    finally:
        hook.remove()
    assert found.isfinite().all()
    assert [note for note in tiny.report().notes if "memory ran out" in note]
    assert kept[at_call - 1 :] == [0] * len(kept[at_call - 1 :]) and len(kept) == 8
    assert tiny.leftovers() == []
    assert torch.equal(tiny.sample(accelerated), tiny.sample(tiny.accelerated(**SELECTIVE)))
    if at_call == 2:
        assert torch.equal(found, tiny.sample(tiny.model)), "nothing had been left out yet"
