"""Focus words among a prompt's tokens, and among the rows a model is given."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safe_dit_engine.tokens.focus import Focus, FocusRequest, find_focus

PROMPT = "a photo of the Red fox and a blue hat, the red fox sleeps"


def word_ids(text: str, template: str = "", length: int = 0) -> list[int]:
    """A token a word, between marks 1 and 2, after a template, padded with 2 as CLIP does."""
    words = f"{template} {text.replace(',', ' , ')}".split()
    ids = [1, *(1000 + sum(ord(letter) * 31**i for i, letter in enumerate(word.lower())) for word in words), 2]
    return ids + [2] * (length - len(ids))


def request(words: str, template: str = "", length: int = 0) -> FocusRequest:
    return FocusRequest(words, lambda text: {"t5xxl": word_ids(text, template, length)})


@pytest.mark.parametrize("template", ["", "describe the picture :"])
@pytest.mark.parametrize("length", [0, 40])
def test_every_occurrence_counts(template: str, length: int) -> None:
    found = find_focus(request("the red fox, hat", template, length), PROMPT)
    places, count = found.places["t5xxl"]
    words = f"{template} {PROMPT.replace(',', ' , ')}".split()
    assert [words[place - 1].lower() for place in places] == ["the", "red", "fox", "hat", "the", "red", "fox"]
    assert found.missing == [] and count == max(length, len(words) + 2)


def test_what_is_not_in_the_prompt_is_named() -> None:
    found = find_focus(request("green fox, hat"), PROMPT)
    assert found.missing == ["green fox"] and len(found.places["t5xxl"][0]) == 1
    assert find_focus(request("wolf"), PROMPT) == Focus({}, ["wolf"])


@given(st.integers(0, 8), st.integers(0, 8), st.integers(1, 30))
def test_rows_of_one_encoder(cut: int, padding: int, count: int) -> None:
    """What is cut off the front moves rows, what is added at the end does not."""
    place = count - 1
    assert Focus({"qwen": ([place], count + cut)}).rows(count) == ([place - cut] if place >= cut else [])
    assert Focus({"qwen": ([place], count)}).rows(count + padding) == [place]


def test_rows_of_two_encoders() -> None:
    """Flux hands on the rows of T5 alone; SD3 those of CLIP, then those of T5."""
    focus = Focus({"g": ([3], 77), "l": ([3], 77), "t5xxl": ([5, 6], 40)})
    assert focus.rows(40) == [5, 6]
    assert focus.rows(77 + 40) == [3, 77 + 5, 77 + 6]
    assert Focus({"l": ([3], 77)}).rows(77) == [3]
