"""The demo model in this process, through ComfyUI's own loader and sampler; import ComfyUI first (`in_process.import_comfyui`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..measure.in_turn import Cell, Sample, Shot, rows_through, timed
from ..measure.methods import Method

CFG, SCHEDULER = 4.0, "simple"
# The name under which the pack keeps the report of a run.
NODE = "safe_dit_bench"


def sampling(
    model: Any,
    sampler: str,
    steps: int,
    latent: Tensor,
    seeds: Sequence[int],
    conds: Sequence[Any],
    cfg: float = CFG,
    scheduler: str = SCHEDULER,
) -> Callable[[], Tensor]:
    """A run of ComfyUI's sampler, all but started: from noise of these seeds, with a positive and a negative conditioning."""
    from comfy.sample import prepare_noise, sample_custom
    from comfy.samplers import calculate_sigmas, sampler_object
    from comfy_execution.utils import CurrentNodeContext

    sigmas = calculate_sigmas(model.get_model_object("model_sampling"), scheduler, steps)
    noise = torch.cat([prepare_noise(latent[:1], seed) for seed in seeds])
    run = partial(sample_custom, model, noise, cfg, sampler_object(sampler), sigmas, *conds, latent, disable_pbar=True, seed=seeds[0])

    def sampled() -> Tensor:
        with torch.inference_mode(), CurrentNodeContext(NODE, NODE):
            samples: Tensor = run()
        return samples

    return sampled


def with_lora(model: Any, path: Path) -> Any:
    """The model with a LoRA, as ComfyUI's loader nodes put it on."""
    from comfy.sd import load_lora_for_models
    from comfy.utils import load_torch_file

    patched, _ = load_lora_for_models(model, None, load_torch_file(str(path), safe_load=True), 1.0, 0.0)
    return patched


class Bench:
    """The demo model on a device; with a `lora` for few steps, which is sampled without guidance."""

    def __init__(self, device: str = "cpu", lora: Path | None = None) -> None:
        from safe_dit_engine.hosts.comfy.demo import load_demo

        self.device, self.cfg, self.scheduler = device, CFG if lora is None else 1.0, SCHEDULER
        model, self._clip, self._vae = load_demo()
        self.model = model if lora is None else with_lora(model, lora)
        # A quarter less time for the decoder on a CPU, the picture the same but for 3e-7.
        self._vae.first_stage_model.to(memory_format=torch.channels_last)
        self._encoded: dict[str, Any] = {}

    def sample(self, method: Method, cell: Cell, shot: Shot) -> Sample:
        """Pictures by one method. The time is that of the sampler node: model calls and what is around them, no text, no VAE."""
        patched = method.change(self.model)
        encoded = [self.encoded(text) for text in (*shot.captions, "")]
        positive = [[torch.cat([found[0][0] for found in encoded[:-1]]), encoded[0][0][1]]]
        latent = torch.zeros(len(shot.seeds), 16, cell.size // 8, cell.size // 8)
        run = sampling(
            patched, cell.sampler, method.steps(cell.steps), latent, shot.seeds, (positive, encoded[-1]), self.cfg, self.scheduler
        )
        layers = patched.model.diffusion_model.layers
        with rows_through(layers[len(layers) // 2]) as rows:
            samples, seconds, peak = timed(run, self.device)
        with torch.inference_mode():
            pictures = self._vae.decode(samples).clamp(0, 1).float().cpu().numpy()
        return Sample(pictures, seconds, sum(rows), peak)

    def encoded(self, text: str) -> Any:
        """A prompt's conditioning."""
        if text not in self._encoded:
            with torch.inference_mode():
                self._encoded[text] = self._clip.encode_from_tokens_scheduled(self._clip.tokenize(text))
        return self._encoded[text]
