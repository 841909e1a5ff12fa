"""One reduction per mask, a verdict dies with what it was made for, and what was found is said (DESIGN: promises 2, 3)."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from safe_dit_engine.masks import ledger as masks_module
from safe_dit_engine.masks.certify import Certificate, Verdict, certify
from safe_dit_engine.masks.ledger import MaskLedger, MaskMode
from safe_dit_engine.masks.sdpa import sdpa

LOWEST = torch.finfo(torch.float32).min
Ruled = Callable[[Tensor], Certificate | None]


def ruler(ledger: MaskLedger) -> Ruled:
    """The ledger's rule for attention that fits the mask."""
    return lambda mask: ledger.rule(mask, tuple(mask.shape))


@contextmanager
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """What is judged meanwhile."""
    judged: list[Tensor] = []
    with monkeypatch.context() as patch:
        patch.setattr(masks_module, "certify", lambda mask: judged.append(mask) or certify(mask))
        yield judged


def test_one_reduction_per_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, mask = MaskLedger(), torch.zeros(1, 1, 4, 4)
    with counting(monkeypatch) as judged:
        for _ in range(50):
            ruler(ledger)(mask)
            ruler(ledger)(mask.expand(2, 3, 4, 4))
    assert len(judged) == 2
    assert (ledger.calls, ledger.masked, ledger.elided) == (100, 100, 100)


def test_one_read_of_the_device_per_mask() -> None:
    reads: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten._to_copy.default, torch.ops.aten.equal.default):
                reads.append(str(func))
            return func(*args, **(kwargs or {}))

    ledger, masks = MaskLedger(), [torch.zeros(1, 1, 1, 6), torch.tensor([True] * 4 + [False] * 2).view(1, 1, 1, 6)]
    q, k, v = (torch.randn(1, 2, 6, 4) for _ in range(3))
    for mask in masks:
        sdpa(q, k, v, mask, ledger=ledger)
    with Watch():
        for _ in range(20):
            for given_mask in [*masks, None]:
                sdpa(q, k, v, given_mask, ledger=ledger)
        assert reads == []
        float(masks[0][0, 0, 0, 0])
        assert len(reads) == 1, "this watch would see a read"


def test_a_verdict_dies_when_the_mask_or_its_base_is_written_to() -> None:
    ledger, mask = MaskLedger(), torch.zeros(1, 1, 4, 4)
    view = mask.expand(2, 1, 4, 4)
    assert ruler(ledger)(mask) and ruler(ledger)(view)
    mask[0, 0, 0, 0] = -torch.inf
    assert ruler(ledger)(mask) is None
    assert ruler(ledger)(view) is None


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 3), st.integers(0, 5), st.sampled_from([-math.inf, -100.0, LOWEST]), st.booleans())
def test_one_entry_flipped_is_judged_anew(row: int, column: int, value: float, inference: bool) -> None:
    with torch.inference_mode(inference):
        ledger, mask = MaskLedger(), torch.zeros(1, 1, 4, 6)
        first = ruler(ledger)(mask)
        assert first is not None and first.verdict is Verdict.ELIDE
        mask[0, 0, row, column] = value
        assert ruler(ledger)(mask) is None
        mask[0, 0, row, column] = 0.0
        again = ruler(ledger)(mask)
        assert again is not None and again.verdict is Verdict.ELIDE


def test_a_new_mask_in_the_same_memory_is_judged_anew() -> None:
    ledger, memory = MaskLedger(), torch.zeros(64)
    for value, expected in ((0.0, True), (1.0, False), (0.0, True)):
        memory[3] = value
        mask = torch.frombuffer(memory.numpy(), dtype=torch.float32, count=16).view(1, 1, 4, 4)
        assert mask.data_ptr() == memory.data_ptr()
        assert (ruler(ledger)(mask) is not None) is expected
        del mask


def test_another_batch_is_judged_anew() -> None:
    ledger = MaskLedger()
    mask = torch.ones(2, 1, 1, 4, dtype=torch.bool)
    assert ledger.rule(mask, (2, 1, 4, 4)) is not None
    assert ledger.rule(mask, (4, 1, 4, 4)) is None
    assert "does not fit" in ledger.sentence()


def test_a_verdict_on_an_inference_tensor_lasts_one_model_call() -> None:
    with torch.inference_mode():
        ledger, mask = MaskLedger(bracketed=True), torch.zeros(1, 1, 4, 4)
        assert ruler(ledger)(mask) is not None
        mask[0, 0, 0, 0] = -torch.inf
        ledger.begin_call()
        assert ruler(ledger)(mask) is None


def test_every_thread_has_its_own_source() -> None:
    """A model split over two GPUs: each thread is in a block of its own, with masks of its own."""
    ledger = MaskLedger(bracketed=True)
    together = threading.Barrier(2)
    found: dict[int, list[str]] = {3: [], 5: []}

    def work(attended: int) -> None:
        with torch.inference_mode():
            mask = torch.arange(8)[None, None, None] < attended
            for _ in range(20):
                together.wait()
                ledger.enter(mask)
                together.wait()
                certificate = ruler(ledger)(mask.clone())
                found[attended].append("" if certificate is None else certificate.reason)
                together.wait()
                ledger.enter(None)

    threads = [threading.Thread(target=work, args=(attended,)) for attended in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(reasons == [f"padding: {attended} of 8 keys are attended"] * 20 for attended, reasons in found.items())


def test_masks_made_from_one_tensor_are_judged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, made_from = MaskLedger(), torch.zeros(1, 6)
    ledger.enter(made_from)
    with counting(monkeypatch) as judged:
        for _ in range(30):
            assert ruler(ledger)(made_from.clone().view(1, 1, 1, 6)) is not None
    assert len(judged) == 1
    made_from[0, 3] = -torch.inf
    certificate = ruler(ledger)(made_from.clone().view(1, 1, 1, 6))
    assert certificate is not None and certificate.verdict is Verdict.TRIM


# What is said


def test_observing_removes_nothing() -> None:
    ledger, mask = MaskLedger(MaskMode.OBSERVE), torch.zeros(1, 1, 4, 4)
    assert ruler(ledger)(mask) is None
    assert "1 of 1 attention calls carried a mask: 0 elided" in ledger.sentence()
    assert "could be elided" in ledger.sentence()


def test_nothing_to_gain_is_said_plainly() -> None:
    ledger = MaskLedger()
    for _ in range(1240):
        ledger.rule(None, ())
    assert ledger.sentence() == "0 of 1,240 attention calls carried a mask: nothing to elide"


def test_everything_found_is_said() -> None:
    ledger = MaskLedger()
    for mask in (torch.zeros(1, 4), torch.tensor([True, True, False, False]), torch.ones(4, 4, dtype=torch.bool).tril()):
        ledger.rule(mask, (1, 1, 4, 4))
    ledger.rewrote("SDPA", lambda: "math kernel with the mask, flash kernel without")
    assert ledger.sentence() == (
        "3 of 3 attention calls carried a mask: 1 elided; 1 trimmed (padding: 2 of 4 keys are attended); "
        "1 kept because it differs between queries or heads; math kernel with the mask, flash kernel without"
    )
    assert ledger.counts() == {
        "calls": 3, "masked": 3, "elided": 1, "trimmed": 1, "kept": 1,
        "reasons": {"padding: 2 of 4 keys are attended": 1, "it differs between queries or heads": 1},
        "backends": {"SDPA": "math kernel with the mask, flash kernel without"},
    }  # fmt: skip
