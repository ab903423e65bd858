"""Taking files away on the page, in a real browser."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import pytest
from conftest import Studio
from playwright.sync_api import Page, expect
from safetensors.numpy import load_file

from tests.test_hub import TOKEN, Hub, hub
from tests.toys import add_lora, add_round, filled_run

__all__ = ["hub"]


def open_panel(page: Page, studio: Studio, run: str) -> None:
    page.goto(f"{studio.url}/?run={run}")
    page.get_by_role("tab", name="Progress", exact=True).click()
    expect(page.get_by_role("heading", name="Take away")).to_be_visible()


def downloaded(page: Page, folder: Path) -> Path:
    """Press Download and keep the file under the name that the browser gives it."""
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Download", exact=True).click()
    file = folder / waiting.value.suggested_filename
    waiting.value.save_as(file)
    return file


def test_a_lora_and_pairs_are_downloaded_by_keyboard_and_mouse(page: Page, studio: Studio, tmp_path: Path) -> None:
    """The first choice, the latest round, full strength are what a bare press gives; an earlier round and half the strength by keyboard."""
    store = filled_run(studio.runs / "taste", rounds=3)
    for number in (1, 2, 3):
        add_lora(store, number)
    open_panel(page, studio, "taste")
    file = downloaded(page, tmp_path)
    assert file.name == "taste-round-3.safetensors"
    assert {float(t) for name, t in load_file(file).items() if name.endswith(".alpha")} == {6.0}
    expect(page.get_by_role("status").filter(has_text="taste-round-3.safetensors")).to_be_visible()

    page.locator(".takeaway").get_by_label("Round").select_option(label="Round 1")
    strength = page.get_by_role("slider", name="Strength")
    strength.focus()
    for _ in range(10):
        strength.press("ArrowLeft")
    expect(page.locator(".takeaway output")).to_have_text("50 %")
    file = downloaded(page, tmp_path)
    assert file.name == "taste-round-1.safetensors"
    assert {float(t) for name, t in load_file(file).items() if name.endswith(".alpha")} == {3.0}

    page.get_by_role("radio", name=re.compile("Preference pairs")).check()
    expect(strength).to_have_count(0)
    page.get_by_label("With the raters' names").check()
    with zipfile.ZipFile(downloaded(page, tmp_path)) as archive:
        assert archive.filename and archive.filename.endswith("taste-pairs-round-1.zip")
        assert b'"user_id": "anna"' in archive.read("taste-pairs-round-1/pairs.jsonl")
    store.close()


def test_a_refusal_is_said_on_the_panel_and_the_choice_stays(page: Page, studio: Studio) -> None:
    """The round's file is damaged: the reason stands under the button, in the run's words. A new round that arrives meanwhile changes no choice."""
    store = filled_run(studio.runs / "taste", rounds=2)
    for number in (1, 2):
        add_lora(store, number)
    (store.checkpoints()[1] / "pytorch_lora_weights.safetensors").write_bytes(b"damaged")
    open_panel(page, studio, "taste")
    page.get_by_role("radio", name=re.compile("LoRA for diffusers")).check()
    page.locator(".takeaway").get_by_label("Round").select_option(label="Round 1")
    page.get_by_role("button", name="Download", exact=True).click()
    expect(page.get_by_role("status").filter(has_text="cannot be read as a LoRA")).to_be_visible()
    add_round(store, 3)
    add_lora(store, 3)
    expect(page.locator(".takeaway").get_by_label("Round").get_by_role("option", name="Round 3, the latest")).to_have_count(1)
    expect(page.get_by_role("radio", name=re.compile("LoRA for diffusers"))).to_be_checked()
    expect(page.locator(".takeaway").get_by_label("Round")).to_have_value("1")
    store.close()


def test_what_is_not_there_yet_cannot_be_chosen(page: Page, studio: Studio) -> None:
    filled_run(studio.runs / "new", rounds=0).close()
    open_panel(page, studio, "new")
    for name in ("LoRA for A1111", "Preference pairs", "Images"):
        expect(page.get_by_role("radio", name=re.compile(name))).to_be_disabled()
    expect(page.get_by_role("button", name="Download", exact=True)).to_have_count(0)


def test_the_library_leads_to_a_run_s_panel(page: Page, studio: Studio) -> None:
    """The other run was selected; the button selects this one, opens Progress, and puts the focus on the panel's heading, in view."""
    for name in ("one", "two"):
        store = filled_run(studio.runs / name, rounds=1)
        add_lora(store, 1)
        store.close()
    page.goto(f"{studio.url}/?run=two")
    page.get_by_role("tab", name="Library", exact=True).click()
    page.get_by_role("button", name="Take away from one").click()
    heading = page.get_by_role("heading", name="Take away")
    expect(heading).to_be_focused()
    expect(heading).to_be_in_viewport()
    expect(page.locator("#studio-run input, #studio-run textarea")).to_have_value("one")


def test_a_finished_run_leads_to_its_panel(page: Page, studio: Studio) -> None:
    """And one that is waiting for ratings does not: there is something else to do first."""
    filled_run(studio.runs / "done", rounds=3).close()
    filled_run(studio.runs / "busy", rounds=1, awaiting=True).close()
    page.goto(f"{studio.url}/?run=done")
    page.locator(".panel").get_by_role("button", name="Take away").click()
    expect(page.get_by_role("heading", name="Take away")).to_be_focused()
    expect(page.get_by_role("heading", name="Take away")).to_be_in_viewport()
    page.goto(f"{studio.url}/?run=busy")
    expect(page.locator(".panel")).to_be_visible()
    expect(page.locator(".panel").get_by_role("button", name="Take away")).to_have_count(0)


def test_a_report_is_one_file_and_no_zip(page: Page, studio: Studio, tmp_path: Path) -> None:
    """Up to an earlier round, with a rater's name: what comes is the page itself."""
    filled_run(studio.runs / "taste", rounds=3).close()
    open_panel(page, studio, "taste")
    page.get_by_role("radio", name=re.compile("Report")).check()
    page.locator("[data-round]").select_option(label="Up to round 2")
    page.get_by_label("With the raters' names").check()
    file = downloaded(page, tmp_path)
    assert file.name == "taste-report.html"
    text = file.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>") and "2 of 3" in text and "<bdi>anna</bdi>" in text


@pytest.mark.parametrize("width", [390, 1280])
def test_the_panel_fits_its_width(page: Page, studio: Studio, width: int) -> None:
    store = filled_run(studio.runs / ("a-run-with-a-long-name-" * 3), rounds=1)
    add_lora(store, 1)
    page.set_viewport_size({"width": width, "height": 860})
    open_panel(page, studio, store.name)
    page.get_by_role("radio", name=re.compile("Ratings")).check()
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert page.locator(".takeaway").evaluate("e => [...e.querySelectorAll('*')].every((c) => c.getBoundingClientRect().right <= innerWidth)")
    store.close()


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the Hub's own client
def test_it_is_sent_to_the_hub_and_the_token_is_gone_afterwards(page: Page, studio: Studio, hub: Hub) -> None:
    """What is missing is asked for where it is missing; a wrong token is said and can be changed; what was typed survives a change of the choice."""
    store = filled_run(studio.runs / "taste", rounds=1)
    add_lora(store, 1)
    open_panel(page, studio, "taste")
    told = page.locator(".takeaway-told")
    page.get_by_text("Send it to the Hugging Face Hub").click()
    page.get_by_role("button", name="Send", exact=True).click()
    expect(told).to_contain_text("Name the repository")
    expect(page.get_by_label("Repository")).to_be_focused()
    page.keyboard.type("anna/warm")
    page.get_by_label("Token").fill("hf_stolen")
    page.get_by_role("radio", name=re.compile("LoRA for diffusers")).check()
    expect(page.get_by_label("Repository")).to_have_value("anna/warm")
    page.get_by_label("Token").press("Enter")
    expect(told).to_contain_text("does not accept this token", timeout=60_000)
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_label("Token").press("Enter")
    expect(told).to_contain_text(f"It is at {hub.url}/anna/warm", timeout=60_000)
    expect(page.get_by_label("Token")).to_have_value("")
    assert "pytorch_lora_weights.safetensors" in hub.repos["anna/warm"]["files"] and TOKEN not in page.content()
    page.get_by_role("radio", name=re.compile("^Report")).check()
    expect(page.get_by_text("Send it to the Hugging Face Hub")).to_have_count(0)
    store.close()
