"""ComfyUI inside the test process, with the pack loaded by ComfyUI itself."""
from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks.comfy.in_process import import_comfyui
from devtools.server import BASE_FOLDERS, PACK_NAME, PACK_ROOT, ServerError, comfyui_path, place


@dataclass(frozen=True)
class InProcessComfy:
    """ComfyUI's modules and node classes, and the pack as ComfyUI loaded it."""

    path: Path
    base: Path
    nodes: ModuleType
    pack: ModuleType

    @property
    def node_classes(self) -> Mapping[str, type]:
        """All known nodes by id, the pack's among them."""
        classes: Mapping[str, type] = self.nodes.NODE_CLASS_MAPPINGS
        return classes

    def load_extra(self, file: str) -> None:
        """Load one of ComfyUI's extra node files, for example `nodes_custom_sampler.py`."""
        if not asyncio.run(self.nodes.load_custom_node(str(self.path / "comfy_extras" / file), module_parent="comfy_extras")):
            raise ServerError(f"ComfyUI could not load its own comfy_extras/{file}; see the captured log.")

    def engine(self, name: str) -> ModuleType:
        """The pack's own copy of an engine module: not the one that `import safe_dit_engine` gives, but the one the nodes use."""
        return importlib.import_module(f"{self.pack.__name__}.safe_dit_engine.{name}")

    def execute(self, node_id: str, **inputs: Any) -> tuple[Any, ...]:
        """Run one node, old style or new, and return its outputs."""
        node: Any = self.node_classes[node_id]
        if hasattr(node, "PREPARE_CLASS_CLONE"):
            result = node.PREPARE_CLASS_CLONE(None).EXECUTE_NORMALIZED(**inputs).result
            return tuple(result or ())
        return tuple(getattr(node(), node.FUNCTION)(**inputs))


@pytest.fixture(scope="session")
def comfy(tmp_path_factory: pytest.TempPathFactory) -> InProcessComfy:
    """ComfyUI in this process, on the CPU, with the pack's node classes in `comfy.node_classes`."""
    path = comfyui_path()
    base = tmp_path_factory.mktemp("comfyui")
    for name in BASE_FOLDERS:
        (base / name).mkdir(parents=True, exist_ok=True)
    nodes = import_comfyui(base=base)
    folder = base / "custom_nodes" / PACK_NAME
    place(PACK_ROOT, folder)
    loaded = asyncio.run(nodes.load_custom_node(str(folder)))
    assert loaded, "ComfyUI could not load the pack; its traceback is in the captured log"
    return InProcessComfy(path, base, nodes, sys.modules[str(folder).replace(".", "_x_")])


def described(comfy: InProcessComfy, module: torch.nn.Module) -> Any:
    """What the pack's table of ComfyUI's families says of a model."""
    backbones = comfy.engine("backbones")
    return backbones.find_backbone(module, backbones.BACKBONES)


TEXT_WIDTH = 64
NEXTDIT = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 96, "n_layers": 3, "n_refiner_layers": 1, "n_heads": 2,
    "n_kv_heads": 2, "axes_dims": [16, 16, 16], "axes_lens": [300, 512, 512], "rope_theta": 10000.0, "multiple_of": 32,
    "ffn_dim_multiplier": 2.0, "cap_feat_dim": TEXT_WIDTH, "qk_norm": True, "time_scale": 1000.0,
}  # fmt: skip


class TinyNextDiT:
    """A small NextDiT of ComfyUI's own classes with random weights, and ComfyUI's own KSampler node to run it."""

    def __init__(self, comfy: InProcessComfy, **changes: Any) -> None:
        self.comfy = comfy
        self.model = build_nextdit(0, **changes)

    def prompt(self, seed: int, tokens: int = 40, **extras: Any) -> list[list[Any]]:
        """A conditioning with random text rows."""
        return [[torch.randn(1, tokens, TEXT_WIDTH, generator=torch.Generator().manual_seed(seed)), extras]]

    def accelerated(self, keep: float = 0.25, interval: int = 4, warmup: int = 2, model: Any = None, **schedule: Any) -> Any:
        """The model through the Accelerate node with own values; `schedule` replaces the plain one."""
        values = {"forecast": 0.0, "early_refresh": False, "skipped_steps": 0, "corrector": False, **schedule}
        inputs = {"preset": "custom", "keep_ratio": keep, "refresh_interval": interval, "warmup_steps": warmup, **values}
        return self.comfy.execute("SafeDitAccelerate", model=model or self.model, **inputs)[0]

    def sample(self, model: Any, **changes: Any) -> torch.Tensor:
        """Latent after KSampler; `changes` replace its inputs, `size` and `images` shape the empty latent."""
        shape = (changes.pop("images", 1), 16, *changes.pop("size", (16, 16)))
        inputs: dict[str, Any] = {
            "seed": 3, "steps": 8, "cfg": 4.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0,
            "positive": self.prompt(1), "negative": self.prompt(2), "latent_image": {"samples": torch.zeros(shape)},
        }  # fmt: skip
        with torch.inference_mode(), self.executing("sampler"):
            latent: dict[str, torch.Tensor] = self.comfy.execute("KSampler", model=model, **{**inputs, **changes})[0]
        return latent["samples"]

    def executing(self, node_id: str) -> Any:
        """ComfyUI's own mark of the node that is running, under which the pack keeps its report."""
        return importlib.import_module("comfy_execution.utils").CurrentNodeContext("prompt", node_id)

    def report(self, node_id: str = "sampler") -> Any:
        """Report of the last run under that node."""
        prompt = {"after": {"inputs": {"latent": [node_id, 0]}}}
        return self.comfy.engine("hosts.comfy.reports").report_upstream(prompt, "after")

    def leftovers(self) -> list[str]:
        """Hooks and instance attributes on the shared module that were not there when it was built."""
        found = []
        for name, module in self.model.model.diffusion_model.named_modules():
            if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
                found.append(name)
        return found


def build_nextdit(seed: int, **changes: Any) -> Any:
    """Model patcher around a NextDiT with random weights; `changes` to its configuration."""
    supported, patcher = importlib.import_module("comfy.supported_models"), importlib.import_module("comfy.model_patcher")
    config = supported.Lumina2({**NEXTDIT, **changes})
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "")
    generator = torch.Generator().manual_seed(seed)
    state = {name: _random_weight(name, value, generator) for name, value in model.diffusion_model.state_dict().items()}
    model.diffusion_model.load_state_dict(state)
    return patcher.CoreModelPatcher(model.eval(), torch.device("cpu"), torch.device("cpu"))


def _random_weight(name: str, value: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(value.shape, generator=generator) * 0.1
    return noise + 1.0 if "norm" in name and value.ndim == 1 else noise


@pytest.fixture(scope="session")
def tiny(comfy: InProcessComfy) -> TinyNextDiT:
    """A tiny NextDiT ready to sample."""
    return TinyNextDiT(comfy)


@pytest.fixture(scope="session")
def padded(comfy: InProcessComfy) -> TinyNextDiT:
    """The same with text and image rows padded to a multiple, as Z-Image has them."""
    return TinyNextDiT(comfy, pad_tokens_multiple=32)


class TinyMasked(TinyNextDiT):
    """A small model of a family that masks padded text, with random weights; `width` is that of its text."""

    def __init__(self, comfy: InProcessComfy, model: Any, width: int, latent: tuple[int, ...]) -> None:
        self.comfy = comfy
        self.model = model
        self.width = width
        self.latent = latent

    def prompt(self, seed: int, tokens: int = 24, padding: int = 0, **extras: Any) -> list[list[Any]]:
        """A conditioning with random text rows, the last `padding` of them masked."""
        if padding:
            extras["attention_mask"] = (torch.arange(tokens) < tokens - padding).long()[None]
        return [[torch.randn(1, tokens, self.width, generator=torch.Generator().manual_seed(seed)), extras]]

    def prompts(self, positive: int, negative: int, tokens: tuple[int, int] = (24, 24)) -> dict[str, Any]:
        """Both prompts with this much padding."""
        return {"positive": self.prompt(1, tokens[0], positive), "negative": self.prompt(2, tokens[1], negative)}

    def sample(self, model: Any, **changes: Any) -> torch.Tensor:
        """Latent after KSampler."""
        latent = {"samples": torch.zeros(changes.pop("images", 1), *self.latent)}
        return super().sample(model, **{"steps": 6, "latent_image": latent, **changes})

    def certified(self, mode: str = "elide", model: Any = None) -> Any:
        """The model through the Mask Elision Patcher."""
        return self.comfy.execute("SafeDitMaskElision", model=model or self.model, mode=mode)[0]


LENS = {"num_layers": 2, "num_attention_heads": 2, "enc_hidden_dim": 24, "selected_layer_index": (0, 1)}
QWEN = {
    "image_model": "qwen_image", "num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 32, "axes_dims_rope": (8, 12, 12),
    "joint_attention_dim": 48,
}  # fmt: skip


def random_state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Random weights for a module."""
    generator = torch.Generator().manual_seed(0)
    return {name: _random_weight(name, value, generator) for name, value in module.state_dict().items()}


def load_lens(dtype: torch.dtype) -> Any:
    """Model patcher around a small Lens, through ComfyUI's stock loader; it computes in `dtype`."""
    lens, operations = importlib.import_module("comfy.ldm.lens.model"), importlib.import_module("comfy.ops").disable_weight_init
    state = random_state(lens.LensTransformer2DModel(**LENS, operations=operations))
    model = importlib.import_module("comfy.sd").load_diffusion_model_state_dict(state, {"dtype": dtype})
    model.model.manual_cast_dtype = None  # on a CPU ComfyUI would compute in float32 whatever the weights are
    return model


def build_qwen() -> Any:
    """Model patcher around a small Qwen-Image; ComfyUI's loader knows only the real width."""
    supported, patcher = importlib.import_module("comfy.supported_models"), importlib.import_module("comfy.model_patcher")
    config = supported.QwenImage(dict(QWEN))
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "")
    model.diffusion_model.load_state_dict(random_state(model.diffusion_model))
    return patcher.CoreModelPatcher(model.eval(), torch.device("cpu"), torch.device("cpu"))


@pytest.fixture(scope="session")
def lens(comfy: InProcessComfy) -> TinyMasked:
    """A tiny Lens: every one of its attention calls carries a mask."""
    return TinyMasked(comfy, load_lens(torch.float32), 48, (128, 10, 10))


@pytest.fixture(scope="session")
def lens_in_bfloat16(comfy: InProcessComfy) -> TinyMasked:
    """The same in bfloat16, where every layer makes its own copy of the mask."""
    return TinyMasked(comfy, load_lens(torch.bfloat16), 48, (128, 10, 10))


@pytest.fixture(scope="session")
def qwen(comfy: InProcessComfy) -> TinyMasked:
    """A tiny Qwen-Image: every layer makes its own mask from the text's, where there is one."""
    return TinyMasked(comfy, build_qwen(), 48, (16, 1, 12, 12))
