"""Tokens painted on the map: their text, other grids, and what they force."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from safe_dit_engine.tokens.grid import TokenGrid
from safe_dit_engine.tokens.painting import (
    CONTEXT,
    FREE,
    SENSITIVE,
    distorted,
    format_painting,
    kept_tokens,
    parse_painting,
    resize_painting,
)
from safe_dit_engine.tokens.partition import PartitionConfig, forced_tokens, select_rows

CPU = torch.device("cpu")


def painted(height: int, width: int, seed: int, empty: float = 0.5) -> Tensor:
    """A random painting, `empty` of it free."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(1, 3, (height, width), generator=generator)
    return (values * (torch.rand(height, width, generator=generator) >= empty)).to(torch.uint8)


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**31), st.sampled_from([0.0, 0.5, 0.95]))
def test_there_and_back(height: int, width: int, seed: int, empty: float) -> None:
    tokens = painted(height, width, seed, empty)
    back = parse_painting(format_painting(tokens))
    assert (not tokens.any()) if back is None else torch.equal(back, tokens)


def test_the_text() -> None:
    tokens = torch.tensor([[FREE, SENSITIVE, SENSITIVE], [CONTEXT, FREE, FREE]], dtype=torch.uint8)
    assert format_painting(tokens) == "3x2:1f2s1c"
    assert format_painting(torch.zeros(4, 4, dtype=torch.uint8)) == ""
    assert parse_painting("") is None and parse_painting("3x2:") is None and parse_painting("3x2:6f") is None


def test_a_usual_painting_is_small() -> None:
    """Three discs on the largest grid in use: a face, a hand, and a corner to leave alone."""
    y, x = torch.meshgrid(torch.arange(192), torch.arange(192), indexing="ij")
    tokens = torch.zeros(192, 192, dtype=torch.uint8)
    for row, column, radius, value in ((60, 90, 35, SENSITIVE), (140, 60, 20, SENSITIVE), (0, 192, 70, CONTEXT)):
        tokens[(y - row) ** 2 + (x - column) ** 2 < radius**2] = value
    assert len(format_painting(tokens)) < 2000


@pytest.mark.parametrize(
    "text", ["x", "2x2", "2x2:5s", "2x2:2s3c", "0x4:1s", "2x2:1z", "2x2:s", "2x2:0s", "2x2: 1s", "9999x9999:1s", "2x2:1s\n", "-2x2:1s"]
)
def test_what_is_no_painting_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"(?s)`painted_tokens` is `.*`, where .* are allowed; leave it empty and paint"):
        parse_painting(text)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 24), st.integers(1, 24), st.integers(0, 2**31))
def test_resizing_takes_the_nearest(height: int, width: int, rows: int, columns: int, seed: int) -> None:
    tokens = painted(height, width, seed)
    resized = resize_painting(tokens, (rows, columns))
    nearest = torch.nn.functional.interpolate(tokens[None, None].double(), (rows, columns), mode="nearest-exact")[0, 0]
    assert torch.equal(resized.double(), nearest)
    assert torch.equal(resize_painting(tokens, (height, width)), tokens)
    assert torch.equal(resize_painting(resize_painting(tokens, (3 * height, 3 * width)), (height, width)), tokens)


def test_proportions() -> None:
    tokens = torch.zeros(16, 16, dtype=torch.uint8)
    assert not distorted(tokens, (64, 64))
    assert distorted(tokens, (64, 48))


@given(
    st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.floats(0.05, 1.0), st.integers(0, 2**31), st.booleans(),
    st.sampled_from([0.0, 0.3, 0.9]),
)  # fmt: skip
def test_what_is_painted_holds(images: int, height: int, width: int, keep: float, seed: int, masked: bool, empty: float) -> None:
    """Sensitive paint is in, context paint out, whatever map and mask say; and of the free ones the most sensitive."""
    generator = torch.Generator().manual_seed(seed)
    sensitivity = torch.rand(images, height, width, generator=generator)
    tokens = painted(height, width, seed, empty)
    mask = (torch.rand(images, height, width, generator=generator) > 0.5).float() if masked else None
    config = PartitionConfig(keep_ratio=keep, painted=mask, painting=tokens)
    grid = TokenGrid(1, height, width)
    partition = select_rows(sensitivity, grid, keep, *forced_tokens(config, images, grid, CPU))
    kept = partition.sensitive.view(images, height, width)
    if (tokens == CONTEXT).all():
        assert partition.kept == 1
        return
    forced = tokens.eq(SENSITIVE).expand(images, -1, -1)
    if mask is not None:
        forced = (forced | mask.bool()) & tokens.ne(CONTEXT)
    assert kept[forced].all() and not kept[:, tokens == CONTEXT].any()
    most = int(forced.flatten(1).sum(1).max())
    assert partition.kept == kept_tokens(height * width, keep, most, int(tokens.eq(CONTEXT).sum()))
    for image in range(images):
        free = tokens.eq(FREE) & ~forced[image]
        inside, outside = (sensitivity[image][free & chosen] for chosen in (kept[image], ~kept[image]))
        assert not len(inside) or not len(outside) or inside.min() >= outside.max()


def test_everything_painted_as_context_leaves_the_top_token() -> None:
    for tops, rows in (([4, 9], [[4], [9]]), ([4, 4], [4])):  # rows that all images share stand there once
        sensitivity = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0))
        sensitivity.flatten(1)[range(2), tops] = 2.0
        partition = select_rows(sensitivity, TokenGrid(1, 4, 4), 0.25, None, torch.ones(4, 4, dtype=torch.bool))
        assert partition.kept == 1
        assert partition.rows.tolist() == rows


def test_the_painting_wins_over_the_mask() -> None:
    mask = torch.zeros(1, 64, 64)
    mask[:, :32] = 1.0
    tokens = torch.zeros(8, 8, dtype=torch.uint8)
    tokens[0], tokens[7] = CONTEXT, SENSITIVE
    forced, barred = forced_tokens(PartitionConfig(painted=mask, painting=tokens), 2, TokenGrid(1, 8, 8), CPU)
    assert forced is not None and barred is not None
    assert forced.shape == (2, 8, 8)
    assert forced[0].any(1).tolist() == [False, True, True, True, False, False, False, True]
    assert barred.any(1).tolist() == [True] + [False] * 7


@pytest.mark.parametrize(
    ("keep", "sensitive", "context", "expected"),
    [(0.25, 0, 0, 25), (0.25, 40, 0, 40), (0.5, 0, 80, 20), (0.5, 0, 100, 1), (0.251, 0, 0, 26)],
)
def test_kept_tokens(keep: float, sensitive: int, context: int, expected: int) -> None:
    assert kept_tokens(100, keep, sensitive, context) == expected
