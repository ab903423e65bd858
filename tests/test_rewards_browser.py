"""The Rewards page in a real browser, with real rewards and the pocket's networks."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import re
from pathlib import Path

import pytest
from conftest import Studio
from playwright.sync_api import Locator, Page, expect
from toys import ODD_PROMPTS, filled_run, picture

from rewards.jpeg import size_kb

DROP = """(files) => {
  const data = new DataTransfer();
  for (const [name, text] of files) data.items.add(new File([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], name, { type: "image/png" }));
  return data;
}"""
PASTE = "(node, data) => node.dispatchEvent(new ClipboardEvent('paste', { clipboardData: data, bubbles: true, cancelable: true }))"


def file_of(seed: int) -> str:
    file = io.BytesIO()
    picture(seed).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def open_rewards(page: Page, studio: Studio, run: str | None = None) -> Locator:
    page.goto(studio.url + (f"/?run={run}" if run else "/"))
    page.get_by_role("tab", name="Rewards", exact=True).click()
    board = page.locator("#studio-rewards")
    expect(board.get_by_role("checkbox", name="JPEG compressibility")).to_be_checked()
    return board


def drop(page: Page, *seeds: int) -> None:
    data = page.evaluate_handle(DROP, [[f"{seed}.png", file_of(seed)] for seed in seeds])
    page.dispatch_event("[data-drop]", "drop", {"dataTransfer": data})


def scored(board: Locator, says: str | re.Pattern[str]) -> None:
    """Wait for it. What scores makes way for everything else, so on a busy machine it may take minutes to load its networks."""
    expect(board.get_by_role("status")).to_have_text(says, timeout=200_000)


def names(board: Locator) -> list[str]:
    """The pictures from top to bottom."""
    return board.locator("tbody .rw-prompt small").all_text_contents()


def test_drop_pick_sort_compare_and_take_away(page: Page, studio: Studio) -> None:
    board = open_rewards(page, studio)
    expect(board).to_contain_text("Bring some pictures")
    drop(page, 1, 2)
    expect(board.get_by_role("row")).to_have_count(3)
    board.get_by_label("Prompt", exact=True).fill("a cat")
    for name in ("Aesthetic (LAION)", "CLIPScore"):
        board.get_by_role("checkbox", name=name).check()
    scored(board, "2 pictures scored.")
    first = board.get_by_role("row").nth(1)
    expect(first.locator(".rw-value")).to_have_text(
        [re.compile(r"−\d.*kB.*JPEG file of"), re.compile(r"\d points"), re.compile(r"100 × cosine.*cosine −?0\.")]
    )
    expect(first).to_contain_text("a cat")
    assert board.locator("[data-rank=best]").count() == 3

    head = board.get_by_role("columnheader", name="JPEG compressibility")
    sizes = {f"{seed}.png": size_kb(picture(seed)) for seed in (1, 2)}
    smallest, largest = sorted(sizes, key=lambda name: sizes[name])
    head.get_by_role("button").click()
    expect(head).to_have_attribute("aria-sort", "descending")
    assert names(board) == [smallest, largest]
    head.get_by_role("button").press("Enter")
    expect(head).to_have_attribute("aria-sort", "ascending")
    assert names(board) == [largest, smallest]
    head.get_by_role("button").click()
    expect(head).to_have_attribute("aria-sort", "none")
    assert names(board) == ["1.png", "2.png"]

    expect(board.get_by_role("button", name=re.compile("Compare"))).to_be_disabled()
    board.get_by_role("checkbox", name="Compare 1.png").check()
    board.get_by_role("checkbox", name="Compare 2.png").press("Space")
    board.get_by_role("button", name="Compare 2 of 2").click()
    dialog = page.get_by_role("dialog", name="Two pictures compared")
    difference = f"{sizes['2.png'] - sizes['1.png']:+.3g}".replace("-", "−")
    expect(dialog).to_contain_text(re.compile(rf"JPEG compressibility ?kBA − B {re.escape(difference)}"))
    for image in dialog.locator("img").all():
        assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") == 64
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)

    with page.expect_download() as download:
        board.get_by_role("button", name="Download CSV").click()
    rows = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text())))
    assert [row["image"] for row in rows] == ["1.png", "2.png"] and {row["prompt"] for row in rows} == {"a cat"}
    for row in rows:
        assert float(row["jpeg_compressibility"]) == -sizes[row["image"]]
        assert json.loads(row["clip_score_explanation"])["cosine"] * 100 <= float(row["clip_score"]) + 1e-9
        assert 1 < float(row["aesthetic"]) < 10
    page.evaluate("() => { navigator.clipboard.writeText = async (text) => { window.copied = text; }; }")
    board.get_by_role("button", name="Copy as CSV").click()
    expect(board.get_by_role("status")).to_have_text("Copied.")
    assert page.evaluate("window.copied") == Path(download.value.path()).read_text()
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('refused')); }")
    board.get_by_role("button", name="Copy as CSV").click()
    expect(page.get_by_role("dialog").get_by_label("The table as CSV")).to_have_value(page.evaluate("window.copied"))
    page.keyboard.press("Escape")

    page.reload()
    page.get_by_role("tab", name="Rewards", exact=True).click()
    scored(board, "2 pictures scored.")  # what was brought is still there
    board.get_by_role("button", name="Remove 1.png").click()
    assert names(board) == ["2.png"]
    board.get_by_role("button", name="Clear").click()
    expect(board).to_contain_text("Bring some pictures")


def test_paste_a_round_and_what_is_no_picture(page: Page, studio: Studio) -> None:
    page.on("dialog", lambda dialog: pytest.fail(f"a prompt ran: {dialog.message}"))
    filled_run(studio.runs / "a", rounds=2, prompts=ODD_PROMPTS[:4]).close()
    board = open_rewards(page, studio, "a")
    data = page.evaluate_handle(DROP, [["shot.png", file_of(5)], ["shot.txt", "AAAA"]])
    page.locator("body").evaluate(PASTE, data)
    expect(board.get_by_role("alert").filter(has_text="shot.txt")).to_contain_text("no picture that can be read")
    expect(board.get_by_role("row")).to_have_count(2)
    board.get_by_label("Round", exact=True).select_option("1")
    board.get_by_role("button", name="Take its pictures").click()
    expect(board.get_by_role("row")).to_have_count(10)
    scored(board, "9 pictures scored.")
    prompts = set(board.locator("tbody .rw-prompt p").all_text_contents())
    assert "no prompt" in prompts and len(prompts & {" ".join(each.split()) for each in ODD_PROMPTS[:4]} | prompts & set(ODD_PROMPTS[:4])) >= 2
    board.get_by_label("Prompt", exact=True).fill("<b>a dog</b>")
    board.get_by_role("checkbox", name=re.compile("For pictures of a round")).check()
    expect(board.locator("tbody .rw-prompt p")).to_have_text(["<b>a dog</b>"] * 9)
    assert page.title() != "broken"
    board.get_by_label("Prompt", exact=True).fill("=1+1")
    expect(board.locator("tbody .rw-prompt p")).to_have_text(["=1+1"] * 9)
    scored(board, "9 pictures scored.")
    with page.expect_download() as download:
        board.get_by_role("button", name="Download CSV").click()
    rows = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text())))
    assert {row["prompt"] for row in rows} == {"'=1+1"}, "no spreadsheet takes it for a formula"
    assert all(float(row["jpeg_compressibility"]) < 0 for row in rows)


def test_a_reward_that_cannot_load_says_what_to_download_and_the_others_go_on(
    page: Page, studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    board = open_rewards(page, studio)
    drop(page, 1, 2)
    board.get_by_role("radio", name="Published").check()
    board.get_by_role("checkbox", name="Aesthetic (LAION)").check()
    failure = board.get_by_role("alert").filter(has_text="Cannot score")
    expect(failure).to_contain_text("CLIP ViT-L/14 (1.7 GB) and the predictor (4 MB)")
    expect(board.get_by_role("button", name="Download for Aesthetic (LAION)")).to_be_visible()
    expect(board.locator(".rw-number")).to_have_count(2)
    board.get_by_role("button", name="Retry Aesthetic (LAION)").click()
    expect(failure).to_be_visible()
    board.get_by_role("radio", name="Pocket").check()
    scored(board, "2 pictures scored.")
    board.get_by_label("Prompt", exact=True).fill("a cat")
    board.get_by_role("checkbox", name="PickScore").check()
    expect(failure).to_contain_text("It has no pocket networks")


def test_a_picture_without_a_prompt_says_so_where_one_is_needed(page: Page, studio: Studio) -> None:
    board = open_rewards(page, studio)
    drop(page, 1)
    board.get_by_role("checkbox", name="CLIPScore").check()
    scored(board, "1 picture scored; one picture lacks a value.")
    expect(board.locator("tbody")).to_contain_text("It compares a picture with its prompt, and there is none. Give one.")
    board.get_by_label("Prompt", exact=True).fill("a cat")
    scored(board, "1 picture scored.")


def test_stop_and_go_on(page: Page, studio: Studio) -> None:
    board = open_rewards(page, studio)
    drop(page, 1)
    board.get_by_label("Prompt", exact=True).fill("a cat")
    board.get_by_role("checkbox", name="CLIPScore").check()
    expect(board.get_by_role("status")).to_contain_text("CLIPScore: loading its networks")
    board.get_by_role("button", name="Stop").click()
    expect(board.get_by_role("status")).to_have_text("Stopped.")
    board.get_by_role("button", name="Go on").click()
    scored(board, "1 picture scored.")


def test_the_keyboard_reaches_a_reward_s_description_and_the_table(page: Page, studio: Studio) -> None:
    board = open_rewards(page, studio)
    box = board.get_by_role("checkbox", name="Aesthetic (LAION)")
    about = page.locator(f"#{box.get_attribute('aria-describedby')}")
    assert "Fooled by one painterly style" in (about.text_content() or "") and "1.7 GB" in (about.text_content() or "")
    box.focus()
    expect(board.locator(".rw-about")).to_contain_text("Fooled by one painterly style")
    page.keyboard.press("Space")
    expect(box).to_be_checked()
    drop(page, 1)
    scored(board, "1 picture scored.")
    board.get_by_role("region", name="Values").focus()
    assert page.evaluate("document.activeElement.classList.contains('rw-scroll')")


def focused(page: Page) -> str:
    """What the focused element says of itself."""
    found = page.evaluate("document.activeElement.getAttribute('aria-label') || document.activeElement.textContent || document.activeElement.tagName")
    return str(found)


def test_retry_gives_a_value_when_the_cause_is_gone_and_an_edit_shows_by_itself(
    page: Page, studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, trouble = tmp_path / "own.py", tmp_path / "trouble"
    code = "import os\ndef own(images, prompts):\n    assert not os.path.exists(f'{os.path.dirname(__file__)}/trouble'), 'in /some/folder/x'\n"
    file.write_text(code + "    return [(1.5, dict(answers='=5')) for _ in images]")
    trouble.touch()
    monkeypatch.setenv("DDPO_TRUSTED_REWARDS", f"{file}\n{file}:own")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url.rpartition("/")[2]) if "/studio/rewards/" in request.url else None)
    board = open_rewards(page, studio)
    drop(page, 1)
    board.get_by_role("checkbox", name="Your own own.py:own").check()
    failure = board.get_by_role("alert").filter(has_text="Cannot score")
    expect(failure).to_contain_text("in x")
    retry = board.get_by_role("button", name="Retry Your own own.py:own")
    asked.clear()
    retry.press("Enter")
    with page.expect_response(re.compile("/scores$")):
        pass
    assert asked[:2] == ["steer", "scores"], "the server knows before it is asked"
    expect(failure).to_contain_text("in x")
    trouble.unlink()
    retry.press("Enter")
    expect(board.locator(".rw-number").nth(1)).to_contain_text("1.5")
    assert "Your own own.py:own" in focused(page), "the head of its column"
    expect(board.get_by_role("columnheader", name="Your own own.py:own")).to_contain_text(re.compile(r"own\s*any number$"))
    file.write_text(code + "    return [2.5 for _ in images]")
    os.utime(file, ns=(1, 1))
    expect(board.locator(".rw-number").nth(1)).to_contain_text("2.5")


def test_what_looks_at_images_is_sent_when_it_is_whole(page: Page, studio: Studio) -> None:
    sent: set[str] = set()
    page.on("request", lambda request: sent.add(request.post_data_json["vlm"]) if request.url.endswith("/scores") else None)
    board = open_rewards(page, studio)
    drop(page, 1)
    board.get_by_role("checkbox", name="Strict questions (LLaVA)").check()
    field = board.get_by_label("What looks at images")
    field.press_sequentially("http://127.0.0.1:9/v1#m", delay=60)
    page.wait_for_timeout(1200)
    assert sent == {""}
    with page.expect_request(lambda request: request.url.endswith("/scores") and request.post_data_json["vlm"] != ""):
        field.press("Enter")
    assert sent == {"", "http://127.0.0.1:9/v1#m"}


def test_the_focus_stays_where_people_work(page: Page, studio: Studio) -> None:
    board = open_rewards(page, studio)
    drop(page, 1, 2, 3)
    scored(board, "3 pictures scored.")
    for name, then in (("2.png", "Remove 3.png"), ("3.png", "Remove 1.png"), ("1.png", "Choose files")):
        board.get_by_role("button", name=f"Remove {name}").press("Enter")
        assert focused(page) == then
    drop(page, 1)
    board.get_by_label("Prompt", exact=True).fill("a cat")
    board.get_by_role("checkbox", name="CLIPScore").check()
    board.get_by_role("button", name="Stop").press("Enter")
    assert focused(page) == "Go on"
    page.keyboard.press("Enter")
    assert focused(page) == "Stop"
    scored(board, "1 picture scored.")
    assert focused(page) == "Stop"
    expect(board.get_by_role("button", name="Stop")).to_be_disabled()
    drop(page, *range(2, 8))
    head = board.get_by_role("columnheader", name="JPEG compressibility").get_by_role("button")
    head.click()
    scored(board, "7 pictures scored.")
    board.get_by_role("checkbox", name="Compare 4.png").focus()
    head.evaluate("head => head.click()")  # its row moves, under the focus
    assert "Compare 4.png" in focused(page)


def test_a_hidden_page_is_not_drawn_and_is_whole_when_it_is_shown(page: Page, studio: Studio) -> None:
    board = open_rewards(page, studio)
    drop(page, 1)
    board.get_by_label("Prompt", exact=True).fill("a cat")
    board.get_by_role("checkbox", name="CLIPScore").check()
    page.get_by_role("tab", name="Rate", exact=True).click()
    page.wait_for_timeout(300)
    page.evaluate("""() => {
      window.drawn = 0;
      const all = { childList: true, subtree: true, characterData: true, attributes: true };
      new MutationObserver((seen) => { window.drawn += seen.length; }).observe(document.querySelector("#studio-rewards .rw"), all);
    }""")
    with page.expect_response(lambda response: response.url.endswith("/scores") and response.json()["now"] is None, timeout=200_000):
        pass
    page.wait_for_timeout(800)
    assert page.evaluate("window.drawn") == 0
    page.get_by_role("tab", name="Rewards", exact=True).click()
    scored(board, "1 picture scored.")


def test_a_text_with_its_picture_is_pasted_as_text(page: Page, studio: Studio) -> None:
    board = open_rewards(page, studio)
    data = page.evaluate_handle(DROP, [["shot.png", file_of(5)]])
    page.evaluate("data => data.setData('text/plain', 'two cats')", data)
    prevented = "(node, data) => !node.dispatchEvent(new ClipboardEvent('paste', { clipboardData: data, bubbles: true, cancelable: true }))"
    assert board.get_by_label("Prompt", exact=True).evaluate(prevented, data) is False
    assert page.locator("body").evaluate(prevented, data) is True
    expect(board.get_by_role("row")).to_have_count(2)


def test_another_run_has_its_own_rounds_and_a_large_round_says_what_is_left_out(page: Page, studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, rounds in (("b", 3), ("a", 2)):
        filled_run(studio.runs / name, rounds=rounds, prompts=ODD_PROMPTS[:4]).close()
    monkeypatch.setattr("app.pages.rewards.MOST_PICTURES", 5)
    board = open_rewards(page, studio, "a")
    board.get_by_label("Round", exact=True).select_option("1")
    board.get_by_role("button", name="Take its pictures").click()
    expect(board.get_by_role("alert").filter(has_text="left out")).to_have_text("3 pictures: were left out: there is room for 5.")
    expect(board.get_by_role("row")).to_have_count(6)
    board.get_by_role("button", name="Remove").first.click()
    drop(page, 101, 102, 103, 104)
    expect(board.get_by_role("alert").filter(has_text="left out")).to_have_text("3 pictures: were left out: there is room for 5.")
    expect(board.get_by_role("row")).to_have_count(6)
    page.get_by_role("combobox", name="Run", exact=True).select_option("b")
    expect(board.get_by_label("Round", exact=True)).to_have_value("3")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_is_never_wider_than_the_window(page: Page, studio: Studio, theme: str) -> None:
    page.set_viewport_size({"width": 390, "height": 860})
    page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
    filled_run(studio.runs / "a-run-with-quite-a-long-name-that-goes-on-and-on", rounds=2, prompts=ODD_PROMPTS).close()
    board = open_rewards(page, studio)
    for name in ("JPEG incompressibility", "Image statistics", "Strict questions (LLaVA)"):
        board.get_by_role("checkbox", name=name).check()
    heights = []
    board.get_by_role("button", name="Take its pictures").click()
    expect(board.get_by_role("row")).to_have_count(9)
    heights.append(board.locator("tbody").bounding_box()["height"])  # type: ignore[index]
    scored(board, re.compile("8 pictures scored"))
    heights.append(board.locator("tbody").bounding_box()["height"])  # type: ignore[index]
    assert heights[0] == heights[1], "no jump when values arrive"
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    assert board.locator(".rw-scroll").evaluate("node => node.scrollWidth > node.clientWidth")
