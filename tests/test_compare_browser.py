"""The Compare page in a real browser; pictures come from a process without a model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import Studio
from playwright.sync_api import Locator, Page, Route, expect

from app.blind import BlindTests
from app.comparing import Comparing
from ddpo.lock import WorkerLock
from ddpo.result import roll_back
from tests.toys import ODD_PROMPTS, comparable_run

PIXEL = "(canvas) => [...canvas.getContext('2d').getImageData(5, 5, 1, 1).data]"


def open_compare(page: Page, studio: Studio, run: str = "taste") -> Locator:
    page.goto(f"{studio.url}/?run={run}")
    page.get_by_role("tab", name="Compare", exact=True).click()
    expect(page.get_by_role("grid")).to_be_visible()
    return page.locator("#studio-compare")


def make(board: Locator) -> None:
    board.get_by_role("button", name="Make the pictures").click()
    expect(board.locator(".cmp-tools [role=status]")).to_have_text(re.compile(r"^\d+ pairs\.$"))


def sources(pair: Locator) -> list[str]:
    return [str(image.get_attribute("src")) for image in pair.locator("img").all()]


def test_the_keyboard_moves_through_the_grid_and_looks_at_a_pair_in_four_ways(page: Page, toy_studio: Studio) -> None:
    comparable_run(toy_studio.runs / "taste", prompts=("a cat", "a dog")).close()
    board = open_compare(page, toy_studio)
    expect(board.get_by_label("Model A")).to_have_value("0")
    expect(board.get_by_label("Model B")).to_have_value("2")
    expect(board.locator(".cmp-tools [role=status]")).to_have_text("6 pairs are not made yet.")
    make(board)
    expect(board.locator(".cmp-tools button")).to_have_text(["Blind test"])
    cell = board.get_by_role("gridcell", name="a cat, seed 1")
    cell.focus()
    for key, name in (
        ("ArrowRight", "a cat, seed 2"),
        ("ArrowDown", "a dog, seed 2"),
        ("End", "a dog, seed 3"),
        ("ArrowRight", "a dog, seed 3"),
        ("ArrowLeft", "a dog, seed 2"),
    ):
        page.keyboard.press(key)
        expect(board.get_by_role("gridcell", name=name)).to_be_focused()
    first, second = sources(board.get_by_role("gridcell", name="a dog, seed 2"))
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="One pair, large")
    expect(dialog.get_by_role("button", name="Slider")).to_have_attribute("aria-pressed", "true")

    over = dialog.get_by_role("img", name="B: Round 2")
    assert sources(dialog) == [first, second]
    page.keyboard.press("Shift+ArrowLeft")
    expect(dialog.get_by_label("How much of A is shown")).to_have_value("40")
    assert over.evaluate("image => getComputedStyle(image).clipPath") == "inset(0px 0px 0px 40%)"
    box = dialog.locator("[data-wipe]").bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 30)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 30)
    page.mouse.up()
    expect(dialog.get_by_label("How much of A is shown")).to_have_value("80")

    page.keyboard.press("2")
    expect(over).to_be_hidden()
    page.keyboard.down(" ")
    expect(over).to_be_visible()
    page.keyboard.up(" ")
    expect(over).to_be_hidden()
    dialog.get_by_role("button", name="Flicker").click()
    page.keyboard.down(" ")  # on the button, which is pressed already
    expect(over).to_be_visible()
    page.keyboard.up(" ")
    expect(over).to_be_hidden()
    dialog.get_by_role("button", name="Side by side").press(" ")
    expect(dialog.locator(".cmp-both")).to_be_visible()

    page.keyboard.press("3")
    page.keyboard.press("+")
    page.keyboard.press("+")
    both = dialog.locator(".cmp-both img")
    page.mouse.move(*centre(both.first))
    page.mouse.down()
    page.mouse.move(*(at + 20 for at in centre(dialog.locator(".cmp-both"))))
    page.mouse.up()
    moved = both.evaluate_all("images => images.map((image) => getComputedStyle(image).transform)")
    assert moved[0] == moved[1] and moved[0].startswith("matrix(2.25, 0, 0, 2.25, ") and not moved[0].endswith("0, 0)")
    page.keyboard.press("0")
    assert set(both.evaluate_all("images => images.map((image) => getComputedStyle(image).transform)")) == {"matrix(1, 0, 0, 1, 0, 0)"}

    page.keyboard.press("4")
    expect(dialog.locator("[data-mean]")).to_have_text(re.compile(r"Mean difference \d+\.\d %\."))
    canvas = dialog.get_by_role("img", name="Where the two differ")
    bright = canvas.evaluate(PIXEL)
    dialog.get_by_label("How much differences are brightened").fill("1")
    page.wait_for_function(
        "(before) => { const c = document.querySelector('[data-difference]'); return c.getContext('2d').getImageData(5, 5, 1, 1).data[0] < before; }",
        arg=bright[0],
    )

    page.keyboard.press("ArrowUp")
    expect(dialog.locator(".cmp-caption")).to_have_text("a cat seed 2")
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(board.get_by_role("gridcell", name="a cat, seed 2")).to_be_focused()


def centre(place: Locator) -> tuple[float, float]:
    box = place.bounding_box()
    assert box
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_a_strength_and_a_typed_prompt_are_made_after_a_pause_without_a_jump(page: Page, toy_studio: Studio) -> None:
    """The side that was moved is remade, the other is not; the row of what is typed is low until then, and comes where its text is; both stay after a
    reload."""
    comparable_run(toy_studio.runs / "taste", prompts=("a cat",), reward="jpeg_compressibility").close()
    board = open_compare(page, toy_studio)
    make(board)
    cell = board.get_by_role("gridcell", name="a cat, seed 1")
    expect(cell.locator(".cmp-values dd[data-better]")).to_have_count(1)
    before = sources(cell)
    slider = board.get_by_role("slider", name="Strength of B")
    slider.focus()
    for _ in range(4):
        slider.press("ArrowLeft")
    expect(board.locator(".cmp-strength output").nth(1)).to_have_text("80 %")
    expect(cell.locator("img").nth(1)).not_to_have_attribute("src", before[1])
    assert sources(cell)[0] == before[0]
    expect(board.get_by_role("columnheader", name=re.compile("Round 2 at 80 %")).first).to_be_visible()

    row = board.locator("tbody tr").first
    assert (low := row.bounding_box()) and low["height"] < 64
    board.get_by_label("A prompt of your own").fill("a fox on the moon")
    expect(row.locator(".cmp-pair > *")).to_have_count(6)
    place = board.get_by_role("gridcell", name="a cat, seed 1").bounding_box()
    expect(row.locator("img")).to_have_count(6)
    assert cell.bounding_box() == place
    page.keyboard.press("Enter")
    expect(board.get_by_label("A prompt of your own")).to_have_value("")
    assert row.bounding_box() == low
    expect(board.get_by_role("gridcell", name="a fox on the moon, seed 1").locator("img")).to_have_count(2)
    page.reload()
    page.get_by_role("tab", name="Compare", exact=True).click()
    expect(board.get_by_role("gridcell", name="a fox on the moon, seed 1").locator("img")).to_have_count(2)
    board.get_by_role("button", name="Remove a fox on the moon").click()
    expect(board.get_by_role("gridcell", name="a fox on the moon, seed 1")).to_have_count(0)


def test_the_grid_s_card_is_as_wide_as_its_table(page: Page, toy_studio: Studio) -> None:
    """Also of few pairs on a wide screen; none of it is empty."""
    comparable_run(toy_studio.runs / "taste", prompts=("a cat",)).close()
    page.set_viewport_size({"width": 1600, "height": 900})
    board = open_compare(page, toy_studio)
    for count in ("1", "2", "3"):
        board.get_by_label("Pairs a prompt").select_option(count)
        expect(board.get_by_role("columnheader")).to_have_count(int(count) + 1)
        box, table = board.locator(".cmp-box").bounding_box(), board.get_by_role("grid").bounding_box()
        assert box and table and box["width"] - table["width"] <= 2


def test_prompts_that_a_run_holds_out_can_be_compared(page: Page, toy_studio: Studio) -> None:
    """They are offered where there are some; another run on that side has its own prompts."""
    comparable_run(toy_studio.runs / "other").close()
    comparable_run(toy_studio.runs / "taste", held_out_prompts=("a hen", "an owl")).close()
    page.goto(f"{toy_studio.url}/?run=taste")
    page.get_by_role("tab", name="Compare", exact=True).click()
    board = page.locator("#studio-compare")
    prompts = board.locator("[data-set]")
    prompts.select_option(label="Those that the run holds out")
    expect(board.get_by_role("gridcell", name=re.compile("^a hen, seed"))).to_have_count(3)
    expect(board.get_by_role("gridcell", name=re.compile("^a cat, seed"))).to_have_count(0)
    board.get_by_label("Run of B").select_option("other")
    expect(prompts).to_have_value("run")
    expect(board.get_by_role("gridcell", name=re.compile("^a cat, seed"))).to_have_count(3)


def test_progress_leads_to_base_against_the_round_and_a_lora_is_refused_in_words(page: Page, toy_studio: Studio, tmp_path: Path) -> None:
    other = comparable_run(toy_studio.runs / "other")
    place = other.checkpoints()[1]
    other.close()
    comparable_run(toy_studio.runs / "taste", prompts=ODD_PROMPTS).close()
    page.on("dialog", lambda dialog: pytest.fail(f"a prompt ran: {dialog.message}"))
    page.goto(f"{toy_studio.url}/?run=taste")
    page.get_by_role("tab", name="Progress", exact=True).click()
    page.locator(".gallery").get_by_role("button", name="Compare").click()
    board = page.locator("#studio-compare")
    expect(board.get_by_label("Model B")).to_have_value("2")
    expect(board.locator(".cmp-tools [role=status]")).to_have_text("21 pairs.")
    assert "broken" not in page.title()
    board.get_by_label("Run of A").select_option("other")
    board.get_by_label("Model A").select_option("lora")
    expect(board.get_by_role("gridcell", name=re.compile("^a cat")).first.locator("img")).to_have_count(1)
    board.get_by_label("Path of the LoRA of A").fill("/nowhere/at.all")
    board.get_by_label("Path of the LoRA of A").press("Enter")
    expect(board.get_by_role("alert").filter(has_text="cannot be read as a .safetensors file")).to_be_visible()
    board.get_by_label("LoRA file of A").set_input_files({"name": "mine.safetensors", "mimeType": "", "buffer": b"no LoRA"})
    expect(board.get_by_role("alert").filter(has_text="This is no .safetensors file")).to_be_visible()
    board.get_by_label("LoRA file of A").set_input_files(place / "pytorch_lora_weights.safetensors")
    expect(board.locator(".cmp-tools [role=status]")).to_have_text("21 pairs.")
    expect(board.get_by_role("columnheader", name=re.compile("LoRA pytorch_lora_weights over the base of other")).first).to_be_visible()
    board.get_by_label("Model B").select_option("lora")
    board.get_by_label("Path of the LoRA of B").fill(str(place / "pytorch_lora_weights.safetensors"))
    board.get_by_label("Path of the LoRA of B").press("Enter")
    expect(board.get_by_role("columnheader", name=re.compile("LoRA 0001.pytorch_lora_weights over the base of taste")).first).to_be_visible()
    board.get_by_label("Model B").select_option("2")
    board.get_by_label("Model A").select_option("1")
    expect(board.locator(".cmp-tools [role=status]")).to_have_text("21 pairs.")
    expect(board.get_by_role("columnheader", name=re.compile("Round 1 of other.*Round 2 of taste")).first).to_be_visible()


@pytest.mark.parametrize("wrong", ["a side", "values", "the server", "nothing"])
def test_whatever_goes_wrong_the_page_asks_at_its_own_pace(page: Page, toy_studio: Studio, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    """Three seconds hold at most six questions, one every 0.6 s; of a side that gives no pictures none more is asked until somebody says so."""
    monkeypatch.setenv("TOY_COMPARE", "slow" if wrong == "nothing" else "broken" if wrong == "a side" else "")
    comparable_run(toy_studio.runs / "taste", prompts=("a cat", "a dog"), reward="jpeg_compressibility").close()
    board = open_compare(page, toy_studio)
    if wrong == "values":
        pending = dict(scores=dict(jpeg_compressibility=dict(values=[], failure=None)), gone=[])
        page.route("**/rewards/scores", lambda route: route.fulfill(json=pending))
    if wrong == "the server":
        page.route("**/rewards/scores", lambda route: route.abort())
    if wrong in ("values", "the server"):
        make(board)
    else:
        board.get_by_role("button", name="Make the pictures").click()
    if wrong == "a side":
        expect(board.get_by_role("alert").filter(has_text="The toy is broken.").first).to_be_visible()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(3000)
    pictures, scores = (sum(url.endswith(path) for url in asked) for path in ("/compare/pictures", "/rewards/scores"))
    assert pictures <= (0 if wrong == "a side" else 6) and scores <= 6, (pictures, scores)
    if wrong == "a side":
        page.get_by_role("button", name="Try again").first.click()
        page.wait_for_timeout(1500)
        assert 0 < sum(url.endswith("/compare/pictures") for url in asked) <= 4


def test_a_reward_that_failed_is_tried_again_by_the_networks_of_the_side_that_comes(page: Page, toy_studio: Studio, tmp_path: Path) -> None:
    """Swapped, the other run's networks score, and the page says whose; swapped back, those that failed are asked once more."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    comparable_run(toy_studio.runs / "other", prompts=("a cat",), reward="aesthetic", model=str(tmp_path / "model")).close()
    comparable_run(toy_studio.runs / "taste", prompts=("a cat",), reward="aesthetic").close()
    broken = {"pocket"}

    def scored(route: Route) -> None:
        asked = route.request.post_data_json
        failure = dict(text="The toy networks are gone.") if asked["models"] in broken else None
        values = [None if failure else dict(value=0.5) for _ in asked["items"]]
        route.fulfill(json=dict(scores=dict(aesthetic=dict(values=values, failure=failure)), gone=[]))

    page.route("**/rewards/scores", scored)
    board = open_compare(page, toy_studio)
    summary, values = board.locator(".cmp-rewards summary"), board.locator(".cmp-values dd")
    make(board)
    expect(board).to_contain_text("aesthetic: The toy networks are gone.")
    expect(summary).not_to_contain_text("networks")
    board.get_by_label("Run of A").select_option("other")
    expect(summary).to_contain_text(", by the pocket’s networks")
    board.get_by_role("button", name="Swap A and B").click()
    expect(summary).to_contain_text(", by published networks")
    expect(values.filter(has_text="0.5")).to_have_count(6)
    expect(board).not_to_contain_text("The toy networks are gone.")
    broken.clear()
    board.get_by_role("button", name="Swap A and B").click()
    expect(summary).to_contain_text(", by the pocket’s networks")
    expect(values.filter(has_text="0.5")).to_have_count(6)


def test_beside_a_run_at_work_the_page_asks_first(page: Page, toy_studio: Studio) -> None:
    store = comparable_run(toy_studio.runs / "taste", prompts=("a cat",))
    lock = WorkerLock(store.folder / "worker.lock")
    store.set_progress("updating", 3)
    board = open_compare(page, toy_studio)
    board.get_by_role("button", name="Make the pictures").click()
    expect(board.get_by_role("alert").filter(has_text="taste is at work")).to_be_visible()
    assert board.locator("img").count() == 0
    board.get_by_role("button", name="Make them anyway").click()
    expect(board.locator(".cmp-tools [role=status]")).to_have_text("3 pairs.")
    lock.release()
    store.close()


def test_it_follows_a_roll_back_until_somebody_has_chosen(page: Page, toy_studio: Studio) -> None:
    """The round that is taken away is what is compared, whenever that changes; a side that somebody chose stays."""
    store = comparable_run(toy_studio.runs / "taste", prompts=("a cat",))
    board = open_compare(page, toy_studio)
    expect(board.get_by_label("Model B")).to_have_value("2")
    roll_back(store, 1)
    expect(board.get_by_label("Model B")).to_have_value("1")
    roll_back(store, None)
    expect(board.get_by_label("Model B")).to_have_value("2")
    board.get_by_label("Model B").select_option("0")
    roll_back(store, 1)
    page.wait_for_timeout(3000)
    expect(board.get_by_label("Model B")).to_have_value("0")
    store.close()


def test_two_fingers_and_the_wheel_zoom_where_they_are(page: Page, toy_studio: Studio) -> None:
    """Fingers that part from 40 to 80 pixels, and move 30 to the right, make both pictures twice as large; what was between them is still there. The
    finger that stays goes on moving the pictures."""
    comparable_run(toy_studio.runs / "taste", prompts=("a cat",)).close()
    board = open_compare(page, toy_studio)
    make(board)
    board.get_by_role("gridcell", name="a cat, seed 1").click()
    dialog = page.get_by_role("dialog", name="One pair, large")
    dialog.get_by_role("button", name="Side by side").click()
    stage, both = dialog.locator(".cmp-both .cmp-stage").first, dialog.locator(".cmp-both img")
    (x, y), browser = centre(stage), page.context.new_cdp_session(page)

    def fingers(kind: str, at: dict[int, float]) -> None:
        """Of those that have changed."""
        points = [dict(x=x + 25 + by, y=y - 10, id=i) for i, by in at.items()]
        browser.send("Input.dispatchTouchEvent", dict(type=kind, touchPoints=points))

    def shown() -> list[list[float]]:
        texts = both.evaluate_all("images => images.map((image) => getComputedStyle(image).transform)")
        return [[float(number) for number in re.findall(r"-?[\d.]+", text.removeprefix("matrix"))] for text in texts]

    fingers("touchStart", {0: -20, 1: 20})
    for by in (10, 20, 30, 40):  # to -40 + 30 and 40 + 30
        fingers("touchMove", {0: -20 + by / 4, 1: 20 + 5 * by / 4})
    expect(both.first).to_have_css("transform", re.compile(r"^matrix\(2, "))  # touches come with the next frame
    (zoom, _, _, _, right, down), other = shown()
    assert [zoom, 0, 0, zoom, right, down] == other
    assert zoom == pytest.approx(2) and right == pytest.approx(25 + 30 - 2 * 25, abs=0.6) and down == pytest.approx(-10 + 2 * 10, abs=0.6)
    fingers("touchEnd", {0: -10})
    fingers("touchMove", {1: 80})
    expect(both.first).not_to_have_css("transform", f"matrix(2, 0, 0, 2, {right:g}, {down:g})")
    assert shown()[0][4:] == [pytest.approx(right + 10, abs=0.6), pytest.approx(down, abs=0.6)]
    fingers("touchEnd", {1: 80})
    page.keyboard.press("0")
    page.mouse.move(x + 30, y + 40)
    page.mouse.wheel(0, -100)
    expect(both.first).not_to_have_css("transform", "matrix(1, 0, 0, 1, 0, 0)")
    assert shown()[0] == [pytest.approx(each, abs=0.6) for each in (1.2, 0, 0, 1.2, 30 - 1.2 * 30, 40 - 1.2 * 40)]


def test_the_page_and_a_large_pair_fit_a_narrow_screen(page: Page, toy_studio: Studio) -> None:
    comparable_run(toy_studio.runs / ("a-run-with-a-long-name-" * 3)[:-1], prompts=("a cat", "long " * 200, "a dog", "a fox")).close()
    comparable_run(toy_studio.runs / "another-run").close()  # so that runs can be chosen
    page.set_viewport_size({"width": 390, "height": 800})
    board = open_compare(page, toy_studio, ("a-run-with-a-long-name-" * 3)[:-1])
    make(board)
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    beyond = """card => {
      const edge = card.getBoundingClientRect().right - parseFloat(getComputedStyle(card).paddingRight);
      const parts = [...card.querySelectorAll("select, input, button, summary, label, output")];
      return parts.filter((part) => part.checkVisibility() && part.getBoundingClientRect().right > edge + 0.5).map((part) => part.outerHTML);
    }"""
    assert board.locator(".cmp-controls").evaluate(beyond) == []
    page.set_viewport_size({"width": 390, "height": 480})
    scroll = """table => {
      let around = table.parentElement;
      while (around.scrollWidth <= around.clientWidth) around = around.parentElement;
      around.scrollTo(150, 100);
      const inside = (name) => table.querySelector(name).getBoundingClientRect();
      const at = around.getBoundingClientRect();
      return [around.scrollLeft, around.scrollTop, inside("tbody .cmp-prompt").left - at.left, inside("thead th").top - at.top];
    }"""
    across, down, left, top = board.locator(".cmp-table").evaluate(scroll)
    assert across == 150 and down > 50 and abs(left) < 2 and abs(top) < 2, "prompts and titles stay"
    board.locator(".cmp-scroll").evaluate("around => around.scrollTo(0, 0)")
    page.set_viewport_size({"width": 390, "height": 800})
    board.get_by_role("gridcell", name="a cat, seed 1").click()
    dialog = page.get_by_role("dialog", name="One pair, large")
    for mode in ("Slider", "Flicker", "Side by side", "Difference"):
        dialog.get_by_role("button", name=mode).click()
        assert dialog.evaluate("node => node.scrollWidth <= node.clientWidth && node.getBoundingClientRect().right <= innerWidth"), mode


@pytest.mark.parametrize("width", [1280, 390])
def test_the_buttons_of_a_large_pair_stay_where_they_are(page: Page, toy_studio: Studio, width: int) -> None:
    """However high what the buttons show is; each of two strengths says whose it is."""
    comparable_run(toy_studio.runs / "taste", prompts=("a cat",)).close()
    page.set_viewport_size({"width": width, "height": 900})
    board = open_compare(page, toy_studio)
    board.get_by_label("Model A").select_option("1")
    make(board)
    board.get_by_role("gridcell", name="a cat, seed 1").click()
    dialog = page.get_by_role("dialog", name="One pair, large")
    modes = [dialog.get_by_role("button", name=name) for name in ("Slider", "Flicker", "Side by side", "Difference")]
    places = []
    for mode in modes:
        mode.click()
        expect(mode).to_have_attribute("aria-pressed", "true")
        places.append([each.bounding_box() for each in modes])
    assert all(place == places[0] for place in places)
    expect(dialog.locator(".cmp-strength > span")).to_have_text(["Strength of A", "Strength of B"])


def seen(board: Locator) -> None:
    """Wait until both pictures of a pair are there."""
    for where in ("left", "right"):
        assert board.get_by_role("img", name=f"The {where} picture").evaluate("image => image.decode().then(() => image.naturalWidth)") == 64


def test_a_verdict_is_of_the_one_who_saw_the_pair_and_of_none_that_nobody_saw(page: Page, toy_studio: Studio) -> None:
    """Keys say nothing before both pictures are there; a name that changes on another page brings that rater's pairs before anything is judged; a
    folder that cannot be used for a while is asked again."""
    store = comparable_run(toy_studio.runs / "taste", prompts=("a cat", "a dog"))
    board = open_compare(page, toy_studio)
    board.get_by_role("button", name="Blind test").click()
    board.get_by_label("Your name").fill("Anna")
    board.get_by_label("Pairs").select_option("10")
    held: list[Route] = []
    page.route(re.compile("/blind/.*/picture/"), lambda route: held.append(route))
    page.route(re.compile("/blind/[0-9a-f]{16}$"), lambda route: route.fulfill(status=503, json=dict(detail="Not just now.")), times=1)
    board.get_by_role("button", name="Begin").click()
    expect(board).to_contain_text("Not just now.")
    expect(board).to_contain_text("Pair 1 of 10")
    tests = BlindTests(toy_studio.runs, Comparing(toy_studio.runs, lambda: None))
    plan = tests.plan(tests.listed("Anna")[0]["id"])
    page.keyboard.press("ArrowUp")
    page.wait_for_timeout(500)
    assert not tests.answers(plan)
    for route in held:
        route.continue_()
    page.unroute(re.compile("/blind/.*/picture/"))
    seen(board)

    def shown(rater: str, at: int) -> str:
        return plan.shown(rater, plan.order(rater)[at])[0]

    ben = next(name for name in ("Ben", "Cleo", "Dora", "Emil") if shown(name, 0) != shown("Anna", 0))
    left = board.get_by_role("img", name="The left picture")
    page.evaluate("(name) => localStorage.setItem('ddpo-studio/rater', name)", ben)  # as the Rate page does
    page.keyboard.press("ArrowLeft")
    expect(left).to_have_attribute("src", shown(ben, 0))
    assert [(each.rater, each.answer, each.pair) for each in tests.answers(plan)] == [("Anna", "left", plan.order("Anna")[0])]

    seen(board)
    page.context.new_page().goto(f"{toy_studio.url}/studio/blind")
    page.context.pages[-1].evaluate("localStorage.setItem('ddpo-studio/rater', 'Anna')")
    expect(left).to_have_attribute("src", shown("Anna", 1))

    store.close()
    tests.comparing.close()


def test_a_blind_test_from_begin_to_end_by_keyboard(page: Page, toy_studio: Studio) -> None:
    """Ten pairs of which the rater always prefers B, whom only the test knows; interrupted by a reload; no answer before it is on disk."""
    store = comparable_run(toy_studio.runs / "taste", prompts=("a cat", "a dog"))
    board = open_compare(page, toy_studio)
    board.get_by_role("button", name="Blind test").click()
    board.get_by_label("Your name").fill("Anna")
    board.get_by_label("Pairs").select_option("10")
    expect(board).to_contain_text("it takes 9 wins of 10")
    board.get_by_role("button", name="Begin").click()
    status = board.get_by_role("status")
    expect(status).to_have_text("Pair 1 of 10")
    tests = BlindTests(toy_studio.runs, Comparing(toy_studio.runs, lambda: None))
    plan = tests.plan(tests.listed("Anna")[0]["id"])
    for at, pair in enumerate(plan.order("Anna")):
        expect(status).to_have_text(f"Pair {at + 1} of 10")
        text = page.content()
        assert "Round 2" not in board.inner_text() and not any(key in text for p in plan.pairs for key in p.keys)
        seen(board)
        left = board.get_by_role("img", name="The left picture")
        shown = plan.pairs[pair].files["ab".index(plan.left("Anna", pair))]
        assert str(left.get_attribute("src")).endswith(shown)
        if at == 3:
            page.reload()
            page.get_by_role("tab", name="Compare", exact=True).click()
            expect(status).to_have_text("Pair 4 of 10")
            page.keyboard.press("z")
            expect(status).to_have_text("Pair 3 of 10")
            seen(board)
            page.keyboard.press("ArrowUp")
            expect(status).to_have_text("Pair 4 of 10")
            seen(board)
        if at == 4:
            page.route("**/answers", lambda route: route.abort())
        page.keyboard.press("ArrowDown" if at == 9 else "ArrowLeft" if plan.left("Anna", pair) == "b" else "ArrowRight")
        if at == 4:
            expect(board.get_by_role("alert").filter(has_text="Not saved yet")).to_be_visible()
            assert len(tests.said(plan)["Anna"]) == 4
            page.unroute("**/answers")
    expect(board.get_by_role("heading", name="Result of the blind test")).to_be_visible()
    assert [each.verdict for each in tests.said(plan)["Anna"].values()].count("b") == 8
    expect(status).to_contain_text("Round 2 is better: it won 8 of 8 decided pairs.")
    expect(status).to_contain_text("95 % interval 68 % to 100 % · two-sided sign test p = 0.008. Both speak of these prompts")
    expect(status).to_contain_text("1 equal, 1 both bad")
    expect(board.get_by_role("table", name="Prompt").get_by_role("row")).to_have_count(3)
    expect(board.locator(".blind-pairs img")).to_have_count(20)
    board.get_by_role("button", name="Back to the grid").click()
    expect(board.get_by_role("grid")).to_be_visible()
    board.get_by_role("button", name="Blind test").click()
    expect(board).to_contain_text("base model and round 2")
    board.get_by_label("Your name").fill("Ben")
    board.get_by_label("Your name").press("Enter")
    expect(board.get_by_role("button", name="Judge it")).to_be_visible()
    expect(board.locator(".blind-tests")).not_to_contain_text("round 2")
    tests.comparing.close()
    store.close()


def test_a_double_click_begins_one_test_and_one_without_an_answer_can_be_deleted(page: Page, toy_studio: Studio) -> None:
    """Earlier ones are told apart by who began them, and of how many prompts they are; one that somebody has answered stays."""
    comparable_run(toy_studio.runs / "taste", prompts=("a cat", "a dog")).close()
    board = open_compare(page, toy_studio)
    earlier = board.locator(".blind-tests li")

    def begin(name: str) -> None:
        board.get_by_role("button", name="Blind test").click()
        board.get_by_label("Your name").fill(name)
        board.get_by_label("Pairs").select_option("10")
        board.get_by_role("button", name="Begin").dblclick()
        expect(board).to_contain_text("Pair 1 of 10")

    begin("Anna")
    seen(board)
    page.keyboard.press("ArrowLeft")
    expect(board).to_contain_text("Pair 2 of 10")
    board.get_by_role("button", name="Leave").click()
    begin("Ben")
    board.get_by_role("button", name="Leave").click()
    board.get_by_role("button", name="Blind test").click()
    expect(earlier).to_have_text([re.compile("Ben: 10 pairs of 2 prompts"), re.compile("Anna: 10 pairs of 2 prompts")])
    expect(earlier.get_by_role("button", name="Delete")).to_have_count(1)
    earlier.first.get_by_role("button", name="Delete").click()
    expect(earlier).to_have_text([re.compile("Anna")])
    expect(board.get_by_role("region", name="Blind test")).to_be_focused()
    assert len(list((toy_studio.runs / ".blind").iterdir())) == 1
