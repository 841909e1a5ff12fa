"""The masks of real `diffusers` models, tiny and with random weights, ruled on from outside (DESIGN: promises 2, 3, 4, 7 and 9)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import diffusers
import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import attention_backend
from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina
from torch import Tensor, nn

from safe_dit_engine.masks import ledger as masks_module
from safe_dit_engine.masks.ledger import MaskMode
from safe_dit_engine.masks.sdpa import LEDGER, certified_masks

LAYERS, HEADS, TEXT_TOKENS, TEXT_WIDTH = 2, 2, 10, 24
# For outputs of up to 4 in float32 ten units in the last place; what the masks do is ten thousand times as much.
REASSOCIATION = 5e-6
MODES = [torch.no_grad, torch.inference_mode]
Record = Callable[[str, object], None]


# Models


def lumina(layers: int = LAYERS) -> nn.Module:
    """Lumina-Next: a mask of ones over the image in every self-attention, the prompt's mask in every cross-attention."""
    sizes = {"hidden_size": 32, "num_layers": layers, "num_attention_heads": HEADS, "num_kv_heads": 1, "multiple_of": 16}
    return weighted(diffusers.LuminaNextDiT2DModel(sample_size=8, in_channels=4, cross_attention_dim=TEXT_WIDTH, **sizes))


def lumina_inputs(lengths: Sequence[int]) -> dict[str, Any]:
    text = {"encoder_hidden_states": noise(2, TEXT_TOKENS, TEXT_WIDTH), "encoder_mask": text_mask(lengths)}
    rotary = get_2d_rotary_pos_embed_lumina(16, 8, 8)
    return {"hidden_states": noise(2, 4, 16, 16), "timestep": torch.tensor([0.3, 0.3]), **text, "image_rotary_emb": rotary, **NO_KWARGS}


NO_KWARGS: dict[str, Any] = {"cross_attention_kwargs": {}}


def pixart() -> nn.Module:
    """PixArt: no mask in self-attention, and -10,000 for the padding in every cross-attention."""
    sizes = {"num_attention_heads": HEADS, "attention_head_dim": 16, "cross_attention_dim": 32, "num_layers": LAYERS, "sample_size": 8}
    return weighted(diffusers.PixArtTransformer2DModel(in_channels=4, out_channels=4, caption_channels=TEXT_WIDTH, **sizes))


def pixart_inputs(lengths: Sequence[int]) -> dict[str, Any]:
    text = {"encoder_hidden_states": noise(2, TEXT_TOKENS, TEXT_WIDTH), "encoder_attention_mask": text_mask(lengths)}
    added = {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}
    return {"hidden_states": noise(2, 4, 8, 8), "timestep": torch.tensor([300, 300]), **text, **added}


def z_image() -> nn.Module:
    """Z-Image: prompts of different lengths are padded to the longest, first alone and then behind the image."""
    sizes = {"dim": 32, "n_layers": LAYERS, "n_refiner_layers": 1, "n_heads": HEADS, "n_kv_heads": HEADS, "axes_dims": [4, 6, 6]}
    return weighted(diffusers.ZImageTransformer2DModel(in_channels=4, cap_feat_dim=TEXT_WIDTH, axes_lens=[256, 16, 16], **sizes))


def z_image_inputs(lengths: Sequence[int]) -> dict[str, Any]:
    return {"x": list(noise(2, 4, 1, 8, 8)), "t": torch.tensor([0.3, 0.3]), "cap_feats": [noise(length, TEXT_WIDTH) for length in lengths]}


def sd3() -> nn.Module:
    """Stable Diffusion 3: the text is padded without a mask."""
    sizes = {"num_layers": LAYERS, "attention_head_dim": 16, "num_attention_heads": HEADS, "caption_projection_dim": 32}
    text = {"joint_attention_dim": TEXT_WIDTH, "pooled_projection_dim": 16}
    return weighted(diffusers.SD3Transformer2DModel(sample_size=8, in_channels=4, out_channels=4, pos_embed_max_size=8, **sizes, **text))


def sd3_inputs(lengths: Sequence[int]) -> dict[str, Any]:
    text = {"encoder_hidden_states": noise(2, TEXT_TOKENS, TEXT_WIDTH), "pooled_projections": noise(2, 16)}
    return {"hidden_states": noise(2, 4, 8, 8), "timestep": torch.tensor([300, 300]), **text}


def flux() -> nn.Module:
    """Flux: no masks."""
    sizes = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": HEADS, "axes_dims_rope": (4, 4, 8)}
    return weighted(diffusers.FluxTransformer2DModel(in_channels=4, joint_attention_dim=TEXT_WIDTH, pooled_projection_dim=16, **sizes))


def flux_inputs(lengths: Sequence[int]) -> dict[str, Any]:
    text = {"encoder_hidden_states": noise(2, TEXT_TOKENS, TEXT_WIDTH), "pooled_projections": noise(2, 16)}
    places = {"img_ids": noise(16, 3), "txt_ids": torch.zeros(TEXT_TOKENS, 3)}
    return {"hidden_states": noise(2, 16, 4), "timestep": torch.tensor([0.3, 0.3]), **text, **places}


def weighted(model: nn.Module) -> nn.Module:
    """Random numbers for every weight: as they come, some gates are zero and some weights anything."""
    generator = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.3 if weight.ndim == 1 else weight.shape[-1] ** -0.5, generator=generator)
    return model.eval()


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def text_mask(lengths: Sequence[int]) -> Tensor:
    """1 for the text tokens that count, 0 for padding, as tokenizers write it."""
    return (torch.arange(TEXT_TOKENS) < torch.tensor(lengths)[:, None]).long()


# What becomes of their masks


@dataclass(frozen=True)
class Case:
    """A model, the lengths of its two prompts, and what becomes of the attention calls of one forward pass.

    `reductions`: how often a mask is judged, with autograd off, and in inference mode, where a view does not say what it is a view of.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[Sequence[int]], dict[str, Any]]
    lengths: tuple[int, int]
    calls: int
    elided: int = 0
    trimmed: int = 0
    kept: int = 0
    reductions: tuple[int, int] = (0, 0)


# Lumina-Next casts its mask of ones anew in every layer, PixArt repeats the prompt's for the heads: new objects, each judged once.
LUMINA_REDUCTIONS, PIXART_REDUCTIONS = (LAYERS + 1, 2 * LAYERS), (LAYERS, LAYERS)
LUMINA = Case(lumina, lumina_inputs, (10, 6), 2 * LAYERS, elided=LAYERS, trimmed=LAYERS, reductions=LUMINA_REDUCTIONS)
PIXART = Case(pixart, pixart_inputs, (10, 6), 2 * LAYERS, trimmed=LAYERS, reductions=PIXART_REDUCTIONS)
Z_IMAGE = Case(z_image, z_image_inputs, (10, 40), 2 + LAYERS, trimmed=1 + LAYERS, reductions=(2, 1 + LAYERS))
CASES = {
    "lumina, one prompt padded": LUMINA,
    "lumina, no padding": Case(lumina, lumina_inputs, (10, 10), 2 * LAYERS, elided=2 * LAYERS, reductions=LUMINA_REDUCTIONS),
    "pixart, one prompt padded": PIXART,
    "pixart, no padding": Case(pixart, pixart_inputs, (10, 10), 2 * LAYERS, elided=LAYERS, reductions=PIXART_REDUCTIONS),
    "pixart, one prompt empty": Case(pixart, pixart_inputs, (10, 0), 2 * LAYERS, kept=LAYERS, reductions=PIXART_REDUCTIONS),
    "z-image, prompts of two lengths": Z_IMAGE,
    "z-image, prompts of one length": Case(z_image, z_image_inputs, (10, 10), 2 + LAYERS),
    "sd3": Case(sd3, sd3_inputs, (10, 10), LAYERS),
    "flux": Case(flux, flux_inputs, (10, 10), 2),
}


def output(model: Callable[..., Any], inputs: dict[str, Any]) -> Tensor:
    found = model(**inputs, return_dict=False)[0]
    return torch.stack(found) if isinstance(found, list) else found


def largest_difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


@contextmanager
def counted_reductions(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.Size]]:
    """The shape of every mask that is judged."""
    judged, certify = [], masks_module.certify
    with monkeypatch.context() as patch:
        patch.setattr(masks_module, "certify", lambda mask: (judged.append(mask.shape), certify(mask))[1])
        yield judged


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_output_is_that_of_the_plain_run(
    case: Case, mode: Callable[[], AbstractContextManager[None]], record_property: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, model, inputs = F.scaled_dot_product_attention, case.build(), case.inputs(case.lengths)
    with mode():
        plain = output(model, inputs)
        with counted_reductions(monkeypatch) as judged, certified_masks(model) as ledger:
            found = output(model, inputs)
        assert F.scaled_dot_product_attention is original and not model._forward_hooks and not model._forward_pre_hooks
        assert torch.equal(output(model, inputs), plain)
    record_property("largest_difference", largest_difference(found, plain))
    record_property("reductions", len(judged))
    assert (ledger.calls, ledger.elided, ledger.trimmed.total(), ledger.kept.total()) == (case.calls, case.elided, case.trimmed, case.kept)
    assert len(judged) == case.reductions[mode is torch.inference_mode]
    tolerance = REASSOCIATION if case.elided or case.trimmed else 0.0
    assert largest_difference(found, plain) <= tolerance


@pytest.mark.parametrize("case", [CASES["sd3"], CASES["flux"], CASES["z-image, prompts of one length"]], ids=["sd3", "flux", "z-image"])
@torch.no_grad()
def test_nothing_to_gain_is_said_plainly(case: Case) -> None:
    with certified_masks() as ledger:
        output(case.build(), case.inputs(case.lengths))
    assert ledger.sentence() == f"0 of {case.calls} attention calls carried a mask: nothing to elide"


@pytest.mark.parametrize("case", [LUMINA, PIXART, Z_IMAGE], ids=["lumina", "pixart", "z-image"])
@torch.no_grad()
def test_a_mask_wrongly_removed_would_be_noticed(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tolerance is worth something: the padding masks of these cases do change the output."""
    original, model, inputs = F.scaled_dot_product_attention, case.build(), case.inputs(case.lengths)
    plain = output(model, inputs)

    def without_mask(*args: Any, attn_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        return original(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", without_mask)
    assert largest_difference(output(model, inputs), plain) > 10_000 * REASSOCIATION


@torch.no_grad()
def test_no_reduction_is_made_to_count_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = lumina(), lumina_inputs((10, 6))
    plain = output(model, inputs)
    with counted_reductions(monkeypatch) as judged, certified_masks(mode=MaskMode.OFF):
        assert torch.equal(output(model, inputs), plain)
    with certified_masks(mode=MaskMode.OBSERVE) as ledger:
        assert torch.equal(output(model, inputs), plain)
    assert not judged and ledger.kept.total() == 2 * LAYERS


@torch.no_grad()
def test_a_verdict_dies_with_its_mask() -> None:
    """The same mask tensor, written to between two forward passes."""
    model, inputs = lumina(), lumina_inputs((10, 10))
    inputs["encoder_mask"] = inputs["encoder_mask"].bool()
    with certified_masks(model) as ledger:
        output(model, inputs)
        inputs["encoder_mask"][1, 6:] = False
        found = output(model, inputs)
    assert ledger.trimmed.total() == LAYERS
    assert largest_difference(found, output(model, inputs)) <= REASSOCIATION


# How diffusers calls attention


def test_diffusers_keeps_no_attention_function_of_torch() -> None:
    """Replacing `F.scaled_dot_product_attention` reaches a model only if nobody took a reference to it when it was imported."""
    for case in CASES.values():
        case.build()
    loaded = [(name, dict(vars(module))) for name, module in sys.modules.items() if name.partition(".")[0] == "diffusers"]
    holders = [f"{name}.{key}" for name, names in loaded for key, value in names.items() if value is F.scaled_dot_product_attention]
    assert len(loaded) > 50 and not holders


@pytest.mark.parametrize("backend", ["native", "_native_math"])
@torch.no_grad()
def test_the_backends_of_the_dispatcher_are_reached(backend: str) -> None:
    model, inputs = z_image(), z_image_inputs(Z_IMAGE.lengths)
    with attention_backend(backend):
        plain = output(model, inputs)
        with certified_masks() as ledger:
            found = output(model, inputs)
    assert (ledger.calls, ledger.trimmed.total()) == (Z_IMAGE.calls, Z_IMAGE.trimmed)
    assert largest_difference(found, plain) <= REASSOCIATION


@torch.no_grad()
def test_attention_written_out_is_left_alone() -> None:
    """`AttnProcessor` multiplies matrices itself: there is nothing to replace, and nothing happens."""
    model: Any = pixart()
    inputs = pixart_inputs(PIXART.lengths)
    model.set_default_attn_processor()
    plain = output(model, inputs)
    with certified_masks(model) as ledger:
        assert torch.equal(output(model, inputs), plain)
    assert ledger.calls == 0


# Another library that swaps the same function


def test_what_another_library_put_over_ours_stays() -> None:
    """It swaps while ours is in place and calls on: theirs must stay when ours goes, and ours must judge nothing from beneath it."""
    before = F.scaled_dot_product_attention
    seen: list[Tensor | None] = []

    def theirs(*args: Any, attn_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        seen.append(attn_mask)
        return beneath(*args, attn_mask=attn_mask, **kwargs)

    q, zeros = torch.randn(1, 2, 4, 8), torch.zeros(1, 1, 4, 4)
    try:
        with certified_masks() as first:
            beneath: Callable[..., Tensor] = F.scaled_dot_product_attention
            F.scaled_dot_product_attention = theirs
        assert F.scaled_dot_product_attention is theirs
        calls = LEDGER.calls
        assert torch.equal(F.scaled_dot_product_attention(q, q, q, attn_mask=zeros), before(q, q, q, attn_mask=zeros))
        assert (first.calls, LEDGER.calls) == (0, calls), "nobody asked"
        with certified_masks() as second:
            F.scaled_dot_product_attention(q, q, q, attn_mask=zeros)
        assert F.scaled_dot_product_attention is theirs and second.elided == 1 and len(seen) == 2
        F.scaled_dot_product_attention = beneath  # they go, and put back what they found: ours
        with certified_masks() as third:
            F.scaled_dot_product_attention(q, q, q, attn_mask=zeros)
        assert third.elided == 1 and F.scaled_dot_product_attention is before
    finally:
        F.scaled_dot_product_attention = before


# torch.compile


@pytest.fixture
def compiler() -> Iterator[Callable[..., Any]]:
    """`torch.compile` that generates no code, and forgets all graphs before and after."""
    torch._dynamo.reset()
    yield lambda model, **kwargs: torch.compile(model, backend="eager", **kwargs)
    torch._dynamo.reset()


@torch.no_grad()
def test_no_verdict_is_compiled_in(compiler: Callable[..., Any], record_property: Record) -> None:
    """Compiled outside; ruled on inside, with masks that can all go and then a meaningful one of the same shape; plain again outside."""
    model, whole, padded = lumina(layers=1), lumina_inputs((10, 10)), lumina_inputs((10, 6))
    plain_whole, plain_padded = output(model, whole), output(model, padded)
    compiled = compiler(model)
    assert torch.equal(output(compiled, padded), plain_padded)
    with certified_masks(compiled) as ledger:
        differences = [largest_difference(output(compiled, whole), plain_whole)]
        assert (ledger.calls, ledger.elided) == (2, 2)
        differences.append(largest_difference(output(compiled, padded), plain_padded))
    assert (ledger.calls, ledger.elided, ledger.trimmed.total()) == (4, 3, 1)
    record_property("largest_difference", max(differences))
    assert max(differences) <= REASSOCIATION
    assert torch.equal(output(compiled, padded), plain_padded) and ledger.calls == 4


@torch.no_grad()
def test_a_model_without_masks_compiles_to_one_graph(compiler: Callable[..., Any]) -> None:
    model, inputs = sd3(), sd3_inputs((10, 10))
    plain = output(model, inputs)
    compiled = compiler(model, fullgraph=True)
    with certified_masks():
        assert torch.equal(output(compiled, inputs), plain)
