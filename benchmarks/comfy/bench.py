"""The demo model in this process, through ComfyUI's own loader and sampler; import ComfyUI first (`in_process.import_comfyui`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..measure.in_turn import Cell, Sample, Shot, rows_through, timed
from ..measure.methods import Method

CFG, SCHEDULER = 4.0, "simple"
# The name under which the pack keeps the report of a run.
NODE = "safe_dit_bench"


def sampling(model: Any, sampler: str, steps: int, latent: Tensor, seeds: Sequence[int], conds: Sequence[Any]) -> Callable[[], Tensor]:
    """A run of ComfyUI's sampler, all but started: from noise of these seeds, with a positive and a negative conditioning."""
    from comfy.sample import prepare_noise, sample_custom
    from comfy.samplers import calculate_sigmas, sampler_object
    from comfy_execution.utils import CurrentNodeContext

    sigmas = calculate_sigmas(model.get_model_object("model_sampling"), SCHEDULER, steps)
    noise = torch.cat([prepare_noise(latent[:1], seed) for seed in seeds])
    run = partial(sample_custom, model, noise, CFG, sampler_object(sampler), sigmas, *conds, latent, disable_pbar=True, seed=seeds[0])

    def sampled() -> Tensor:
        with torch.inference_mode(), CurrentNodeContext(NODE, NODE):
            samples: Tensor = run()
        return samples

    return sampled


class Bench:
    """The demo model on a device."""

    def __init__(self, device: str = "cpu") -> None:
        from safe_dit_engine.hosts.comfy.demo import load_demo

        self.device = device
        self.model, self._clip, self._vae = load_demo()
        # A quarter less time for the decoder on a CPU, the picture the same but for 3e-7.
        self._vae.first_stage_model.to(memory_format=torch.channels_last)
        self._encoded: dict[str, Any] = {}

    def sample(self, method: Method, cell: Cell, shot: Shot) -> Sample:
        """Pictures by one method. The time is that of the sampler node: model calls and what is around them, no text, no VAE."""
        patched = method.change(self.model)
        encoded = [self.encoded(text) for text in (*shot.captions, "")]
        positive = [[torch.cat([found[0][0] for found in encoded[:-1]]), encoded[0][0][1]]]
        latent = torch.zeros(len(shot.seeds), 16, cell.size // 8, cell.size // 8)
        run = sampling(patched, cell.sampler, method.steps(cell.steps), latent, shot.seeds, (positive, encoded[-1]))
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
