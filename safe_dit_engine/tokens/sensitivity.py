"""Prompt-conditioned sensitivity of image tokens (paper section "PCSP"): evidence of warm-up steps -> map in [0, 1].

Two sources. *Attention*: the share of the joint softmax that an image token gives to each text token. Its plain mean over text tokens
says nothing (padding and start tokens soak up attention everywhere), so each text token is measured against its own mean over the image
and counts by how unevenly it is looked at; padding that is known by its repeated keys does not count. *Guidance*: how far the conditional
prediction is from the unconditional one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .focus import Focus
from .grid import TokenGrid

# Of a table of the softmax, 64 MiB: evidence must not be what a run fails for want of memory.
LARGEST_TABLE = 2**24
KEY_STRIDE = 4
REPEATED = 1e-3  # of the largest value: kernels may round equal rows differently


def image_to_text(q: Tensor, k: Tensor, text: slice, image: slice, scale: float | None = None, stride: int = 1) -> Tensor:
    """Joint-softmax mass of image rows on text rows, mean over heads: `[B, N_image, N_text]` float32.

    `q`, `k`: `[B, heads, rows, head_dim]` after norm and position embedding. With a `stride` above 1 only every so many image keys
    stand in for the rest in the softmax's sum: an estimate at a fraction of the cost.
    """
    return _mass(q[:, :, image], k[:, :, text], k[:, :, image][:, :, ::stride], scale, stride)


def cross_to_text(q: Tensor, k: Tensor, scale: float | None = None) -> Tensor:
    """The same for attention over text rows alone: here the masses of an image row sum to one, and only their pattern tells rows apart."""
    return _mass(q, k, k[:, :, :0], scale, 1)


def _mass(q: Tensor, words: Tensor, others: Tensor, scale: float | None, stride: int) -> Tensor:
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    keys = torch.cat((words, others), dim=2).transpose(-1, -2).float()
    weight = keys.new_zeros(keys.shape[-1])
    weight[words.shape[2] :] = math.log(stride)
    parts = []
    for queries in q.split(max(1, LARGEST_TABLE // (q.shape[0] * q.shape[1] * keys.shape[-1])), dim=2):
        mass = ((queries.float() * scale) @ keys).add_(weight).softmax(-1)
        parts.append(mass[..., : words.shape[2]].mean(1))
    return torch.cat(parts, dim=1)


def repeated_rows(k: Tensor) -> Tensor:
    """Bool `[B, T]`: text rows with the keys `[B, heads, T, head_dim]` of a neighbour. No two words have that, padding often has.

    Hundreds of such rows share what one of them would get, and would be counted hundreds of times.
    """
    same = (k[:, :, 1:] - k[:, :, :-1]).abs().amax((1, 3)) <= REPEATED * k.abs().amax((1, 2, 3))[:, None]
    edge = same.new_zeros(same.shape[0], 1)
    return torch.cat((edge, same), dim=1) | torch.cat((same, edge), dim=1)


def content_share(mass: Tensor) -> Tensor:
    """Per image token, how much more than average it looks at the text tokens that discriminate: `[B, N, T]` -> `[B, N]`."""
    mean = mass.mean(1, keepdim=True)
    excess = (mass - mean).clamp_min(0.0)
    # Contrast, not size, tells a content word from a sink: a sink is looked at a lot, but from everywhere.
    contrast = excess.pow(2).mean(1, keepdim=True).sqrt() / (mean + 1e-6)
    return (excess * contrast).sum(-1)


def guidance_strength(cond: Tensor, uncond: Tensor, grid: TokenGrid) -> Tensor:
    """|cond - uncond| of denoised predictions `[B, C, H, W]` or `[B, C, frames, H, W]`, mean over channels and a token's pixels: a map."""
    return grid.pool((cond - uncond).abs().mean(1))


def smooth(tokens: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of `[B, h, w]` over the token grid with standard deviation `sigma` tokens, edges replicated."""
    if sigma == 0.0:
        return tokens
    radius = min(max(1, round(2.5 * sigma)), *(size - 1 for size in tokens.shape[-2:]))
    offsets = torch.arange(-radius, radius + 1, device=tokens.device, dtype=tokens.dtype)
    kernel = torch.softmax(-(offsets**2) / (2.0 * sigma**2), dim=0)
    padded = torch.nn.functional.pad(tokens[:, None], (radius,) * 4, mode="replicate")
    rows = torch.nn.functional.conv2d(padded, kernel.view(1, 1, -1, 1))
    return torch.nn.functional.conv2d(rows, kernel.view(1, 1, 1, -1))[:, 0]


def normalise(tokens: Tensor, outliers: float = 0.01) -> Tensor:
    """Map `[B, h, w]` to [0, 1] per image, from the share `outliers` of lowest to that of highest tokens; a constant map becomes 0."""
    flat = tokens.flatten(1).float()
    low, high = torch.quantile(flat, torch.tensor([outliers, 1.0 - outliers], device=flat.device), dim=1)
    span = (high - low).clamp_min(torch.finfo(torch.float32).tiny)
    return ((flat - low[:, None]) / span[:, None]).clamp(0.0, 1.0).view_as(tokens)


class Evidence:
    """Collects the two signals of one run's warm-up steps; of attention, what goes to the words in `focus` alone where that is set."""

    def __init__(self) -> None:
        self.focus: Focus | None = None
        self._mass: Tensor | None = None
        self._guidance: Tensor | None = None

    @property
    def has_attention(self) -> bool:
        """Whether any attention was seen."""
        return self._mass is not None

    @property
    def has_guidance(self) -> bool:
        """Whether both a conditional and an unconditional prediction were seen."""
        return self._guidance is not None

    def add_attention(self, mass: Tensor, words: Tensor) -> None:
        """Add `image_to_text` `[B, N, T]` of a layer and step, of the positive cond; `words`: keys of the text `[B, heads, T, D]`."""
        mass = mass.masked_fill(repeated_rows(words)[:, None], 0.0)
        share = content_share(mass if self.focus is None else mass[..., self.focus.rows(mass.shape[-1])])
        share = share / share.mean(1, keepdim=True).clamp_min(1e-12)
        self._mass = share if self._mass is None else self._mass + share

    def add_guidance(self, strength: Tensor) -> None:
        """Add `guidance_strength` of one step: `[B, h, w]`, weighted so that every step counts the same."""
        share = strength / strength.mean((1, 2), keepdim=True).clamp_min(1e-12)
        self._guidance = share if self._guidance is None else self._guidance + share

    def attention_map(self, grid: TokenGrid, smoothing: float) -> Tensor:
        """Map in [0, 1] from attention; every frame of a video is smoothed by itself."""
        assert self._mass is not None
        return _finished(self._mass.view(-1, *grid.shape), grid, smoothing)

    def guidance_map(self, grid: TokenGrid, smoothing: float) -> Tensor:
        """Map in [0, 1] from the guidance signal."""
        assert self._guidance is not None
        return _finished(self._guidance, grid, smoothing)


def _finished(tokens: Tensor, grid: TokenGrid, smoothing: float) -> Tensor:
    return normalise(smooth(grid.apart(tokens), smoothing).view_as(tokens))
