"""Focus words with ComfyUI's own tokenizers, and on a real server with the demo model."""

from __future__ import annotations

import base64
import importlib
from typing import Any

import numpy as np
import pytest

from devtools.server import ComfyServer, RunResult

from .test_nodes_on_server import Nodes, four_nodes

PROMPT = "A photo of (the red fox:1.3) wearing a hat, at night"
TOKENIZERS = {
    "sd1_clip.SD1Tokenizer": "l",
    "text_encoders.flux.FluxTokenizer": "t5xxl",
    "text_encoders.sd3_clip.SD3Tokenizer": "t5xxl",
    "text_encoders.qwen_image.QwenImageTokenizer": "qwen25_7b",
}


@pytest.mark.parametrize("path", TOKENIZERS)
def test_the_words_are_found_by_real_tokenizers(comfy: Any, path: str) -> None:
    module, _, name = path.rpartition(".")
    tokenizer = getattr(importlib.import_module(f"comfy.{module}"), name)()
    focus, host = comfy.engine("tokens.focus"), comfy.engine("hosts.comfy.wrappers")

    class Clip:
        @staticmethod
        def tokenize(text: str) -> Any:
            return tokenizer.tokenize_with_weights(text)

    found = focus.find_focus(focus.FocusRequest("The red fox, hat", lambda text: host.token_ids(Clip, text)), PROMPT)
    assert found.missing == []
    (places, _), tokens = found.places[TOKENIZERS[path]], tokenizer.tokenize_with_weights(PROMPT)[TOKENIZERS[path]]
    flat = [pair for chunk in tokens for pair in chunk]
    encoder = getattr(tokenizer, TOKENIZERS[path], tokenizer)
    written = "".join(text for _, text in encoder.untokenize([flat[place] for place in places]))
    plain = written.replace("</w>", " ").replace("\u2581", " ").replace("\u0120", " ").lower()
    assert plain.split() in (["the", "red", "fox", "hat"], ["red", "fox", "hat"])


CAPTION = "a large red circle at the left and a large blue star at the right on a plain grey background"


def focused(words: str, **changes: Any) -> Nodes:
    """Four nodes on the demo model, the map from attention, focus words and their clip at the partitioner."""
    nodes = four_nodes(**changes)
    nodes["positive"]["inputs"]["text"] = CAPTION
    nodes["partition"]["inputs"].update(signal="attention", focus_words=words, clip=["model", 1])
    return nodes


def record_of(result: RunResult) -> dict[str, Any]:
    (record,) = result.output("report")["safe_dit"]
    return dict(record)


def halves(record: dict[str, Any]) -> tuple[float, float]:
    """Mean sensitivity of the left and the right half."""
    sensitivity = np.frombuffer(base64.b64decode(record["sens"]), np.uint8).reshape(record["h"], record["w"])
    middle = record["w"] // 2
    return float(sensitivity[:, :middle].mean()), float(sensitivity[:, middle:].mean())


def test_the_map_follows_the_words(server: ComfyServer) -> None:
    circle, star, all_words = (record_of(server.run(focused(words))) for words in ("large red circle", "large blue star", ""))
    for record in (circle, star, all_words):
        assert not [note for note in record["notes"] if "focus" in note]
    assert halves(circle)[0] > 2 * halves(circle)[1]
    assert halves(star)[1] > 2 * halves(star)[0]
    assert 0.5 < halves(all_words)[0] / halves(all_words)[1] < 2


def test_words_the_prompt_lacks_are_named(server: ComfyServer) -> None:
    record = record_of(server.run(focused("green ring, blue star")))
    assert "The prompt does not hold the focus words `green ring`; the others are counted." in record["notes"]


def test_no_clip_is_one_clear_sentence(server: ComfyServer) -> None:
    nodes = focused("red circle")
    del nodes["partition"]["inputs"]["clip"]
    with pytest.raises(Exception, match=r"There are focus words \(red circle\) but no clip"):
        server.run(nodes)


def test_without_focus_words_nothing_changes(server: ComfyServer) -> None:
    nodes = four_nodes()
    nodes["partition"]["inputs"]["focus_words"] = "  "
    assert record_of(server.run(nodes))["sens"] == record_of(server.run(four_nodes()))["sens"]
