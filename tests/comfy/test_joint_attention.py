"""Families whose text and image rows attend together: relatives, reference images, masks, ControlNets, and models that no longer fit."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ..support.families import FAMILIES, FLUX, QWEN, Family, build_flux, build_hunyuan, configured, operations, random_weights
from .conftest import described
from .test_backbones import Record, TinyFamily, frozen, largest
from .test_masks_in_models import judged, model_calls

BY_NAME = {family.name: family for family in FAMILIES}
POOLED = {"pooled_output": torch.ones(1, 32)}
FULL_LENGTH = "Computed in full, because a ControlNet adds to the image at full length."

# Models of a class that is tested already, with other parts.
HUNYUAN_IMAGE: dict[str, Any] = {"in_channels": 64, "out_channels": 64, "vec_in_dim": None, "axes_dim": [64, 64], "patch_size": [1, 1]}
HUNYUAN_15: dict[str, Any] = {
    "in_channels": 65, "out_channels": 32, "vec_in_dim": None, "patch_size": [1, 1, 1], "guidance_embed": False,
    "use_cond_type_embedding": True, "vision_in_dim": 1152, "meanflow_sum": True,
}  # fmt: skip
LONGCAT: dict[str, Any] = {"vec_in_dim": None, "guidance_embed": False, "context_in_dim": 3584, "txt_ids_dims": [1, 2]}
OVIS: dict[str, Any] = {"vec_in_dim": None, "guidance_embed": False, "txt_ids_dims": [1, 2], "yak_mlp": True, "txt_norm": True}
RELATIVES = (
    Family("Flux schnell", partial(build_flux, guidance_embed=False), (16, 16, 24), 48, POOLED),
    Family("LongCat-Image", partial(build_flux, **LONGCAT), (16, 16, 24), 3584),
    Family("Ovis-Image", partial(build_flux, **OVIS), (16, 16, 24), 48),
    Family("Flux Fill", partial(build_flux, in_channels=96), (16, 16, 24), 48, POOLED),
    Family("Qwen-Image-Layered", partial(configured, "QwenImage", {**QWEN, "use_additional_t_cond": True}), (16, 3, 8, 12), 48),
    Family("HunyuanImage 2.1", partial(build_hunyuan, **HUNYUAN_IMAGE), (64, 8, 12), 48),
    Family("HunyuanVideo 1.5", partial(build_hunyuan, **HUNYUAN_15), (32, 2, 6, 8), 48, {"pooled_output": torch.ones(1, 768)}),
)


@pytest.mark.parametrize("family", RELATIVES, ids=[family.name for family in RELATIVES])
def test_relatives(comfy: Any, family: Family, record_property: Record) -> None:
    tiny = TinyFamily(comfy, family)
    model, found = frozen(tiny.accelerated())
    tiny.sample(model)
    record_property("largest difference", largest(found))
    assert largest(found) == 0.0
    assert tiny.report().notes == []


@pytest.mark.parametrize("name", ["Flux", "Chroma", "SD3", "Qwen-Image", "AuraFlow", "HiDream"])
def test_sides_that_are_no_whole_number_of_tokens(comfy: Any, name: str, record_property: Record) -> None:
    family = BY_NAME[name]
    tiny = TinyFamily(comfy, replace(family, latent=(*family.latent[:-2], 15, 23)))
    model, found = frozen(tiny.accelerated())
    tiny.sample(model, images=2)
    record_property("largest difference", largest(found))
    assert largest(found) <= family.tolerance
    assert tiny.report().notes == []


def both(tiny: TinyFamily, **extras: Any) -> dict[str, Any]:
    """Both prompts, with something besides their text."""
    return {"positive": tiny.prompt(1, 24, **extras), "negative": tiny.prompt(2, 24, **extras)}


# Reference images


def referenced(family: Family, *sizes: tuple[int, int], **extras: Any) -> dict[str, Any]:
    """What a prompt with reference images of these sizes carries."""
    channels, frames = family.latent[0], family.latent[1:-2]
    generator = torch.Generator().manual_seed(8)
    return {"reference_latents": [torch.randn(1, channels, *frames, *size, generator=generator) for size in sizes], **extras}


@pytest.mark.parametrize("name", ["Flux", "Flux.2", "Qwen-Image", "Mage-Flow"])
def test_reference_rows_are_kept_like_context(comfy: Any, name: str, record_property: Record) -> None:
    tiny = TinyFamily(comfy, BY_NAME[name])
    references = referenced(tiny.family, (8, 12), (6, 4))
    prompts = both(tiny, **references)
    model, found = frozen(tiny.accelerated())
    tiny.sample(model, images=2, **prompts)
    record_property("largest difference", largest(found))
    assert largest(found) == 0.0
    assert tiny.report().notes == []
    # As many rows as without references, of more.
    rows = {record.kind.value: (record.rows_active, record.rows_total) for record in tiny.report().evaluations}
    tiny.sample(tiny.accelerated(), images=2)
    plain = {record.kind.value: (record.rows_active, record.rows_total) for record in tiny.report().evaluations}
    edge = tiny.model.model.diffusion_model.patch_size
    extra = 2 * 2 * (8 * 12 + 6 * 4) // edge**2
    assert rows["selective"] == (plain["selective"][0], plain["selective"][1] + extra)
    assert rows["refresh"] == (plain["refresh"][0] + extra, plain["refresh"][1] + extra)


@pytest.mark.parametrize("name", ["Flux", "Qwen-Image"])
def test_references_of_one_prompt_only(comfy: Any, name: str) -> None:
    """Prompts of another number of rows run in calls of their own."""
    tiny = TinyFamily(comfy, BY_NAME[name])
    model, found = frozen(tiny.accelerated())
    tiny.sample(model, positive=tiny.prompt(1, 24, **referenced(tiny.family, (8, 12))))
    assert largest(found) == 0.0
    assert tiny.report().notes == []


@pytest.mark.parametrize(("name", "argument"), [("Flux.2", "modulation_dims_img"), ("Qwen-Image", "timestep_zero_index")])
def test_references_with_a_modulation_of_their_own_run_in_full(comfy: Any, name: str, argument: str) -> None:
    tiny = TinyFamily(comfy, BY_NAME[name])
    references = referenced(tiny.family, (8, 12), reference_latents_method="index_timestep_zero")
    prompts = both(tiny, **references)
    # ComfyUI's Flux cannot do it with two prompts in one call, and that of Flux.1 not at all.
    found = tiny.sample(tiny.accelerated(), cfg=1.0, **prompts)
    assert torch.equal(found, tiny.sample(tiny.model, cfg=1.0, **prompts))
    sentence = f"Computed in full, because the model was given `{argument}`, which changes rows by their place."
    assert tiny.report().notes[0] == sentence
    assert "selective" not in tiny.report().counts()
    assert tiny.leftovers() == []


@pytest.mark.parametrize(
    ("name", "extras", "sentence"),
    [
        ("HunyuanVideo", {"guiding_frame_index": 0}, "the first frame is given, and is modulated apart from the others"),
        ("HunyuanVideo", {"ref_latent": torch.ones(1, 16, 1, 12, 16)}, "rows of a reference image stand before those of the picture"),
        ("HiDream", {"concat_latent_image": torch.ones(1, 16, 16, 24)}, "the picture to edit stands beside the picture"),
    ],
)
def test_other_row_layouts_run_in_full(comfy: Any, name: str, extras: dict[str, Any], sentence: str) -> None:
    tiny = TinyFamily(comfy, BY_NAME[name])
    prompts = both(tiny, **extras)
    changes = {**prompts, "cfg": 1.0}  # ComfyUI's HunyuanVideo cannot do it with two prompts in one call
    found = tiny.sample(tiny.accelerated(), **changes)
    assert torch.equal(found, tiny.sample(tiny.model, **changes))
    assert tiny.report().notes[0] == f"Computed in full, because {sentence}."
    assert "selective" not in tiny.report().counts()


# Masks


@pytest.mark.parametrize("elided", [False, True], ids=["masks as they are", "masks elided"])
@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize(("name", "padding"), [("Lens", 0), ("Lens", 7), ("Qwen-Image", 7), ("Mage-Flow", 7), ("HunyuanVideo", 7)])
def test_masks_of_padded_text(comfy: Any, name: str, padding: int, images: int, elided: bool, record_property: Record) -> None:
    tiny = TinyFamily(comfy, BY_NAME[name])
    extras = {"attention_mask": (torch.arange(24) < 24 - padding).long()[None]} if padding else {}
    prompts = both(tiny, **extras)
    # ComfyUI's HunyuanVideo cannot mask two prompts in one call.
    changes = {**prompts, "images": images, **({"cfg": 1.0, "images": 1} if name == "HunyuanVideo" else {})}
    accelerated = tiny.accelerated()
    model, found = frozen(comfy.execute("SafeDitMaskElision", model=accelerated, mode="elide")[0] if elided else accelerated)
    with judged(tiny) as masks, model_calls(tiny) as calls:
        tiny.sample(model, **changes)
    record_property("largest difference", largest(found))
    assert largest(found) <= (1e-6 if elided else 0.0)
    assert tiny.report().notes == []
    if elided:
        # The refiner of HunyuanVideo's prompt has a mask of its own, one per query.
        refiner = 2 * len(calls) if name == "HunyuanVideo" else 0
        assert len(masks) == len(calls) * (2 if refiner else 1), "one reduction a mask and model call, in selective steps too"
        ledger = tiny.report().ledger
        assert (ledger.trimmed.total() if padding else ledger.elided) == ledger.masked - refiner > 0


def test_a_mask_per_query_runs_in_full(comfy: Any) -> None:
    """As the Redux style node makes one where its strength is not 1."""
    tiny = TinyFamily(comfy, BY_NAME["Flux"])
    mask = torch.zeros(1, 24 + 96, 24 + 96)
    mask[:, 24:, 16:24] = -2.0
    prompts: dict[str, Any] = {"positive": tiny.prompt(1, 24, attention_mask=mask, attention_mask_img_shape=(8, 12))}
    found = tiny.sample(tiny.accelerated(), **prompts)
    assert torch.equal(found, tiny.sample(tiny.model, **prompts))
    assert tiny.report().notes == ["Computed in full, because the model masks attention per query."]


# ControlNets


def flux_control() -> Any:
    control = importlib.import_module("comfy.ldm.flux.controlnet")
    small = {**FLUX, "depth": 1, "depth_single_blocks": 2}
    return control.ControlNetFlux(latent_input=True, control_latent_channels=16, dtype=torch.float32, operations=operations(), **small)


def sd3_control() -> Any:
    embedder = {"target": "torch.nn.Linear", "params": {"in_features": 48, "out_features": 128}}
    return importlib.import_module("comfy.cldm.mmdit").ControlNet(
        num_blocks=1, control_latent_channels=16, input_size=None, depth=2, in_channels=16, adm_in_channels=32,
        context_embedder_config=embedder, num_patches=256, pos_embed_max_size=16, dtype=torch.float32, operations=operations(),
    )  # fmt: skip


def qwen_control() -> Any:
    small = {name: value for name, value in QWEN.items() if name != "image_model"}
    control = importlib.import_module("comfy.ldm.qwen_image.controlnet")
    return control.QwenImageControlNetModel(dtype=torch.float32, operations=operations(), **{**small, "num_layers": 1})


CONTROLS: dict[str, Callable[[], Any]] = {"Flux": flux_control, "SD3": sd3_control, "SD3.5": sd3_control, "Qwen-Image": qwen_control}


def frozen_inputs(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A ControlNet shown the same latent at the same noise level in every step adds the same in every step."""
    latent = torch.randn(kwargs["x"].shape, generator=torch.Generator().manual_seed(4))
    return args, {**kwargs, "x": latent, "timesteps": torch.full_like(kwargs["timesteps"], 0.5)}


def controlled(tiny: TinyFamily, control: Any, **extras: Any) -> dict[str, Any]:
    """Both prompts with ComfyUI's own ControlNet of this control model, through its Apply ControlNet node."""
    control.load_state_dict(random_weights(control, seed=1))
    net = importlib.import_module("comfy.controlnet").ControlNet(
        control.eval(), compression_ratio=1, load_device=torch.device("cpu"), extra_conds=["y", "guidance"]
    )
    hint = torch.randn(1, *tiny.family.latent, generator=torch.Generator().manual_seed(5)).movedim(1, -1)
    prompts = both(tiny, **extras)
    inputs = {"control_net": net, "image": hint, "strength": 0.7, "start_percent": 0.0, "end_percent": 1.0}
    positive, negative = tiny.comfy.execute("ControlNetApplyAdvanced", **prompts, **inputs)
    return {"positive": positive, "negative": negative}


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("name", CONTROLS)
def test_a_controlnet_is_followed(comfy: Any, name: str, images: int, record_property: Record) -> None:
    tiny = TinyFamily(comfy, BY_NAME[name])
    control = CONTROLS[name]()
    prompts = controlled(tiny, control)
    plain = tiny.sample(tiny.model, images=images, **prompts)
    assert (plain - tiny.sample(tiny.model, images=images)).abs().max() > 0.01 * plain.abs().max(), "the ControlNet does something"
    control.register_forward_pre_hook(frozen_inputs, with_kwargs=True)
    model, found = frozen(tiny.accelerated())
    tiny.sample(model, images=images, **prompts)
    record_property("largest difference", largest(found))
    assert largest(found) == 0.0
    assert tiny.report().notes == []


def test_a_controlnet_beside_reference_images(comfy: Any) -> None:
    tiny = TinyFamily(comfy, BY_NAME["Flux"])
    control = flux_control()
    prompts = controlled(tiny, control, **referenced(tiny.family, (8, 12)))
    control.register_forward_pre_hook(frozen_inputs, with_kwargs=True)
    model, found = frozen(tiny.accelerated())
    tiny.sample(model, **prompts)
    assert largest(found) == 0.0
    assert tiny.report().notes == []


def given_control(places: dict[str, list[Tensor | None]]) -> Any:
    """A ControlNet that adds just this."""
    base = importlib.import_module("comfy.controlnet").ControlBase

    class Given(base):  # type: ignore[misc, valid-type]
        def get_control(self, *_: Any) -> dict[str, list[Tensor | None]]:
            return {place: list(adds) for place, adds in places.items()}

    return Given()


def adds(tokens: int, width: int = 128) -> Tensor:
    """An addition to the image rows of both prompts."""
    return torch.randn(1, tokens, width, generator=torch.Generator().manual_seed(3))


GIVEN: dict[str, dict[str, list[Tensor | None]]] = {
    "Flux.2": {"input": [adds(320)], "output": [adds(320)]},
    "Chroma": {"input": [None, adds(96)], "output": [adds(96), None, adds(96)]},
    "Mage-Flow": {"input": [None, adds(120, 64)], "output": []},
    "Lens": {"input": [adds(120, 192)]},
    "HunyuanVideo": {"input": [adds(96)], "output": [adds(96)]},
}


@pytest.mark.parametrize("name", GIVEN)
def test_given_additions_are_followed(comfy: Any, name: str, record_property: Record) -> None:
    """Families that take what a ControlNet adds, with no ControlNet of their own in ComfyUI."""
    tiny = TinyFamily(comfy, BY_NAME[name])
    extras = {"control": given_control(GIVEN[name]), "control_apply_to_uncond": True}
    prompts = both(tiny, **extras)
    model, found = frozen(tiny.accelerated())
    picture = tiny.sample(model, **prompts)
    record_property("largest difference", largest(found))
    assert largest(found) == 0.0
    assert tiny.report().notes == []
    assert not torch.equal(tiny.sample(frozen(tiny.accelerated())[0]), picture), "the additions do something"


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("Flux", {"input": [adds(48)], "output": []}),
        ("Flux", {"input": [None, adds(96)], "output": [adds(95)]}),
        ("SD3", {"input": [adds(96)], "output": []}),
        ("Chroma", {"input": [], "output": [], "middle": [adds(96)]}),
        ("AuraFlow", {"input": [adds(96)], "output": []}),
        ("Lumina2", {"input": [adds(96)], "output": []}),
    ],
    ids=["fewer rows", "one row less", "a place the family ignores", "an unknown place", "AuraFlow", "Lumina2"],
)
def test_what_a_controlnet_must_not_add(comfy: Any, name: str, places: dict[str, list[Tensor | None]]) -> None:
    tiny = TinyFamily(comfy, BY_NAME[name])
    extras = {"control": given_control(places), "control_apply_to_uncond": True}
    prompts = both(tiny, **extras)
    found = tiny.sample(tiny.accelerated(), **prompts)
    assert torch.equal(found, tiny.sample(tiny.model, **prompts))
    assert tiny.report().notes == [FULL_LENGTH]
    assert "selective" not in tiny.report().counts()


# Blocks that another node skips


@pytest.mark.parametrize(("name", "kind"), [("SD3.5", "double_block"), ("Flux", "double_block"), ("Flux", "single_block")])
def test_a_skipped_first_block(comfy: Any, name: str, kind: str) -> None:
    tiny = TinyFamily(comfy, BY_NAME[name])
    whole = tiny.sample(tiny.model)
    tiny.model.set_model_patch_replace(lambda arguments, _: arguments, "dit", kind, 0)
    plain = tiny.sample(tiny.model)
    assert torch.equal(tiny.sample(tiny.accelerated()), plain) and not torch.equal(plain, whole)
    assert tiny.report().notes == ["Computed in full, because another node replaces blocks of the model."]
    assert tiny.report().sensitivity.std() > 0.05, "the prompt is read all the same"


def test_skip_layer_guidance(comfy: Any) -> None:
    """It shows the prompt once more to a model without some blocks; in its steps all runs in full."""
    comfy.load_extra("nodes_sd3.py")
    tiny = TinyFamily(comfy, BY_NAME["SD3.5"])
    tiny.model = comfy.execute("SkipLayerGuidanceSD3", model=tiny.model, layers="1", scale=3.0, start_percent=0.0, end_percent=0.6)[0]
    assert torch.equal(tiny.sample(tiny.accelerated(keep=1.0)), tiny.sample(tiny.model))
    tiny.sample(tiny.accelerated())
    reason = "another node replaces blocks of the model"
    assert tiny.report().notes == [f"Steps in which a guidance node evaluates the model once more run in full, because {reason}."]
    kinds = [record.kind.value for record in tiny.report().evaluations]
    assert kinds.count("selective") == 1 and set(kinds[:5]) <= {"warmup", "refresh"}


# Models that are not what they were


def in_full_because(tiny: TinyFamily, sentence: str) -> None:
    """Every step is computed, the picture the model's own, and the report says why."""
    plain = tiny.sample(tiny.model)
    assert torch.equal(tiny.sample(tiny.accelerated()), plain)
    assert tiny.report().notes == [sentence]
    assert tiny.leftovers() == []


def test_an_unknown_class(comfy: Any) -> None:
    tiny = TinyFamily(comfy, BY_NAME["Flux"])
    module = tiny.model.model.diffusion_model
    module.__class__ = type("FluxOfTomorrow", (type(module),), {})
    reason = described(comfy, module).reason
    assert reason.startswith("The model class `FluxOfTomorrow` is not supported yet (supported: ")
    in_full_because(tiny, f"{reason}; it runs in full.")


def test_a_block_with_another_signature(comfy: Any) -> None:
    tiny = TinyFamily(comfy, BY_NAME["Flux"])
    block = tiny.model.model.diffusion_model.double_blocks[1]

    class Renamed(type(block)):  # type: ignore[misc]
        def forward(self, img: Tensor, txt: Tensor, vec: Any, **kwargs: Any) -> Any:
            return super().forward(img, txt, vec, **kwargs)

    block.__class__ = Renamed
    sentence = "The model `Flux` no longer fits the Flux backbone: `double_blocks.1` takes no argument `pe`; it runs in full."
    in_full_because(tiny, sentence)


PARTS = [
    (family.name, path)
    for family in FAMILIES
    for path, name in (("final_layer", "Flux"), ("patch_size", "Flux"), ("joint_blocks", "SD3"), ("proj_out", "Qwen-Image"))
    if family.name == name
]


@pytest.mark.parametrize(("name", "path"), PARTS)
def test_a_part_of_another_name(comfy: Any, name: str, path: str) -> None:
    """Found before anything runs: such a model could not be sampled."""
    tiny = TinyFamily(comfy, BY_NAME[name])
    module = tiny.model.model.diffusion_model
    setattr(module, f"{path}_of_tomorrow", getattr(module, path))
    delattr(module, path)
    fit = described(comfy, module)
    assert fit.backbone is None
    expected = f"The model `{type(module).__name__}` no longer fits the {name} backbone: it has no `{path}`"
    assert fit.reason == expected


def test_no_blocks(comfy: Any) -> None:
    module = TinyFamily(comfy, BY_NAME["SD3"]).model.model.diffusion_model
    del module.joint_blocks[:]
    assert "its `joint_blocks` is empty" in described(comfy, module).reason


def test_weights_in_eight_bits(comfy: Any) -> None:
    """What its weights are kept in changes nothing of a model's layout."""
    loader, flux = importlib.import_module("comfy.sd"), importlib.import_module("comfy.ldm.flux.model")
    state = random_weights(flux.Flux(**FLUX, operations=operations()))
    tiny = TinyFamily(comfy, BY_NAME["Flux"])
    tiny.model = loader.load_diffusion_model_state_dict(state, {"dtype": torch.float8_e4m3fn})
    assert tiny.model.model.diffusion_model.img_in.weight.dtype == torch.float8_e4m3fn
    model, found = frozen(tiny.accelerated())
    tiny.sample(model)
    assert largest(found) == 0.0
    assert tiny.report().notes == []
