"""Small models of every family, with random weights, built from ComfyUI's own classes; its own loader where that knows small sizes."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Family:
    """A small model to test a backbone with.

    `latent`: shape of one latent, without the batch. `extras`: what a prompt carries besides its text rows `[1, tokens, width]`;
    `masked`: and their mask, all ones.
    `tolerance`: largest difference allowed between a selective and a full pass at the same input, over the largest value, with the
    `reason` where it is not 0.
    """

    name: str
    build: Callable[[torch.dtype], Any]
    latent: tuple[int, ...]
    width: int
    extras: dict[str, Any] = field(default_factory=dict)
    masked: bool = False
    cfg: float = 4.0
    tolerance: float = 0.0
    reason: str = ""


def random_weights(module: nn.Module, seed: int = 0) -> Weights:
    """Random weights for a module; those of norms around one."""
    generator = torch.Generator().manual_seed(seed)
    return {name: _random_weight(name, value, generator) for name, value in module.state_dict().items()}


def _random_weight(name: str, value: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(value.shape, generator=generator) * 0.1
    return noise + 1.0 if "norm" in name and value.ndim == 1 else noise


def loaded(state: Weights, dtype: torch.dtype) -> Any:
    """A model patcher through ComfyUI's stock loader; it computes in `dtype`."""
    model = importlib.import_module("comfy.sd").load_diffusion_model_state_dict(state, {"dtype": dtype})
    assert model is not None, "ComfyUI's loader does not know these weights"
    model.model.manual_cast_dtype = None  # on a CPU ComfyUI would compute in float32 whatever the weights are
    return model


def configured(config_class: str, options: dict[str, Any], dtype: torch.dtype) -> Any:
    """A model patcher around one of ComfyUI's model configurations, for families whose loader knows only the real widths."""
    supported, patcher = importlib.import_module("comfy.supported_models"), importlib.import_module("comfy.model_patcher")
    config = getattr(supported, config_class)(dict(options))
    config.unet_config.update(options)  # before what the configuration adds of its own
    config.set_inference_dtype(dtype, None)
    model = config.get_model({}, "")
    model.diffusion_model.load_state_dict(random_weights(model.diffusion_model))
    return patcher.CoreModelPatcher(model.eval(), torch.device("cpu"), torch.device("cpu"))


def operations() -> Any:
    """ComfyUI's layers, left uninitialised."""
    return importlib.import_module("comfy.ops").disable_weight_init


# Families

FLUX = {
    "in_channels": 16, "out_channels": 16, "vec_in_dim": 32, "context_in_dim": 48, "hidden_size": 128, "mlp_ratio": 4.0, "num_heads": 1,
    "depth": 2, "depth_single_blocks": 3, "axes_dim": [16, 56, 56], "theta": 10000, "patch_size": 2, "qkv_bias": True,
    "guidance_embed": True, "txt_ids_dims": [],
}  # fmt: skip


def build_flux(dtype: torch.dtype, **changes: Any) -> Any:
    flux = importlib.import_module("comfy.ldm.flux.model")
    return loaded(random_weights(flux.Flux(**{**FLUX, **changes}, operations=operations())), dtype)


WAN = {"dim": 128, "num_heads": 1, "ffn_dim": 128, "num_layers": 3, "cross_attn_norm": True}
CLIP_IMAGE = SimpleNamespace(penultimate_hidden_states=torch.randn(1, 9, 1280, generator=torch.Generator().manual_seed(5)))


def build_wan(dtype: torch.dtype, **changes: Any) -> Any:
    wan = importlib.import_module("comfy.ldm.wan.model")
    return loaded(random_weights(wan.WanModel(**{"model_type": "t2v", **WAN, **changes}, operations=operations())), dtype)


def build_wan_clip(dtype: torch.dtype) -> Any:
    return build_wan(dtype, model_type="i2v", in_dim=36)


FLUX_2 = {
    **FLUX, "depth": 1, "depth_single_blocks": 1, "in_channels": 128, "out_channels": 128, "vec_in_dim": None, "mlp_ratio": 3.0,
    "axes_dim": [32, 32, 32, 32], "theta": 2000, "patch_size": 1, "qkv_bias": False, "txt_ids_dims": [3], "global_modulation": True,
    "mlp_silu_act": True, "ops_bias": False, "default_ref_method": "index", "ref_index_scale": 10.0,
}  # fmt: skip


def build_flux_2(dtype: torch.dtype) -> Any:
    return build_flux(dtype, **FLUX_2)


CHROMA = {
    "image_model": "chroma", "in_channels": 64, "out_channels": 64, "context_in_dim": 48, "hidden_size": 128, "mlp_ratio": 4.0,
    "num_heads": 2, "depth": 2, "depth_single_blocks": 3, "axes_dim": [16, 24, 24], "theta": 10000, "patch_size": 2, "qkv_bias": True,
    "in_dim": 64, "out_dim": 128, "hidden_dim": 96, "n_layers": 2, "txt_ids_dims": [], "vec_in_dim": None,
}  # fmt: skip


def build_chroma(dtype: torch.dtype) -> Any:
    return configured("Chroma", CHROMA, dtype)


def build_sd3(dtype: torch.dtype, **changes: Any) -> Any:
    mmdit = importlib.import_module("comfy.ldm.modules.diffusionmodules.mmdit")
    embedder = {"target": "torch.nn.Linear", "params": {"in_features": 48, "out_features": 128}}
    model = mmdit.OpenAISignatureMMDITWrapper(
        input_size=None, depth=2, in_channels=16, adm_in_channels=32, context_embedder_config=embedder, num_patches=256,
        pos_embed_max_size=16, operations=operations(), **changes,
    )  # fmt: skip
    return loaded(random_weights(model), dtype)


def build_sd35(dtype: torch.dtype) -> Any:
    return build_sd3(dtype, qk_norm="rms", x_block_self_attn_layers=[0])


LENS = {"num_layers": 2, "num_attention_heads": 3, "enc_hidden_dim": 24, "selected_layer_index": (0, 1)}


def build_lens(dtype: torch.dtype) -> Any:
    lens = importlib.import_module("comfy.ldm.lens.model")
    return loaded(random_weights(lens.LensTransformer2DModel(**LENS, operations=operations())), dtype)


QWEN = {
    "image_model": "qwen_image", "num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 32, "axes_dims_rope": (8, 12, 12),
    "joint_attention_dim": 48,
}  # fmt: skip


def build_qwen(dtype: torch.dtype) -> Any:
    return configured("QwenImage", QWEN, dtype)


def build_mage_flow(dtype: torch.dtype) -> Any:
    return configured("MageFlow", {**QWEN, "image_model": "mage_flow"}, dtype)


HUNYUAN = {
    "in_channels": 16, "out_channels": 16, "vec_in_dim": 768, "context_in_dim": 48, "hidden_size": 128, "mlp_ratio": 4.0, "num_heads": 1,
    "depth": 2, "depth_single_blocks": 2, "axes_dim": [16, 56, 56], "theta": 256, "patch_size": [1, 2, 2], "qkv_bias": True,
    "guidance_embed": True, "byt5": False, "meanflow": False, "use_cond_type_embedding": False, "vision_in_dim": None,
    "meanflow_sum": False,
}  # fmt: skip


def build_hunyuan(dtype: torch.dtype, **changes: Any) -> Any:
    hunyuan = importlib.import_module("comfy.ldm.hunyuan_video.model")
    return loaded(random_weights(hunyuan.HunyuanVideo(**{**HUNYUAN, **changes}, operations=operations())), dtype)


AURA = {
    "cond_seq_dim": 48, "dim": 128, "n_layers": 4, "n_double_layers": 2, "n_heads": 2, "global_conddim": 128, "max_seq": 256,
}  # fmt: skip


def build_aura(dtype: torch.dtype) -> Any:
    return configured("AuraFlow", AURA, dtype)


HIDREAM = {
    "image_model": "hidream", "attention_head_dim": 32, "axes_dims_rope": [8, 12, 12], "caption_channels": [48, 64],
    "max_resolution": [128, 128], "in_channels": 16, "llama_layers": [0, 1, 2, 2], "num_attention_heads": 2, "num_routed_experts": 4,
    "num_activated_experts": 2, "num_layers": 2, "num_single_layers": 2, "out_channels": 16, "patch_size": 2, "text_emb_dim": 32,
}  # fmt: skip
LLAMA = torch.randn(1, 3, 16, 64, generator=torch.Generator().manual_seed(6))


def build_hidream(dtype: torch.dtype) -> Any:
    return configured("HiDream", HIDREAM, dtype)


NEXTDIT = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 96, "n_layers": 3, "n_refiner_layers": 1, "n_heads": 2,
    "n_kv_heads": 1, "axes_dims": [16, 16, 16], "axes_lens": [300, 512, 512], "rope_theta": 10000.0, "multiple_of": 32,
    "ffn_dim_multiplier": 2.0, "cap_feat_dim": 48, "qk_norm": True, "time_scale": 1000.0,
}  # fmt: skip
Z_IMAGE = {
    "dim": 256, "axes_dims": [32, 48, 48], "n_refiner_layers": 2, "n_kv_heads": 2, "rope_theta": 256.0, "ffn_dim_multiplier": 8 / 3,
    "z_image_modulation": True, "pad_tokens_multiple": 32,
}  # fmt: skip


def build_lumina2(dtype: torch.dtype) -> Any:
    return configured("Lumina2", NEXTDIT, dtype)


def build_z_image(dtype: torch.dtype) -> Any:
    return configured("ZImage", NEXTDIT | Z_IMAGE, dtype)


PIXART = {"hidden_size": 96, "num_heads": 2, "depth": 3, "caption_channels": 48}


def build_pixart(dtype: torch.dtype, **changes: Any) -> Any:
    return configured("PixArtSigma", PIXART | changes, dtype)


ERNIE = {
    "hidden_size": 96, "num_attention_heads": 2, "num_layers": 3, "ffn_hidden_size": 192, "text_in_dim": 48, "rope_axes_dim": (16, 16, 16),
}  # fmt: skip


def build_ernie(dtype: torch.dtype) -> Any:
    return configured("ErnieImage", ERNIE, dtype)


KREA2 = {
    "features": 64, "tdim": 64, "txtdim": 24, "heads": 2, "kvheads": 1, "multiplier": 2, "layers": 3, "txtlayers": 2, "txtheads": 2,
    "txtkvheads": 2,
}  # fmt: skip


def build_krea2(dtype: torch.dtype) -> Any:
    return configured("Krea2", KREA2, dtype)


COSMOS = {
    "image_model": "cosmos_predict2", "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16, "out_channels": 16,
    "patch_spatial": 2, "patch_temporal": 1, "model_channels": 96, "num_blocks": 3, "num_heads": 2, "mlp_ratio": 2.0,
    "crossattn_emb_channels": 48, "pos_emb_cls": "rope3d", "use_adaln_lora": True, "adaln_lora_dim": 16,
}  # fmt: skip


def build_cosmos(dtype: torch.dtype) -> Any:
    return configured("CosmosT2IPredict2", COSMOS, dtype)


IDEOGRAM = {
    "in_channels": 128, "num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 32, "intermediate_size": 96, "adaln_dim": 32,
    "llm_features_dim": 48, "mrope_section": (6, 5, 5),
}  # fmt: skip


def build_ideogram(dtype: torch.dtype) -> Any:
    return configured("Ideogram4", IDEOGRAM, dtype)


KANDINSKY = {
    "in_text_dim": 48, "time_dim": 32, "model_dim": 64, "ff_dim": 96, "visual_embed_dim": 132, "num_text_blocks": 1,
    "num_visual_blocks": 3, "axes_dims": (8, 12, 12),
}  # fmt: skip


def build_kandinsky(dtype: torch.dtype) -> Any:
    return configured("Kandinsky5", KANDINSKY, dtype)


OMNIGEN2 = {
    "in_channels": 16, "hidden_size": 96, "num_layers": 3, "num_refiner_layers": 1, "num_attention_heads": 2, "num_kv_heads": 1,
    "multiple_of": 32, "axes_dim_rope": (16, 16, 16), "text_feat_dim": 48, "timestep_scale": 1000.0,
}  # fmt: skip


def build_omnigen2(dtype: torch.dtype) -> Any:
    return configured("Omnigen2", OMNIGEN2, dtype)


FAMILIES = (
    Family("Flux", build_flux, (16, 16, 24), 48, {"pooled_output": torch.ones(1, 32), "guidance": 3.5}),
    Family("Flux.2", build_flux_2, (128, 16, 20), 48, {"guidance": 3.5, "pooled_output": torch.ones(1, 32)}),
    Family("Chroma", build_chroma, (16, 16, 24), 48, {"pooled_output": torch.ones(1, 32)}),
    Family("SD3", build_sd3, (16, 16, 24), 48, {"pooled_output": torch.ones(1, 32)}),
    Family("SD3.5", build_sd35, (16, 16, 24), 48, {"pooled_output": torch.ones(1, 32)}),
    Family("Qwen-Image", build_qwen, (16, 1, 16, 24), 48),
    Family("Mage-Flow", build_mage_flow, (128, 10, 12), 48),
    Family("Lens", build_lens, (128, 10, 12), 48),
    Family("HunyuanVideo", build_hunyuan, (16, 2, 12, 16), 48, {"pooled_output": torch.ones(1, 768)}),
    Family("AuraFlow", build_aura, (4, 16, 24), 48),
    Family("HiDream", build_hidream, (16, 16, 24), 48, {"pooled_output": torch.ones(1, 32), "conditioning_llama3": LLAMA},
        tolerance=1e-6, reason="an expert gets fewer rows, and a product of another size rounds differently"),
    Family("Wan", build_wan, (16, 3, 8, 12), 4096),
    Family("Wan, one frame", build_wan, (16, 1, 16, 24), 4096),
    Family("Wan with CLIP image", build_wan_clip, (16, 3, 8, 12), 4096, {"clip_vision_output": CLIP_IMAGE}),
    Family("Lumina2", build_lumina2, (16, 16, 24), 48),
    Family("Z-Image", build_z_image, (16, 18, 22), 48),
    Family("PixArt", build_pixart, (4, 32, 36), 48, reason="in bfloat16, products over fewer rows round differently"),
    Family("Ernie-Image", build_ernie, (128, 10, 12), 48),
    Family("Krea 2", build_krea2, (16, 1, 16, 24), 48),
    Family("Cosmos-Predict2", build_cosmos, (16, 1, 16, 24), 48),
    Family("Cosmos-Predict2, video", build_cosmos, (16, 3, 8, 12), 48),
    Family("Ideogram 4", build_ideogram, (128, 10, 12), 48),
    Family("Kandinsky 5", build_kandinsky, (16, 3, 8, 12), 48, {"pooled_output": torch.ones(1, 768)}),
    Family("OmniGen2", build_omnigen2, (16, 16, 24), 48, masked=True),
)
