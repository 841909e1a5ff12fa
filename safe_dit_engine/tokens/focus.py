"""Focus words: which text rows of a prompt they are, so that the map can count those alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

# Ids of a text's tokens by text encoder, with whatever template, end marks and padding that encoder puts around them.
Tokens = Mapping[str, Sequence[int]]
Tokenize = Callable[[str], Tokens]

# Encoders whose rows stand before those of a bigger one, where a model takes both (SD3).
CLIPS = ("l", "g", "h")


@dataclass(frozen=True, eq=False)
class FocusRequest:
    """Words as the artist typed them, several of them between commas, and the tokenizer of the prompt's encoder."""

    words: str
    tokenize: Tokenize

    @property
    def phrases(self) -> list[str]:
        """What stands between the commas."""
        return [phrase.strip() for phrase in self.words.split(",") if phrase.strip()]


@dataclass(frozen=True)
class Focus:
    """Places of the words among the prompt's tokens, and how many tokens there are, by encoder; `missing`: phrases not in the prompt."""

    places: dict[str, tuple[list[int], int]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def rows(self, total: int) -> list[int]:
        """The same places among the `total` text rows a model is given.

        A template's start that is not handed on is missing at the front, padding is added at the end; where CLIP and a bigger encoder
        both hand on rows, CLIP's come first.
        """
        clips = [name for name in self.places if name in CLIPS]
        main, count = self.places[[*clips, *(name for name in self.places if name not in CLIPS)][-1]]
        before = min((self.places[name] for name in clips), key=lambda place: place[1], default=([], 0))
        follows = len(clips) < len(self.places) and 0 < before[1] <= total - count
        offset = total - count if follows or total < count else 0
        rows = {offset + place for place in main} | (set(before[0]) if follows else set())
        return sorted(row for row in rows if 0 <= row < total)


def find_focus(request: FocusRequest, prompt: str) -> Focus:
    """Where the words stand in a prompt."""
    tokens, empty = request.tokenize(prompt), request.tokenize("")
    places: dict[str, set[int]] = {name: set() for name in tokens}
    missing = []
    for phrase in request.phrases:
        found = _places(phrase, prompt, request.tokenize, tokens, empty)
        if not any(found.values()):
            missing.append(phrase)
        for name, there in found.items():
            places[name] |= there
    return Focus({name: (sorted(there), len(tokens[name])) for name, there in places.items()} if any(places.values()) else {}, missing)


def _places(phrase: str, prompt: str, tokenize: Tokenize, tokens: Tokens, empty: Tokens) -> dict[str, set[int]]:
    written = re.search(re.escape(phrase), prompt, re.IGNORECASE)
    if written is None:
        return {}
    # Many tokenizers write a word after a space otherwise than one at the start.
    variants = [tokenize(variant) for variant in (written.group(), f" {written.group()}")]
    return {
        name: {place for variant in variants for place in _occurrences(_core(variant[name], empty[name]), ids)}
        for name, ids in tokens.items()
    }


def _core(ids: Sequence[int], empty: Sequence[int]) -> list[int]:
    """The tokens of the words alone, without what an empty text has before and after."""
    before = next((i for i, (a, b) in enumerate(zip(ids, empty)) if a != b), min(len(ids), len(empty)))
    after = next((i for i, (a, b) in enumerate(zip(reversed(ids), reversed(empty))) if a != b), 0)
    core = list(ids[before : max(before, len(ids) - after)])
    while len(core) > 1 and core[-1] in empty:  # an end mark that padding moved
        core.pop()
    return core


def _occurrences(core: Sequence[int], ids: Sequence[int]) -> list[int]:
    size = len(core)
    starts = [i for i in range(len(ids) - size + 1) if size and list(ids[i : i + size]) == list(core)]
    return [start + i for start in starts for i in range(size)]
