"""What an artist types into the node search finds the pack."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from ..comfy.test_texts import SEARCHED
from .conftest import EMPTY, Frontend

BOX = "input[role='combobox']"  # a previewed node's menus are comboboxes as well


@pytest.fixture(scope="module")
def searching(kept_frontend: Frontend) -> Frontend:
    """A page with the node search open."""
    kept_frontend.load(EMPTY)
    kept_frontend.page.evaluate("app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    expect(kept_frontend.page.locator(BOX).last).to_be_visible(timeout=20_000)
    return kept_frontend


@pytest.mark.parametrize("word", SEARCHED)
def test_it_is_found(searching: Frontend, word: str) -> None:
    searching.page.locator(BOX).last.fill(word)
    expect(searching.page.get_by_role("option").filter(has_text="SAFE-DiT Accelerate").first).to_be_visible(timeout=20_000)
