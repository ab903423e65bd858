"""What the model of taste believes, in a real browser."""

from __future__ import annotations

from conftest import Studio
from playwright.sync_api import Page, expect

from ddpo.config import RunConfig
from ddpo.store import RunStore
from tests.test_beliefs import tasted
from tests.toys import ODD_PROMPTS


def test_a_picture_shows_its_neighbours_by_keyboard_and_hides_them_again(page: Page, studio: Studio) -> None:
    tasted(studio.runs / "first", rounds=1).close()
    tasted(studio.runs / "second", studio.runs / "first", rounds=1, prompts=(ODD_PROMPTS[3], ODD_PROMPTS[1])).close()
    page.goto(f"{studio.url}/?run=second")
    page.get_by_role("tab", name="Progress", exact=True).click()
    panel = page.locator(".taste")
    expect(panel.get_by_role("heading", name="Most liked")).to_be_visible()
    expect(panel).to_contain_text("8 rated images of this run and 8 ratings from elsewhere")
    expect(panel.locator(".taste-tile")).to_have_count(18)
    tile = panel.locator(".taste-tile").first
    tile.focus()
    tile.press("Enter")
    expect(tile).to_have_attribute("aria-expanded", "true")
    near = panel.locator(".taste-near")
    expect(near.locator("li")).to_have_count(4)
    expect(near).to_contain_text("in eight of ten cases between")
    page.wait_for_function("() => [...document.querySelectorAll('.taste-near img')].every((image) => image.complete && image.naturalWidth > 0)")
    expect(near).to_contain_text("from first")
    assert page.title() != "broken"
    tile.press("Enter")
    expect(near).to_have_count(0)
    expect(tile).to_be_focused()


def test_before_the_first_ratings_it_says_what_will_be_there(page: Page, studio: Studio) -> None:
    RunStore.create(studio.runs / "fresh", RunConfig(preference="lead")).close()
    page.goto(f"{studio.url}/?run=fresh")
    page.get_by_role("tab", name="Progress", exact=True).click()
    expect(page.locator(".taste")).to_contain_text("Once a board is rated and applied")
