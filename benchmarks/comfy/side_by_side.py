"""Methods side by side in one process, through ComfyUI's own sampler and the demo model: the same prompts, seeds and sizes, in turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from safe_dit_engine.cli.clock import now, peak_bytes_of, reset_peak

from ..measure.in_turn import NOT_COMPARED, make_in_turn
from ..measure.journal import Cell, Journal, Sample, Shot
from .peers import DENSE, Method

CFG, SCHEDULER = 4.0, "simple"


class Bench:
    """The demo model in ComfyUI; import ComfyUI first (`in_process.import_comfyui`)."""

    def __init__(self, device: str = "cpu") -> None:
        from safe_dit_engine.hosts.comfy.demo import load_demo

        self.device = device
        self.model, self._clip, self._vae = load_demo()
        # A quarter less time for the decoder on a CPU, the picture the same but for 3e-7.
        self._vae.first_stage_model.to(memory_format=torch.channels_last)
        self._prompts: dict[str, Any] = {}

    def sample(self, method: Method, cell: Cell, shot: Shot) -> Sample:
        """One picture by one method. The time is that of the sampler node: model calls and what is around them, no text, no VAE."""
        from comfy.sample import prepare_noise, sample_custom
        from comfy.samplers import calculate_sigmas, sampler_object

        patched = method.patch(self.model)
        sigmas = calculate_sigmas(patched.get_model_object("model_sampling"), SCHEDULER, method.steps(cell.steps))
        latent = torch.zeros(1, 16, cell.size // 8, cell.size // 8)
        noise, prompts = prepare_noise(latent, shot.seed), [self._prompt(text) for text in (shot.scene.caption, "")]
        peak_is_known = reset_peak(self.device)
        with torch.inference_mode(), _counted_rows(patched.model.diffusion_model) as rows:
            started = now(self.device)
            samples = sample_custom(patched, noise, CFG, sampler_object(cell.sampler), sigmas, *prompts, latent, disable_pbar=True)
            seconds, peak = now(self.device) - started, peak_bytes_of(self.device) if peak_is_known else None
            picture = self._vae.decode(samples)[0].clamp(0, 1).float().cpu().numpy()
        return Sample(picture, seconds, sum(rows), peak)

    def _prompt(self, text: str) -> Any:
        if text not in self._prompts:
            with torch.inference_mode():
                self._prompts[text] = self._clip.encode_from_tokens_scheduled(self._clip.tokenize(text))
        return self._prompts[text]

    def measure(self, cell: Cell, methods: Sequence[Method], shots: Sequence[Shot], journal: Journal | None = None) -> list[dict[str, Any]]:
        """One row a method, dense first; pictures that the journal has are not made again."""
        journal, everything = journal or Journal(), [DENSE, *methods]
        make_in_turn(self.sample, everything, cell, shots, journal)
        return [{**_names(method, cell), **journal.row(method, cell, shots, method.name not in NOT_COMPARED)} for method in everything]


def _names(method: Method, cell: Cell) -> dict[str, Any]:
    names = {"method": method.name, "setting": method.setting, "model": "demo"}
    return {**names, "resolution": f"{cell.size}x{cell.size}", "steps": cell.steps, "sampler": cell.sampler}


@contextmanager
def _counted_rows(module: Any) -> Iterator[list[int]]:
    """Rows, text rows and conds counted, that pass the model's middle block: the same count for every method."""
    rows: list[int] = []
    block = module.layers[len(module.layers) // 2]
    handle = block.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].shape[0] * inputs[0].shape[1]))
    try:
        yield rows
    finally:
        handle.remove()
