"""Certified masks in ComfyUI's own models: the same picture, one reduction a model call, whatever else sits in the override's slot."""

from __future__ import annotations

import asyncio
import importlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load as load_safetensors
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from devtools.server import PACK_NAME, PACK_ROOT, ComfyServer, RunResult

STAND_IN = Path(__file__).parents[1] / "support" / "stand_in_pack"
OVERRIDE = "optimized_attention_override"
STEPS, LAYERS = 6, {"lens": 2, "lens_in_bfloat16": 2, "qwen": 3}
FAMILIES = list(LAYERS)
BACKENDS = ["attention_pytorch", "attention_sub_quad", "attention_split"]
LOWEST = torch.finfo(torch.float32).min

Record = Callable[[str, object], None]

# Padding of the positive and the negative prompt, and their lengths: in one batch, each on its own, or without a mask of the text's own.
PADDED = {"one batch": (9, 4, (24, 24)), "as much": (9, 9, (24, 24)), "two batches": (9, 3, (24, 17)), "one prompt": (9, 0, (24, 24))}


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Any:
    """Each family in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture(params=BACKENDS)
def lens_on(request: pytest.FixtureRequest, lens: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, str]:
    """The tiny Lens on each of the attention functions a CPU has, and the function's name."""
    function = getattr(attention_module(), request.param)
    monkeypatch.setattr(importlib.import_module("comfy.ldm.lens.model"), "optimized_attention", function)
    return lens, request.param


def attention_module() -> Any:
    return importlib.import_module("comfy.ldm.modules.attention")


def difference(picture: Tensor, reference: Tensor) -> float:
    """Largest difference over the largest value."""
    return float((picture - reference).abs().max() / reference.abs().max())


def rms_difference(picture: Tensor, reference: Tensor) -> float:
    """Root mean square of the difference."""
    return float((picture - reference).pow(2).mean().sqrt())


def trimmed_and_not(tiny: Any, padding: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures of two images a prompt: trimmed, as the model comes, and as it comes with texts of the same lengths without padding."""
    changes = {**tiny.prompts(*padding), "images": 2}
    found, plain = tiny.sample(tiny.certified(), **changes), tiny.sample(tiny.model, **changes)
    assert " trimmed (padding: " in tiny.report().masks and "kept" not in tiny.report().masks
    unpadded = tiny.sample(tiny.model, **tiny.prompts(0, 0, padding[2]), images=2)
    assert difference(unpadded, plain) > 0.03, "the padding mattered"
    assert tiny.leftovers() == []
    return found, plain, unpadded


@contextmanager
def judged(tiny: Any) -> Iterator[list[Tensor]]:
    """The masks the pack reduces meanwhile."""
    masks, seen = tiny.comfy.engine("masks.ledger"), []
    certify = masks.certify
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks, "certify", lambda mask: seen.append(mask) or certify(mask))
        yield seen


@contextmanager
def model_calls(tiny: Any) -> Iterator[list[int]]:
    """The batch sizes the diffusion model is called with meanwhile."""
    sizes: list[int] = []
    hook = tiny.model.model.diffusion_model.register_forward_pre_hook(lambda _module, args: sizes.append(args[0].shape[0]))
    try:
        yield sizes
    finally:
        hook.remove()


# The same picture


def test_lens_pays_for_a_mask_that_says_nothing(lens_on: tuple[Any, str], record_property: Record) -> None:
    lens, backend = lens_on
    found, plain = lens.sample(lens.certified()), lens.sample(lens.model)
    record_property("largest difference", difference(found, plain))
    assert difference(found, plain) <= 1e-5
    assert lens.report().masks.startswith(f"12 of 12 attention calls carried a mask: 12 elided; {backend}")
    assert lens.leftovers() == []


@pytest.mark.parametrize("padding", PADDED.values(), ids=PADDED)
@pytest.mark.parametrize("family", ["lens", "qwen"])
def test_padded_text_is_trimmed(family: str, padding: Any, request: pytest.FixtureRequest, record_property: Record) -> None:
    """Two images a prompt, so that the rows of one prompt stand together in the batch."""
    tiny = request.getfixturevalue(family)
    found, plain, _ = trimmed_and_not(tiny, padding)
    record_property("largest difference", difference(found, plain))
    assert difference(found, plain) <= 1e-5


def own_keys_only(func: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor, **kwargs: Any) -> Tensor:
    """What trimming means, spelled out: each row of the batch on its own, with the keys its mask lets through and no mask."""
    keys, found = 2 if kwargs.get("skip_reshape") else 1, []
    for row, let_through in enumerate((mask > -1e4).expand(q.shape[0], *mask.shape[1:]).flatten(1, -2)):
        assert (let_through == let_through[0]).all(), "every query has the same keys"
        own_k, own_v = (part[row, None].index_select(keys, let_through[0].nonzero()[:, 0]) for part in (k, v))
        found.append(func(q[row, None], own_k, own_v, heads, mask=None, **kwargs))
    return torch.cat(found)


@pytest.mark.parametrize("padding", PADDED.values(), ids=PADDED)
def test_padded_text_is_trimmed_in_bfloat16(lens_in_bfloat16: Any, lens: Any, padding: Any, record_property: Record) -> None:
    """No two CPUs round alike there. The judges: trimming spelled out in the same arithmetic, and float32: it goes no farther from it."""
    found, plain, unpadded = trimmed_and_not(lens_in_bfloat16, padding)
    spelled_out = lens_in_bfloat16.model.clone()
    spelled_out.model_options["transformer_options"][OVERRIDE] = own_keys_only
    eager = lens_in_bfloat16.sample(spelled_out, **lens_in_bfloat16.prompts(*padding), images=2)
    exact = lens.sample(lens.model, **lens.prompts(*padding), images=2)
    record_property("largest difference", difference(found, eager))
    record_property("of the way to float32", rms_difference(found, exact) / rms_difference(plain, exact))
    record_property("of the padding's effect", rms_difference(found, plain) / rms_difference(unpadded, plain))
    assert difference(found, eager) <= 1e-5
    assert rms_difference(found, exact) <= 1.01 * rms_difference(plain, exact)
    assert rms_difference(found, plain) <= rms_difference(unpadded, plain) / 3


def test_padded_text_on_every_backend(lens_on: tuple[Any, str], record_property: Record) -> None:
    lens, backend = lens_on
    prompts = lens.prompts(9, 4)
    found, plain = lens.sample(lens.certified(), **prompts), lens.sample(lens.model, **prompts)
    record_property("largest difference", difference(found, plain))
    assert difference(found, plain) <= 1e-5
    trimmed = "12 of 12 attention calls carried a mask: 0 elided; 12 trimmed (padding: 115 to 120 of 124 keys are attended, in 2 groups"
    assert lens.report().masks.startswith(trimmed) and backend in lens.report().masks


def test_qwen_without_padding_carries_no_mask(qwen: Any) -> None:
    assert torch.equal(qwen.sample(qwen.certified()), qwen.sample(qwen.model))
    assert qwen.report().masks == "0 of 3 attention calls carried a mask: nothing to elide", "in later model calls nobody looks"


def test_a_text_mask_of_weights_is_kept(qwen: Any) -> None:
    """Numbers that are not 0 and 1 of an integer type are added to the logits by Qwen-Image: no padding, though they look like it."""
    prompts = qwen.prompts(9, 4)
    for prompt in prompts.values():
        prompt[0][1]["attention_mask"] = prompt[0][1]["attention_mask"].float()
    assert torch.equal(qwen.sample(qwen.certified(), **prompts), qwen.sample(qwen.model, **prompts))
    assert qwen.report().masks == "18 of 18 attention calls carried a mask: 0 elided; 18 kept because it weighs keys differently"


# One reduction a model call


@pytest.mark.parametrize("padding", [(9, 4, (24, 24)), (9, 3, (24, 17))], ids=["one batch", "two batches"])
def test_one_reduction_a_model_call(model: Any, padding: Any) -> None:
    with judged(model) as masks, model_calls(model) as calls:
        model.sample(model.certified(), **model.prompts(*padding))
    assert calls == ([2] * STEPS if padding[2] == (24, 24) else [1] * 2 * STEPS)
    assert len(masks) == len(calls)


@pytest.mark.parametrize("family", ["lens_in_bfloat16", "qwen"])
def test_of_an_unknown_source_it_is_one_a_layer(family: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counting above can fail; and a family nobody has listed gets the same picture."""
    tiny = request.getfixturevalue(family)
    prompts = tiny.prompts(9, 4)
    known = tiny.sample(tiny.certified(), **prompts)
    monkeypatch.setattr(tiny.comfy.engine("hosts.comfy.calls"), "mask_source_of", lambda *_: None)
    with judged(tiny) as masks:
        assert torch.equal(tiny.sample(tiny.certified(), **prompts), known)
    assert len(masks) == LAYERS[family] * STEPS


# Modes


def test_observing_changes_nothing_and_says_what_could_be(model: Any) -> None:
    prompts = model.prompts(9, 4)
    assert torch.equal(model.sample(model.certified("observe"), **prompts), model.sample(model.model, **prompts))
    sentence = model.report().masks
    assert "0 elided" in sentence and "kept because only counting was asked for; it could be trimmed" in sentence


def test_off_looks_at_nothing(lens: Any) -> None:
    with judged(lens) as masks:
        assert torch.equal(lens.sample(lens.certified("off")), lens.sample(lens.model))
    assert masks == [] and lens.report().masks == ""


def test_a_failing_block_leaves_nothing_behind(model: Any) -> None:
    prompts = model.prompts(9, 4)
    plain, certified = model.sample(model.model, **prompts), model.certified()
    expected = model.sample(certified, **prompts)

    def fail(*_: Any) -> None:
        raise RuntimeError("a block failed")

    failing = model.model.model.diffusion_model.transformer_blocks[1].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="a block failed"):
        model.sample(certified, **prompts)
    failing.remove()
    assert model.leftovers() == []
    assert torch.equal(model.sample(model.model, **prompts), plain)
    assert torch.equal(model.sample(certified, **prompts), expected)


# Other packs that touch masks


def with_blocks_replaced(lens: Any, replaced: Callable[[int, Any, Any], Any]) -> Any:
    """The model with `replaced(index, arguments, original block)` in the place of its blocks, by ComfyUI's own means."""
    patched = lens.model.clone()
    for index in range(LAYERS["lens"]):

        def replace(args: Any, extra: Any, index: int = index) -> Any:
            return replaced(index, args, extra["original_block"])

        patched.set_model_patch_replace(replace, "dit", "double_block", index)
    return patched


def weighted(mask: Tensor) -> Tensor:
    """The mask with the last 8 rows of the text at less weight."""
    weights = torch.zeros(mask.shape[-1], dtype=mask.dtype)
    weights[-8:] = -2.0
    return mask + weights


def test_a_pack_that_weighs_text_in_one_block(lens: Any) -> None:
    def weigh_second(index: int, args: Any, block: Any) -> Any:
        return block({**args, "attn_mask": weighted(args["attn_mask"])} if index == 1 else args)

    patched = with_blocks_replaced(lens, weigh_second)
    plain = lens.sample(patched)
    assert difference(plain, lens.sample(lens.model)) > 0.03
    assert difference(lens.sample(lens.certified(model=patched)), plain) <= 1e-5
    assert lens.report().masks.startswith("12 of 12 attention calls carried a mask: 6 elided; 6 kept because it weighs keys differently")


def test_a_pack_that_writes_into_the_mask_between_blocks(lens: Any) -> None:
    """In inference mode nothing tells of the write, so with such a pack every call is judged."""

    def weigh_second(index: int, args: Any, block: Any) -> Any:
        if index == 1:
            args["attn_mask"][..., -8:] -= 2.0
        return block(args)

    patched = with_blocks_replaced(lens, weigh_second)
    plain = lens.sample(patched)
    assert difference(plain, lens.sample(lens.model)) > 0.03
    assert difference(lens.sample(lens.certified(model=patched)), plain) <= 1e-5
    assert lens.report().masks.startswith("12 of 12 attention calls carried a mask: 6 elided; 6 kept because it weighs keys differently")


@pytest.mark.parametrize("weighted_block", [0, 1])
def test_a_pack_that_puts_its_override_around_ours_for_a_block(lens_in_bfloat16: Any, weighted_block: int, record_property: Record) -> None:
    """What reaches us then is not what the block was given, and its source proves nothing."""
    tiny = lens_in_bfloat16

    def weigh(index: int, args: Any, block: Any) -> Any:
        outer = args["transformer_options"]

        def override(func: Any, *given: Any, mask: Tensor, **kwargs: Any) -> Any:
            mask = weighted(mask) if index == weighted_block else mask.clone()
            return outer.get(OVERRIDE, lambda func, *args, **kwargs: func(*args, **kwargs))(func, *given, mask=mask, **kwargs)

        return block({**args, "transformer_options": {**outer, OVERRIDE: override}})

    patched = with_blocks_replaced(tiny, weigh)
    plain = tiny.sample(patched)
    assert difference(plain, tiny.sample(tiny.model)) > 0.03
    found = tiny.sample(tiny.certified(model=patched))
    record_property("largest difference", difference(found, plain))
    assert difference(found, plain) <= 0.02
    assert tiny.report().masks.startswith("12 of 12 attention calls carried a mask: 6 elided; 6 kept because it weighs keys differently")


# Backends


@dataclass(frozen=True)
class Case:
    """One attention call with padding, as a model might make it."""

    heads_first: bool
    positional: bool
    grouped: bool
    scaled: bool
    ragged: bool
    materialised: bool
    dimensions: int
    batch: int
    queries: int
    keys: int
    padded: float
    value: float
    seed: int

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values; 4 heads of 8."""
        generator = torch.Generator().manual_seed(self.seed)
        shapes = [(self.queries, 4), *2 * [(self.keys, 2 if self.grouped else 4)]]
        q, k, v = (torch.randn(self.batch, rows, heads, 8, generator=generator) for rows, heads in shapes)
        return (q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)) if self.heads_first else (q.flatten(2), k.flatten(2), v.flatten(2))

    def attended(self) -> Tensor:
        """The keys that are no padding `[batch or 1, keys]`; at least one."""
        rows = self.batch if self.ragged and self.dimensions > 2 else 1
        found = torch.rand(rows, self.keys, generator=torch.Generator().manual_seed(self.seed)) >= self.padded
        found[:, self.seed % self.keys] = True
        return found

    def mask(self, attended: Tensor) -> Tensor:
        """The same as numbers to add, in one of the shapes ComfyUI knows."""
        mask = torch.zeros(attended.shape).masked_fill(~attended, self.value)
        mask = mask.view(*(len(mask), 1, 1)[: self.dimensions - 1], self.keys)
        return mask.expand(*mask.shape[:-2], self.queries, self.keys).contiguous() if self.materialised else mask

    def attend(self, backend: str, mask: Tensor, override: Any = None) -> Tensor:
        """What the backend makes of it."""
        kwargs: dict[str, Any] = {"skip_reshape": self.heads_first, "transformer_options": {OVERRIDE: override} if override else {}}
        kwargs.update({"enable_gqa": True} if self.grouped else {}, **({"scale": 0.3} if self.scaled else {}))
        args = (mask,) if self.positional else ()
        kwargs.update({} if self.positional else {"mask": mask})
        found: Tensor = getattr(attention_module(), backend)(*self.tensors(), 4, *args, **kwargs)
        return found


FLAGS = dict.fromkeys(("heads_first", "positional", "grouped", "scaled", "ragged", "materialised"), st.booleans())
CASES = st.builds(
    Case, **FLAGS, dimensions=st.integers(2, 4), batch=st.integers(1, 3), queries=st.integers(1, 9), keys=st.integers(1, 9),
    padded=st.sampled_from([0.0, 0.3, 0.7]), value=st.sampled_from([-torch.inf, LOWEST, -1e4]), seed=st.integers(0, 2**31),
)  # fmt: skip


@pytest.mark.parametrize("backend", [*BACKENDS, "attention_basic"])
def test_every_backend_gives_what_it_gave_with_the_mask(comfy: Any, backend: str, record_property: Record) -> None:
    attention, masks, largest = comfy.engine("hosts.comfy.attention"), comfy.engine("masks.ledger"), [0.0]

    @settings(max_examples=200)
    @given(CASES)
    def check(case: Case) -> None:
        attended, ledger = case.attended(), masks.MaskLedger()
        mask = case.mask(attended)
        found = case.attend(backend, mask, attention.AttentionOverride(ledger, None, None))
        largest.append(float((found - case.attend(backend, mask)).abs().max()))
        assert largest[-1] <= 1e-5
        assert (ledger.elided, ledger.trimmed.total()) == ((1, 0) if attended.all() else (0, 1))

    check()
    record_property("largest difference", max(largest))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_booleans_are_trimmed_only_where_they_mean_padding(comfy: Any, backend: str, padded: bool) -> None:
    """The CPU's default attention adds them to the logits as 0 and 1: who passes them there gets what that gives."""
    case = Case(True, False, False, False, False, False, 4, 2, 5, 6, 0.5, LOWEST, 3)
    mask = (case.attended() | torch.tensor(not padded)).view(1, 1, 1, 6)
    ledger = comfy.engine("masks.ledger").MaskLedger()
    found = case.attend(backend, mask, comfy.engine("hosts.comfy.attention").AttentionOverride(ledger, None, None))
    expected = case.attend(backend, mask)
    if padded and backend != "attention_pytorch":
        assert torch.equal(found, expected) and "adds boolean masks" in ledger.sentence()
    else:
        assert torch.allclose(found, expected, atol=1e-6) and ledger.kept.total() == 0


# Order does not matter


@pytest.fixture(scope="module")
def stand_in(comfy: Any) -> Any:
    """ComfyUI in this process with the stand-in pack."""
    assert asyncio.run(comfy.nodes.load_custom_node(str(STAND_IN)))
    return comfy


def both_orders(comfy: Any, lens: Any) -> tuple[Any, Any]:
    """The stand-in's override before our node, and after it."""
    before = lens.certified(model=comfy.execute("StandInOverride", model=lens.model, factor=0.99)[0])
    return before, comfy.execute("StandInOverride", model=lens.certified(), factor=0.99)[0]


@pytest.mark.parametrize("padding", [(0, 0), (9, 4)])
def test_an_override_before_or_after_ours(stand_in: Any, lens: Any, padding: tuple[int, int]) -> None:
    prompts = lens.prompts(*padding)
    alone = lens.sample(stand_in.execute("StandInOverride", model=lens.model, factor=0.99)[0], **prompts)
    assert difference(alone, lens.sample(lens.model, **prompts)) > 1e-3
    pictures = []
    for model in both_orders(stand_in, lens):
        pictures.append(lens.sample(model, **prompts))
        assert lens.report().masks.startswith(f"12 of 12 attention calls carried a mask: {0 if any(padding) else 12} elided; ")
        # A batch whose rows attend to different keys becomes a call for each.
        assert model.model_options["transformer_options"][OVERRIDE].masks == [None] * (24 if any(padding) else 12)
    assert torch.equal(*pictures)
    assert difference(pictures[0], alone) <= 1e-5


@pytest.fixture(scope="module")
def lens_server(lens: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A real server with this pack, the stand-in and the tiny Lens."""
    file = tmp_path_factory.mktemp("models") / "tiny_lens.safetensors"
    save_file(lens.model.model.diffusion_model.state_dict(), file)
    with ComfyServer(packs={PACK_NAME: PACK_ROOT, "stand-in": STAND_IN}, models={"diffusion_models": [file]}) as running:
        yield running


NODE_SETTINGS: dict[str, dict[str, Any]] = {"SafeDitMaskElision": {"mode": "elide"}, "StandInOverride": {"factor": 0.99}}
SAMPLING = {"seed": 1, "steps": STEPS, "cfg": 4.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def graph(*chain: str, padding: int) -> dict[str, dict[str, Any]]:
    """Sampling from the tiny Lens with these nodes between loader and sampler."""
    nodes = {"model": node("UNETLoader", unet_name="tiny_lens.safetensors", weight_dtype="default")}
    last = "model"
    for class_type in chain:
        nodes[class_type] = node(class_type, model=[last, 0], **NODE_SETTINGS[class_type])
        last = class_type
    nodes["positive"] = node("StandInPrompt", seed=1, tokens=24, width=48, padding=padding)
    nodes["negative"] = node("StandInPrompt", seed=2, tokens=24, width=48, padding=2 * padding)
    nodes["latent"] = node("EmptyFlux2LatentImage", width=128, height=128, batch_size=1)
    prompts = {"positive": ["positive", 0], "negative": ["negative", 0]}
    nodes["sampler"] = node("KSampler", model=[last, 0], latent_image=["latent", 0], **prompts, **SAMPLING)
    nodes["report"] = node("SafeDitReport", latent=["sampler", 0])
    nodes["save"] = node("SaveLatent", samples=["report", 0], filename_prefix="masks")
    return nodes


def latent_of(server: ComfyServer, result: RunResult) -> Tensor:
    (file,) = result.output("save")["latents"]
    return load_safetensors(server.view(**file))["latent_tensor"]


@pytest.mark.parametrize("padding", [0, 5])
def test_the_order_of_nodes_on_a_server(lens_server: ComfyServer, padding: int) -> None:
    chains = [(), ("StandInOverride",), ("StandInOverride", "SafeDitMaskElision"), ("SafeDitMaskElision", "StandInOverride")]
    results = [lens_server.run(graph(*chain, padding=padding)) for chain in chains]
    plain, alone, before, after = (latent_of(lens_server, result) for result in results)
    assert torch.equal(before, after)
    assert difference(alone, plain) > 1e-3
    assert difference(before, alone) <= 1e-5
    what = "12 trimmed (padding: 78 to 83 of 88 keys are attended, in 2 groups of the batch)" if padding else "12 elided"
    for result in results[2:]:
        (record,) = result.output("report")["safe_dit"]
        assert record["masks"].startswith("12 of 12 attention calls carried a mask: ") and what in record["masks"]
        assert "attention_sub_quad" in record["masks"]


# With nothing to do


class Operations(TorchDispatchMode):
    """Counts what runs on tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[str(func)] += 1
        return func(*args, **(kwargs or {}))


class Requests(TorchFunctionMode):
    """Counts what Python asks of tensors: `tolist` and its like are no operations."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[getattr(func, "__name__", str(func))] += 1
        return func(*args, **(kwargs or {}))


READS = {"item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__", "aten._local_scalar_dense.default"}


def reads(happened: Counter[str]) -> Counter[str]:
    """What of it brings numbers to Python."""
    return Counter({name: count for name, count in happened.items() if name in READS})


def in_run(tiny: Any, model: Any) -> Counter[str]:
    """What happens to tensors in one run of 3 steps."""
    operations, requests = Operations(), Requests()
    with operations, requests:
        tiny.sample(model, steps=3)
    return operations.seen + requests.seen


def in_model_calls(tiny: Any, model: Any) -> Counter[str]:
    """What of it happens inside model calls."""
    operations, requests, apply_model = Operations(), Requests(), tiny.model.model.apply_model

    def watched(*args: Any, **kwargs: Any) -> Any:
        with operations, requests:
            return apply_model(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny.model.model, "apply_model", watched)
        tiny.sample(model, steps=3)
    return operations.seen + requests.seen


def test_with_no_masks_a_model_call_is_what_it_was(tiny: Any) -> None:
    certified = tiny.comfy.execute("SafeDitMaskElision", model=tiny.model, mode="elide")[0]
    plain = in_model_calls(tiny, tiny.model)
    assert plain.total() > 1000
    assert in_model_calls(tiny, certified) == plain


def test_around_model_calls_a_run_reads_the_noise_levels_and_at_its_end_whether_there_was_nan(tiny: Any) -> None:
    certified = tiny.comfy.execute("SafeDitMaskElision", model=tiny.model, mode="elide")[0]
    assert reads(in_run(tiny, certified) - in_run(tiny, tiny.model)).total() <= 2 + 3 + 1


def test_masks_are_read_once_a_model_call(lens_in_bfloat16: Any) -> None:
    tiny = lens_in_bfloat16
    added = in_model_calls(tiny, tiny.certified()) - in_model_calls(tiny, tiny.model)
    assert reads(added) == {"tolist": 3}
