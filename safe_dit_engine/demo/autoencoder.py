"""The demo model's autoencoder: the tiny one of 16 channels, in the stock classes' state-dict keys."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LATENT_CHANNELS = 16
HOST_SHIFT, HOST_SCALE = 0.1159, 0.3611  # the Flux latent format a host applies: (latent - shift) * scale
DECODER_GAIN = 0.3  # the decoder bends its input beyond 3; this keeps the model's latents well inside


class _Clamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(_conv(64, 64), nn.ReLU(), _conv(64, 64), nn.ReLU(), _conv(64, 64))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x) + x)


def _weight(network: nn.Sequential, index: int) -> Tensor:
    return cast(nn.Conv2d, network[index]).weight.data


def _bias(network: nn.Sequential, index: int) -> Tensor:
    return cast(Tensor, cast(nn.Conv2d, network[index]).bias).data


def _conv(channels_in: int, channels_out: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=bias)


def _encoder() -> nn.Sequential:
    stages: list[nn.Module] = [_conv(3, 64), _Residual()]
    for _ in range(3):
        stages += [_conv(64, 64, stride=2, bias=False), _Residual(), _Residual(), _Residual()]
    return nn.Sequential(*stages, _conv(64, LATENT_CHANNELS))


def _decoder() -> nn.Sequential:
    stages: list[nn.Module] = [_Clamp(), _conv(LATENT_CHANNELS, 64), nn.ReLU()]
    for _ in range(3):
        stages += [_Residual(), _Residual(), _Residual(), nn.Upsample(scale_factor=2), _conv(64, 64, bias=False)]
    return nn.Sequential(*stages, _Residual(), _conv(64, 3))


class Autoencoder(nn.Module):
    """Tiny autoencoder, 8 px a latent cell. Its latents are a linear code, so training data needs no encoder network.

    `code` (16, 3, 8, 8) and `offset` (16,) map a block of pixels to the model's latent; `install_code` writes that map into
    the stock encoder's convolutions exactly. Only the decoder is learnt.
    """

    code: Tensor
    offset: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.taesd_encoder = _encoder()
        self.taesd_decoder = _decoder()
        self.register_buffer("code", torch.zeros(LATENT_CHANNELS, 3, 8, 8))
        self.register_buffer("offset", torch.zeros(LATENT_CHANNELS))
        self._init_decoder()

    def _init_decoder(self) -> None:
        for module in self.taesd_decoder:
            if isinstance(module, _Residual):
                _weight(module.conv, 4).mul_(0.1)
        _weight(self.taesd_decoder, -1).mul_(0.1)
        _bias(self.taesd_decoder, -1).fill_(0.5)

    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures (b, 3, h, w) in [0, 1] -> the model's latents (b, 16, h / 8, w / 8)."""
        return F.conv2d(pictures, self.code, self.offset, stride=8)

    def decode(self, latents: Tensor) -> Tensor:
        """The model's latents -> pictures in about [0, 1]."""
        return self.taesd_decoder(latents * DECODER_GAIN)

    def install_code(self) -> None:
        """Write the linear code into the encoder: shuffle pixels into channels, project, carry signs as pairs past the ReLUs."""
        for parameter in self.taesd_encoder.parameters():
            nn.init.zeros_(parameter)
        first, halve, quarter, project, last = (_weight(self.taesd_encoder, i) for i in (0, 2, 6, 10, 14))
        first[range(3), range(3), 1, 1] = 1.0
        for corner in range(4):
            y, x = 1 + corner // 2, 1 + corner % 2
            halve[range(3 * corner, 3 * corner + 3), range(3), y, x] = 1.0
            quarter[range(12 * corner, 12 * corner + 12), range(12), y, x] = 1.0
        blocks = (self.code * DECODER_GAIN).reshape(LATENT_CHANNELS, 3, 2, 2, 2, 2, 2, 2)  # c, rgb, y4, y2, y1, x4, x2, x1
        kernel = blocks.permute(0, 3, 6, 4, 7, 1, 2, 5).reshape(LATENT_CHANNELS, 48, 2, 2)
        project[:LATENT_CHANNELS, :48, 1:, 1:] = kernel
        project[LATENT_CHANNELS : 2 * LATENT_CHANNELS, :48, 1:, 1:] = -kernel
        last[range(LATENT_CHANNELS), range(LATENT_CHANNELS), 1, 1] = 1.0
        last[range(LATENT_CHANNELS), range(LATENT_CHANNELS, 2 * LATENT_CHANNELS), 1, 1] = -1.0
        _bias(self.taesd_encoder, 14).copy_(self.offset * DECODER_GAIN)

    def stock_state(self) -> dict[str, Tensor]:
        """State dict for the stock loader; its scale and shift turn the host's latents into the decoder's."""
        state = {k: v for k, v in self.state_dict().items() if k.startswith("taesd_")}
        scale = {"vae_scale": torch.tensor(HOST_SCALE * DECODER_GAIN), "vae_shift": torch.tensor(HOST_SHIFT)}
        return {**state, **scale}


def fit_code(pictures: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Principal components of 8 px blocks as a code: kernel (16, 3, 8, 8) and offset (16,).

    Channel deviations follow the square root of the spectrum, so that edges count without drowning the colours, and
    the mean square over all channels is 0.64.
    """
    blocks = torch.cat([F.unfold(p, 8, stride=8).transpose(1, 2).flatten(0, 1) for p in pictures]).double()
    mean = blocks.mean(0)
    values, vectors = torch.linalg.eigh((blocks - mean).T @ (blocks - mean) / len(blocks))
    values, basis = values.flip(0)[:LATENT_CHANNELS], vectors.flip(1)[:, :LATENT_CHANNELS].T
    basis = basis * torch.where(basis.sum(1, keepdim=True) < 0, -1.0, 1.0)
    target = 0.8 * values**0.25 / (values**0.5).mean().sqrt()
    kernel = basis * (target / values.sqrt())[:, None]
    return kernel.float().view(LATENT_CHANNELS, 3, 8, 8), -(kernel @ mean).float()
