"""The closed vocabulary of the demo model: one word, one token."""

from __future__ import annotations

COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "brown", "black", "white", "grey")
SHAPES = ("circle", "square", "triangle", "diamond", "star", "ring", "cross", "hexagon")
SIZES = ("small", "medium", "large")
TEXTURES = ("plain", "striped", "dotted", "checkered")
STYLES = ("plain", "gradient", "striped", "noisy", "checkered")

SPECIAL_WORDS = ("<pad>", "<bos>", "<eos>")
GRAMMAR_WORDS = ("a", "at", "the", "of", "above", "below", "and", ",", "on", "background", "top", "bottom", "left", "right", "center")
VOCABULARY: tuple[str, ...] = tuple(dict.fromkeys(SPECIAL_WORDS + GRAMMAR_WORDS + COLOURS + SHAPES + SIZES + TEXTURES + STYLES))
ALIASES = {"an": "a", "gray": "grey", "centre": "center", "middle": "center", "noise": "noisy", "checked": "checkered"}
TEXT_LENGTH = 40


def words_of(text: str, aliases: dict[str, str] = ALIASES) -> list[str]:
    """Lower-case words of a prompt with aliases resolved; commas are words, other punctuation is dropped."""
    spaced = "".join(f" {c} " if c == "," else c if c.isalnum() or c in "<>" else " " for c in text.lower())
    return [aliases.get(word, word) for word in spaced.split()]


def token_ids(caption: str) -> list[int]:
    """Fixed-length token ids of a caption: <bos>, words, <eos>, padding. Unknown words are left out."""
    index = {word: i for i, word in enumerate(VOCABULARY)}
    known = [index[word] for word in words_of(caption) if word in index][: TEXT_LENGTH - 2]
    ids = [index["<bos>"], *known, index["<eos>"]]
    return ids + [index["<pad>"]] * (TEXT_LENGTH - len(ids))
