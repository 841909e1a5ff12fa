"""Tiny pipelines with all their parts, text encoders, tokenizers and VAE too: they can be saved, loaded and asked for pictures."""

from __future__ import annotations

from typing import Any

import diffusers
import transformers

from .diffusers_pipelines import BLOCKS, WIDTH, euler, flux_transformer, weighted

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def clip() -> tuple[Any, Any]:
    """Text encoder and a tokenizer that knows letters."""
    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "projection_dim": 16}
    model = transformers.CLIPTextModel(transformers.CLIPTextConfig(vocab_size=len(words), **sizes, **ends))
    return weighted(model), transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def t5() -> tuple[Any, Any]:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("\u2581", -2.0), *((letter, -3.0) for letter in LETTERS)]
    config = transformers.T5Config(vocab_size=len(pieces), d_model=WIDTH, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return weighted(transformers.T5EncoderModel(config)), transformers.T5TokenizerFast(vocab=pieces, extra_ids=0)


def vae(channels: int) -> Any:
    """Eight pixels to a latent."""
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    sizes = {"block_out_channels": (4,) * 4, "norm_num_groups": 2, "latent_channels": channels, "shift_factor": 0.0}
    return weighted(diffusers.AutoencoderKL(**kinds, **sizes))


def flux() -> Any:
    """Distilled: it has no negative prompt."""
    return diffusers.FluxPipeline(euler(), vae(1), *clip(), *t5(), flux_transformer(guided=True))


def pixart() -> Any:
    sizes = {**BLOCKS, "cross_attention_dim": 32, "caption_channels": WIDTH, "sample_size": 32}
    model = weighted(diffusers.PixArtTransformer2DModel(in_channels=4, out_channels=8, **sizes))
    encoder, tokenizer = t5()
    return diffusers.PixArtSigmaPipeline(tokenizer, encoder, vae(4), model, diffusers.EulerDiscreteScheduler())
