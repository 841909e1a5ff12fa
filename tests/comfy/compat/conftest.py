"""What other nodes do around ours: the stand-in pack, the demo model with its trained weights, and ComfyUI's custom sampler."""

from __future__ import annotations

import asyncio
import importlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.demo_model.scenes import scene_from_seed
from devtools.server import PACK_NAME, PACK_ROOT, ComfyServer

STAND_IN = Path(__file__).parents[2] / "support" / "stand_in_pack"


@pytest.fixture(scope="session")
def guests(comfy: Any) -> Any:
    """ComfyUI in this process with the stand-in pack and its own custom sampler nodes."""
    assert asyncio.run(comfy.nodes.load_custom_node(str(STAND_IN)))
    comfy.load_extra("nodes_custom_sampler.py")
    return comfy


@pytest.fixture(scope="session")
def stand_in_server() -> Iterator[ComfyServer]:
    """A real server with this pack and the stand-in pack."""
    with ComfyServer(packs={PACK_NAME: PACK_ROOT, "stand-in": STAND_IN}) as running:
        yield running


class Demo:
    """The demo model at 256 px, and ComfyUI's own KSampler to run it: a picture that is wrong shows."""

    def __init__(self, comfy: Any) -> None:
        self.comfy = comfy
        self.model, self.clip, self.vae = comfy.execute("SafeDitDemoModel")

    def prompt(self, seed: int | None) -> Any:
        """The conditioning of a scene's caption; None: an empty one."""
        return self.comfy.execute("CLIPTextEncode", clip=self.clip, text="" if seed is None else scene_from_seed(seed).caption)[0]

    def accelerated(self, preset: str, model: Any = None) -> Any:
        """The model through Accelerate; *custom* computes 0.4 of the tokens in two of three steps."""
        values = {"keep_ratio": 0.4, "refresh_interval": 3, "warmup_steps": 3, "forecast": 0.3, "early_refresh": False}
        return self.comfy.execute("SafeDitAccelerate", model=model or self.model, preset=preset, **values)[0]

    def picture(self, model: Any, positive: Any) -> Tensor:
        """Pixels after 12 steps at CFG 4."""
        settings = {"seed": 3, "steps": 12, "cfg": 4.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
        empty = {"samples": torch.zeros(1, 16, 32, 32)}
        prompts = {"positive": positive, "negative": self.prompt(None)}
        executing = importlib.import_module("comfy_execution.utils").CurrentNodeContext("prompt", "demo")
        with torch.inference_mode(), executing:
            latent = self.comfy.execute("KSampler", model=model, latent_image=empty, **prompts, **settings)[0]
            pixels: Tensor = self.comfy.execute("VAEDecode", vae=self.vae, samples=latent)[0]
        return pixels

    def closeness(self, preset: str, positive: Any, model: Any = None) -> float:
        """PSNR in dB of the accelerated picture against the full one of the same model and prompt."""
        difference = self.picture(self.accelerated(preset, model), positive) - self.picture(model or self.model, positive)
        return -10.0 * math.log10(float(difference.pow(2).mean()))


@pytest.fixture(scope="session")
def demo(guests: Any) -> Demo:
    """The demo model."""
    return Demo(guests)


class Custom:
    """The tiny model through SamplerCustomAdvanced."""

    def __init__(self, tiny: Any, comfy: Any) -> None:
        self.tiny, self.comfy = tiny, comfy

    def partitioned(self, model: Any = None) -> Any:
        """The model through the Prompt Token Partitioner."""
        values = {"keep_ratio": 0.25, "signal": "attention", "warmup_steps": 2, "smoothing": 0.7}
        return self.comfy.execute("SafeDitPartitioner", model=model or self.tiny.model, **values)[0]

    def selective(self, painted: str = "", **changes: Any) -> Any:
        """A Selective Update Sampler."""
        schedule = {"refresh_interval": 4, "start_percent": 0.0, "end_percent": 1.0, "forecast": 0.0, "early_refresh": False, **changes}
        return self.comfy.execute("SafeDitSelectiveSampler", painted_tokens=painted, **schedule)[0]

    def sample(self, model: Any, sampler: Any, guider: Any = None, steps: int = 8) -> Tensor:
        """Latent after it."""
        if guider is None:
            prompts = {"positive": self.tiny.prompt(1), "negative": self.tiny.prompt(2)}
            guider = self.comfy.execute("CFGGuider", model=model, cfg=4.0, **prompts)[0]
        inputs = {
            "noise": self.comfy.execute("RandomNoise", noise_seed=3)[0],
            "sigmas": self.comfy.execute("BasicScheduler", model=model, scheduler="simple", steps=steps, denoise=1.0)[0],
            "latent_image": {"samples": torch.zeros(1, 16, 16, 16)},
        }
        with torch.inference_mode(), self.tiny.executing("sampler"):
            latent: Tensor = self.comfy.execute("SamplerCustomAdvanced", guider=guider, sampler=sampler, **inputs)[0]["samples"]
        return latent

    def kinds(self) -> str:
        """First letters of what the steps of the last run were."""
        return "".join(record.kind.letter for record in self.tiny.report().evaluations)


@pytest.fixture
def custom(tiny: Any, guests: Any) -> Custom:
    """ComfyUI's custom sampler around the tiny model."""
    return Custom(tiny, guests)
