"""The demo model's three networks in plain torch, for training where no host framework is at hand.

State-dict keys and maths are those of the stock classes a host loads the weights into: NextDiT (Lumina 2), the T5 encoder
stack and the tiny 16-channel autoencoder. The loader's test compares outputs, so a drift on either side shows.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class DiTConfig:
    """Shape of the transformer, in the words of NextDiT's constructor."""

    patch_size: int = 2
    in_channels: int = 16
    dim: int = 192
    n_layers: int = 8
    n_refiner_layers: int = 1
    n_heads: int = 4
    multiple_of: int = 64
    ffn_dim_multiplier: float = 3.0
    norm_eps: float = 1e-5
    qk_norm: bool = True
    cap_feat_dim: int = 128
    axes_dims: tuple[int, ...] = (16, 16, 16)
    rope_theta: float = 10000.0
    time_scale: float = 1000.0

    @property
    def ffn_dim(self) -> int:
        """Width of the SwiGLU's hidden layer."""
        return self.multiple_of * math.ceil(int(self.ffn_dim_multiplier * self.dim) / self.multiple_of)

    def unet_config(self) -> dict[str, object]:
        """Keyword arguments for the stock NextDiT."""
        return {"image_model": "lumina2", **asdict(self), "axes_dims": list(self.axes_dims), "axes_lens": [300, 512, 512]}


@dataclass(frozen=True)
class TextConfig:
    """Shape of the text encoder, in the words of the stock T5's config."""

    vocab_size: int = 64
    d_model: int = 128
    d_kv: int = 32
    d_ff: int = 256
    num_heads: int = 4
    num_layers: int = 2

    def model_config(self) -> dict[str, object]:
        """The dictionary the stock T5 is built from."""
        return {**asdict(self), "dense_act_fn": "gelu_pytorch_tanh", "is_gated_act": True, "model_type": "t5"}


NATIVE_GRID = 16  # tokens a side at 256 px; other sizes stretch their positions onto this range


def rope_options(grid_h: int, grid_w: int, native: int = NATIVE_GRID) -> dict[str, float]:
    """Scale and shift that spread a grid's patch centres over the longer side's native range.

    Positions of a grid of g tokens become (i + 0.5) * native / g - 0.5, so every size spans the same range.
    """
    scale = native / max(grid_h, grid_w)
    centre = (native - 1) / 2
    shift_y, shift_x = (centre - scale * (g - 1) / 2 for g in (grid_h, grid_w))
    return {"scale_x": scale, "scale_y": scale, "shift_x": shift_x, "shift_y": shift_y}


def rope_angles(positions: Tensor, axes_dims: tuple[int, ...], theta: float) -> Tensor:
    """Rotation angles, (rows, head_dim / 2), for positions (rows, axes)."""
    exponents = [torch.arange(0, d, 2, dtype=torch.float64, device=positions.device) / d for d in axes_dims]
    return torch.cat([positions[:, i : i + 1].double() * theta ** -e for i, e in enumerate(exponents)], dim=1).float()


def joint_positions(text_length: int, grid_h: int, grid_w: int, device: torch.device | str = "cpu") -> Tensor:
    """Positions (text rows + image rows, 3): text counts on the first axis, the image lies on the other two behind it."""
    options = rope_options(grid_h, grid_w)
    text = torch.zeros(text_length, 3, device=device)
    text[:, 0] = torch.arange(1, text_length + 1, device=device)
    y = torch.arange(grid_h, device=device) * options["scale_y"] + options["shift_y"]
    x = torch.arange(grid_w, device=device) * options["scale_x"] + options["shift_x"]
    image = torch.full((grid_h, grid_w, 3), text_length + 1.0, device=device)
    image[..., 1], image[..., 2] = y[:, None], x[None, :]
    return torch.cat([text, image.flatten(0, 1)])


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate neighbouring pairs of the last axis; x (b, rows, heads, d), cos and sin (rows, 1, d / 2)."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([cos * even - sin * odd, sin * even + cos * odd], dim=-1).flatten(-2)


class Attention(nn.Module):
    """Self-attention with RMS-normed queries and keys."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.heads = config.n_heads
        head_dim = config.dim // config.n_heads
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.out = nn.Linear(config.dim, config.dim, bias=False)
        self.q_norm = nn.RMSNorm(head_dim, eps=torch.finfo(torch.float32).eps)
        self.k_norm = nn.RMSNorm(head_dim, eps=torch.finfo(torch.float32).eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        q = rotate(self.q_norm(q.float()), cos, sin).to(v.dtype)
        k = rotate(self.k_norm(k.float()), cos, sin).to(v.dtype)
        mixed = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self.out(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.w2 = nn.Linear(config.ffn_dim, config.dim, bias=False)
        self.w3 = nn.Linear(config.dim, config.ffn_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    """Transformer block with sandwich norms; with `modulation`, scale and tanh gate come from the time embedding."""

    def __init__(self, config: DiTConfig, modulation: bool = True) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm1 = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.ffn_norm1 = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.attention_norm2 = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.ffn_norm2 = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(config.dim, 4 * config.dim)) if modulation else None

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, time: Tensor | None = None) -> Tensor:
        if self.adaLN_modulation is None:
            x = x + self.attention_norm2(self.attention(self.attention_norm1(x), cos, sin))
            return x + self.ffn_norm2(self.feed_forward(self.ffn_norm1(x)))
        scale_a, gate_a, scale_f, gate_f = self.adaLN_modulation(time).unsqueeze(1).chunk(4, dim=-1)
        x = x + gate_a.tanh() * self.attention_norm2(self.attention(self.attention_norm1(x) * (1 + scale_a), cos, sin))
        return x + gate_f.tanh() * self.ffn_norm2(self.feed_forward(self.ffn_norm1(x) * (1 + scale_f)))


class TimeEmbedder(nn.Module):
    """Sinusoidal features of a scalar, (b,) -> (b, dim)."""

    def __init__(self, dim: int, features: int = 256) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(features, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.waves = features // 2

    def forward(self, t: Tensor) -> Tensor:
        frequencies = torch.exp(torch.arange(self.waves, device=t.device) * (-math.log(10000.0) / self.waves))
        angles = t.float()[:, None] * frequencies
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))


class Head(nn.Module):
    """Modulated norm and projection back to patches."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(config.dim, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(config.dim, config.patch_size**2 * config.in_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(config.dim, config.dim))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.linear(self.norm_final(x) * (1 + self.adaLN_modulation(time).unsqueeze(1)))


class NextDiT(nn.Module):
    """Velocity network. Latents (b, c, h, w), sigma (b,), context (b, rows, cap_feat_dim) -> noise - picture (b, c, h, w)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.x_embedder = nn.Linear(config.patch_size**2 * config.in_channels, config.dim)
        self.noise_refiner = nn.ModuleList(Block(config) for _ in range(config.n_refiner_layers))
        self.context_refiner = nn.ModuleList(Block(config, modulation=False) for _ in range(config.n_refiner_layers))
        self.t_embedder = TimeEmbedder(config.dim)
        self.cap_embedder = nn.Sequential(nn.RMSNorm(config.cap_feat_dim, eps=config.norm_eps), nn.Linear(config.cap_feat_dim, config.dim))
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.final_layer = Head(config)
        self.apply(_init_linear)
        self._init_gates()

    def _init_gates(self) -> None:
        """Open the tanh gates a little (all-zero gates stall training) and let the head start at zero."""
        for block in [*self.noise_refiner, *self.layers]:
            modulation = cast(nn.Linear, cast(nn.Sequential, block.adaLN_modulation)[1])
            nn.init.zeros_(modulation.weight)
            for gate in modulation.bias.data.chunk(4)[1::2]:
                gate.fill_(0.3)
        nn.init.zeros_(self.final_layer.linear.weight)
        nn.init.zeros_(cast(nn.Linear, self.final_layer.adaLN_modulation[1]).weight)

    def rope(self, text_length: int, height: int, width: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Cosine and sine tables, (rows, 1, head_dim / 2), for a latent of this height and width."""
        p = self.config.patch_size
        positions = joint_positions(text_length, height // p, width // p, device)
        angles = rope_angles(positions, self.config.axes_dims, self.config.rope_theta)[:, None]
        return angles.cos(), angles.sin()

    def forward(self, x: Tensor, sigma: Tensor, context: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        p, rows = self.config.patch_size, context.shape[1]
        h, w = x.shape[2] // p, x.shape[3] // p
        image = self.x_embedder(x.unflatten(3, (w, p)).unflatten(2, (h, p)).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2))
        time = self.t_embedder((1 - sigma) * self.config.time_scale)
        text = self.cap_embedder(context)
        for block in self.context_refiner:
            text = block(text, cos[:rows], sin[:rows])
        for block in self.noise_refiner:
            image = block(image, cos[rows:], sin[rows:], time)
        joint = torch.cat([text, image], dim=1)
        for block in self.layers:
            joint = block(joint, cos, sin, time)
        out = self.final_layer(joint[:, rows:], time)
        return -out.unflatten(2, (p, p, -1)).unflatten(1, (h, w)).permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class _T5Norm(nn.RMSNorm):
    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=1e-6)


class _T5Attention(nn.Module):
    def __init__(self, config: TextConfig, has_bias: bool) -> None:
        super().__init__()
        inner = config.d_kv * config.num_heads
        self.heads = config.num_heads
        self.q, self.k, self.v = (nn.Linear(config.d_model, inner, bias=False) for _ in range(3))
        self.o = nn.Linear(inner, config.d_model, bias=False)
        self.relative_attention_bias = nn.Embedding(32, config.num_heads) if has_bias else None

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), scale=1.0)
        return self.o(mixed.transpose(1, 2).flatten(2))


class _T5Feed(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.wi_0, self.wi_1 = (nn.Linear(config.d_model, config.d_ff, bias=False) for _ in range(2))
        self.wo = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.wo(F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x))


class _T5AttentionLayer(nn.Module):
    def __init__(self, config: TextConfig, has_bias: bool) -> None:
        super().__init__()
        self.SelfAttention = _T5Attention(config, has_bias)
        self.layer_norm = _T5Norm(config.d_model)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return x + self.SelfAttention(self.layer_norm(x), bias)


class _T5FeedLayer(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.DenseReluDense = _T5Feed(config)
        self.layer_norm = _T5Norm(config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.DenseReluDense(self.layer_norm(x))


class _T5Block(nn.Module):
    def __init__(self, config: TextConfig, has_bias: bool) -> None:
        super().__init__()
        self.layer = nn.ModuleList([_T5AttentionLayer(config, has_bias), _T5FeedLayer(config)])

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return self.layer[1](self.layer[0](x, bias))


class _T5Stack(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.block = nn.ModuleList(_T5Block(config, has_bias=i == 0) for i in range(config.num_layers))
        self.final_layer_norm = _T5Norm(config.d_model)

    @property
    def bias_table(self) -> nn.Embedding:
        """The first block's position bias, which all blocks share."""
        first = cast(_T5AttentionLayer, cast(_T5Block, self.block[0]).layer[0])
        return cast(nn.Embedding, first.SelfAttention.relative_attention_bias)

    def forward(self, x: Tensor, buckets: Tensor) -> Tensor:
        bias = self.bias_table(buckets).permute(2, 0, 1)[None]
        for block in self.block:
            x = block(x, bias)
        return self.final_layer_norm(x)


def _distance_buckets(length: int) -> Tensor:
    """T5's 32 relative-position buckets, (length, length): 8 exact distances each way, then logarithmic up to 128."""
    offset = torch.arange(length)[None, :] - torch.arange(length)[:, None]
    distance = offset.abs()
    far = 8 + (torch.log(distance.clamp(min=8).float() / 8) / math.log(16.0) * 8).long()
    return torch.where(distance < 8, distance, far.clamp(max=15)) + 16 * (offset > 0).long()


class TextEncoder(nn.Module):
    """Small bidirectional T5 encoder over the closed vocabulary. Ids (b, rows) -> features (b, rows, d_model); no mask."""

    buckets: Tensor

    def __init__(self, config: TextConfig, length: int) -> None:
        super().__init__()
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = _T5Stack(config)
        self.register_buffer("buckets", _distance_buckets(length), persistent=False)
        self.apply(_init_linear)
        nn.init.normal_(self.encoder.bias_table.weight, std=0.1)

    def forward(self, ids: Tensor) -> Tensor:
        rows = ids.shape[1]
        return self.encoder(self.shared(ids), self.buckets[:rows, :rows])
