"""Loads the demo model into ComfyUI's own classes: MODEL, CLIP and VAE that every stock node accepts.

Stock detection knows NextDiT only in its published widths, so the model config is built from the file's metadata; the
text encoder gets a tokenizer of its closed vocabulary. Everything else is the stock path.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...demo.network import rope_options
from ...demo.weights import FILES, LORAS_FOLDER, WEIGHTS_FOLDER, read_file
from ...demo.words import words_of

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP, VAE

log = logging.getLogger("safe_dit.demo")

ROPE_KEY = "safe_dit_demo_rope"


def load_demo(folder: Path | None = None) -> tuple[ModelPatcher, CLIP, VAE]:
    """The demo model's MODEL, CLIP and VAE from the weight files in `folder` (default: the shipped ones)."""
    folder = WEIGHTS_FOLDER if folder is None else Path(folder)
    return load_demo_model(folder / FILES["dit"]), load_demo_text(folder / FILES["text"]), load_demo_vae(folder / FILES["vae"])


def offer_loras() -> None:
    """Let ComfyUI's LoRA loaders list those of the demo model, behind the user's own."""
    import folder_paths

    folder_paths.add_model_folder_path("loras", str(LORAS_FOLDER))


def load_demo_model(path: Path) -> ModelPatcher:
    """Stock NextDiT under a stock patcher; its positions follow the latent's size call by call."""
    import comfy.model_management as management
    from comfy.model_patcher import CoreModelPatcher
    from comfy.utils import calculate_parameters, weight_dtype

    state, metadata = read_file(path)
    config = _model_config(metadata)
    device = management.get_torch_device()
    supported = list(config.supported_inference_dtypes)
    dtype = management.unet_dtype(model_params=calculate_parameters(state), supported_dtypes=supported, weight_dtype=weight_dtype(state))
    config.set_inference_dtype(dtype, management.unet_manual_cast(dtype, device, supported))
    model = config.get_model(state, "")
    patcher = CoreModelPatcher(model, load_device=device, offload_device=management.unet_offload_device())
    model.load_model_weights(state, "", assign=patcher.is_dynamic())
    return with_native_positions(patcher, int(metadata["native_grid"]))


def _model_config(metadata: dict[str, Any]) -> Any:
    from comfy.supported_models import Lumina2

    class DemoLumina2(Lumina2):
        sampling_settings = {**Lumina2.sampling_settings, "shift": float(metadata["sampling"]["shift"])}

    return DemoLumina2(dict(metadata["unet_config"]))


def with_native_positions(patcher: ModelPatcher, native_grid: int) -> ModelPatcher:
    """Add the wrapper that spreads every latent size over the range of positions the model was trained on."""
    from comfy.patcher_extension import WrappersMP

    patch = patcher.model.diffusion_model.patch_size

    def place(
        executor: Callable[..., Tensor], x: Tensor, t: Tensor, c_concat: Tensor | None = None, c_crossattn: Tensor | None = None,
        control: Any = None, transformer_options: dict[str, Any] | None = None, **kwargs: Any,
    ) -> Tensor:
        options = dict(transformer_options or {})
        if options.get("rope_options") is None:
            options["rope_options"] = rope_options(-(-x.shape[-2] // patch), -(-x.shape[-1] // patch), native_grid)
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)

    patcher.add_wrapper_with_key(WrappersMP.APPLY_MODEL, ROPE_KEY, place)
    return patcher


class WordTokenizer:
    """One word, one token, over a closed vocabulary. Words it does not know are dropped and kept in `unknown`."""

    def __init__(self, vocabulary: list[str], aliases: dict[str, str]) -> None:
        self.index = {word: i for i, word in enumerate(vocabulary)}
        self.aliases = aliases
        self.unknown: list[str] = []

    def __call__(self, text: str) -> dict[str, list[int]]:
        """Ids with begin and end marks, in the shape stock tokenizers return."""
        words = words_of(text, self.aliases)
        self.unknown += [word for word in words if word not in self.index]
        ids = [self.index[word] for word in words if word in self.index]
        return {"input_ids": [self.index["<bos>"], *ids, self.index["<eos>"]]}

    def get_vocab(self) -> dict[str, int]:
        """Word to id."""
        return self.index

    def decode(self, token_ids: list[int], skip_special_tokens: bool = True) -> str:
        """Ids back to text."""
        words = [list(self.index)[i] for i in token_ids]
        return " ".join(word for word in words if not (skip_special_tokens and word.startswith("<")))

    def warn_about_unknown(self) -> None:
        """One warning for all words left out since the last call."""
        if self.unknown:
            known = ", ".join(word for word in self.index if not word.startswith("<") and word != ",")
            missing = ", ".join(f"`{word}`" for word in dict.fromkeys(self.unknown))
            log.warning("The demo model has a closed vocabulary and ignores %s. It knows: %s.", missing, known)
        self.unknown = []


def load_demo_text(path: Path) -> CLIP:
    """Stock CLIP object around a stock T5 with the closed-vocabulary tokenizer."""
    from comfy.sd import CLIP
    from comfy.supported_models_base import ClipTarget
    from comfy.utils import calculate_parameters

    state, metadata = read_file(path)
    target = ClipTarget(_tokenizer_class(metadata), _text_model_class(metadata))
    return CLIP(target, parameters=calculate_parameters(state), state_dict=[state])


def _tokenizer_class(metadata: dict[str, Any]) -> type:
    from comfy.sd1_clip import SD1Tokenizer, SDTokenizer

    class DemoWords(SDTokenizer):
        def __init__(self, **options: Any) -> None:
            words = type("Words", (), {"from_pretrained": lambda *_: WordTokenizer(metadata["vocabulary"], metadata["aliases"])})
            size = {"max_length": int(metadata["text_length"]), "embedding_size": int(metadata["text_config"]["d_model"])}
            super().__init__("", pad_with_end=False, embedding_key="demo", tokenizer_class=words, **size, **options)

        def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **kwargs: Any) -> list[list[tuple[Any, ...]]]:
            rows = super().tokenize_with_weights(text, return_word_ids, **kwargs)
            self.tokenizer.warn_about_unknown()
            if len(rows) > 1:
                log.warning("The demo model reads at most %d words; the rest of the prompt is ignored.", self.max_length - 2)
            return rows[:1]

    class DemoTokenizer(SD1Tokenizer):
        def __init__(self, **options: Any) -> None:
            super().__init__(clip_name="demo", tokenizer=DemoWords, **options)

    return DemoTokenizer


def _text_model_class(metadata: dict[str, Any]) -> type:
    from comfy.sd1_clip import SD1ClipModel, SDClipModel
    from comfy.text_encoders.t5 import T5

    index = {word: i for i, word in enumerate(metadata["vocabulary"])}
    marks = {"start": index["<bos>"], "end": index["<eos>"], "pad": index["<pad>"]}

    class DemoT5(SDClipModel):
        def __init__(self, **options: Any) -> None:
            config, length = dict(metadata["text_config"]), int(metadata["text_length"])
            super().__init__(max_length=length, textmodel_json_config=config, model_class=T5, special_tokens=marks, **options)

    class DemoTextModel(SD1ClipModel):
        def __init__(self, **options: Any) -> None:
            super().__init__(clip_name="demo", clip_model=DemoT5, **options)

    return DemoTextModel


def load_demo_vae(path: Path) -> VAE:
    """Stock VAE object; the same file also loads with the stock VAE loader."""
    from comfy.sd import VAE

    state, _ = read_file(path)
    vae = VAE(sd=state)
    vae.throw_exception_if_invalid()
    return vae
