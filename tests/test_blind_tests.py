"""Blind tests on disk and through their routes: chosen ahead, sides drawn for each rater, every answer durable, nothing told before the end."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app.blind import BlindError, BlindTests, Plan, append_line
from app.comparing import Comparing
from app.runs import Runs
from app.scoring import Desk
from app.trials import build_trials, title_of
from ddpo.blind import Outcome, results, sign_test, until, wilson
from ddpo.states import State
from ddpo.store import RunStore, delete_run
from tests.toys import comparable_run, named_model_run

PROMPTS = ["a cat", "a dog", "a fox"]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunStore]:
    found = named_model_run(tmp_path)
    yield found
    found.close()


@pytest.fixture
def tests(store: RunStore) -> Iterator[BlindTests]:
    comparing = Comparing(store.folder.parent, lambda: None, Desk((sys.executable, "-m", "tests.toy_compare")))
    yield BlindTests(store.folder.parent, comparing)
    comparing.close()


def begun(tests: BlindTests, store: RunStore, count: int = 6) -> Plan:
    plan = tests.create((State(store.folder), State(store.folder, 2)), ("base model", "round 2"), PROMPTS, count)
    made(tests, plan)
    return plan


def made(tests: BlindTests, plan: Plan) -> None:
    deadline = time.monotonic() + 60
    while tests.make(plan)[0] < len(plan.pairs):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def say(tests: BlindTests, plan: Plan, rater: str, at: int, answer: str, client_id: str) -> bool:
    """An answer to the pair that the rater is shown at a place."""
    return tests.answer(plan, rater, at, plan.shown(rater, plan.order(rater)[at])[0], answer, client_id)


def judged(tests: BlindTests, plan: Plan, rater: str, verdicts: dict[int, str]) -> None:
    """A rater's whole test; verdicts by pair: a, b, tie or bad."""
    for at, pair in enumerate(plan.order(rater)):
        said = verdicts[pair]
        answer = said if said in ("tie", "bad") else "left" if plan.left(rater, pair) == said else "right"
        assert say(tests, plan, rater, at, answer, f"{rater}-{at}")


def test_pairs_are_chosen_ahead_and_their_files_tell_nothing(tests: BlindTests, store: RunStore) -> None:
    """As many pairs of each prompt as of any other, each pair with a seed of its own; names are random; the plan is read back as it was written."""
    plan = begun(tests, store)
    assert sorted(pair.prompt for pair in plan.pairs) == sorted(PROMPTS * 2) and len({p.seed for p in plan.pairs}) == 6
    names = {name for pair in plan.pairs for name in pair.files}
    assert len(names) == 12 and not names & {key for pair in plan.pairs for key in pair.keys}
    assert {path.stem for path in (tests.folder / plan.id / "pictures").iterdir()} == names
    assert BlindTests(store.folder.parent, tests.comparing).plan(plan.id) == plan
    for pair in plan.pairs:
        for key, name in zip(pair.keys, pair.files, strict=True):
            file, kept = tests.file(plan.id, name), tests.comparing.path(key)
            assert file and kept and file.read_bytes() == kept.read_bytes()


def test_sides_and_order_are_drawn_for_each_rater(tests: BlindTests, store: RunStore) -> None:
    """Over 200 pairs a side is on the left half of the time (4 standard deviations: 72 to 128), and independently for two raters."""
    plan = tests.create((State(store.folder), State(store.folder, 2)), ("base model", "round 2"), PROMPTS, 200)
    anna, ben = ([plan.left(rater, pair) for pair in range(200)] for rater in ("anna", "ben"))
    assert 72 < anna.count("a") < 128 and 72 < ben.count("a") < 128 and 72 < sum(a == b for a, b in zip(anna, ben, strict=True)) < 128
    assert plan.order("anna") != plan.order("ben") and sorted(plan.order("anna")) == list(range(200))
    assert anna == [plan.left("anna", pair) for pair in range(200)]


def test_what_a_rater_sees_before_the_end_tells_nothing_of_the_sides(tests: BlindTests, store: RunStore) -> None:
    plan = begun(tests, store)
    for at in range(6):
        seen = json.dumps(tests.view(plan, "anna")) + json.dumps(tests.listed("anna"))
        for word in ("base model", "round", "taste", plan.secret, "verdict", *(key for pair in plan.pairs for key in pair.keys)):
            assert word not in seen
        say(tests, plan, "anna", at, "left", f"{at}")
    assert tests.view(plan, "anna")["result"]["titles"] == ["base model", "round 2"]
    assert tests.listed("anna")[0]["titles"] and tests.listed("ben")[0]["titles"] is None


def test_the_pictures_of_a_pair_stand_where_the_verdict_says(tests: BlindTests, store: RunStore) -> None:
    """Left means the picture that was shown on the left, whoever's it is."""
    plan, draw = begun(tests, store), random.Random(0)
    better = {}
    for _ in range(6):
        shown = tests.view(plan, "anna")["pair"]
        answer = draw.choice(("left", "right"))
        better[shown["prompt"], shown[answer]] = True
        assert tests.answer(plan, "anna", shown["at"], shown["left"], answer, str(shown["at"]))
    for pair in tests.view(plan, "anna")["result"]["pairs"]:
        assert (pair["prompt"], pair[pair["verdict"]]) in better


def test_a_test_goes_on_where_it_stopped_and_an_answer_counts_once(tests: BlindTests, store: RunStore) -> None:
    """A line that a crash cut off is no answer, and does not spoil the next one; an answer that was given once more replaces the first."""
    plan = begun(tests, store)
    assert say(tests, plan, "anna", 0, "left", "first") and not say(tests, plan, "anna", 0, "left", "first")
    file = tests.folder / plan.id / "answers.jsonl"
    with open(file, "ab") as stored:
        stored.write(b'{"rater": "anna", "pair"')
    again = BlindTests(store.folder.parent, tests.comparing)
    plan = again.plan(plan.id)
    assert again.view(plan, "anna")["pair"]["at"] == 1
    say(again, plan, "anna", 1, "tie", "second")
    assert again.view(plan, "anna", at=0)["pair"]["at"] == 0
    say(again, plan, "anna", 0, "bad", "third")
    assert [each.answer for each in again.said(plan)["anna"].values()] == ["bad", "tie"] and again.view(plan, "anna")["done"] == 2
    for at, answer, says in ((4, "left", "not judged yet"), (2, "better", "An answer is one of"), (6, "left", "An answer is one of")):
        with pytest.raises(BlindError, match=says):
            again.answer(plan, "anna", at, plan.shown("anna", plan.order("anna")[min(at, 5)])[0], answer, f"{at}{answer}")
    for at in range(2, 6):
        say(again, plan, "anna", at, "tie", f"{at}")
    with pytest.raises(BlindError, match="is revealed"):
        say(again, plan, "anna", 0, "left", "too late")


def test_a_damaged_answer_is_given_once_more(tests: BlindTests, store: RunStore) -> None:
    """What was damaged in the middle of the answers holds nobody up: that pair is asked for again, and then what is left."""
    plan = begun(tests, store)
    for at in range(5):
        say(tests, plan, "anna", at, "left", f"{at}")
    file = tests.folder / plan.id / "answers.jsonl"
    lines = file.read_bytes().splitlines()
    for damaged in (b"\xff" + lines[2][5:], lines[2].replace(b'"pair": ', b'"pair": 9'), lines[2].replace(b'"left"', b'"up"', 1)):
        file.write_bytes(b"\n".join([*lines[:2], damaged, *lines[3:]]) + b"\n")
        view = tests.view(plan, "anna")
        assert (view["pair"]["at"], view["done"]) == (2, 4) and tests.view(plan, "anna", at=4)["pair"]["at"] == 4
    file.write_bytes(b"\n".join([lines[0], b"", b"?", *lines[3:]]) + b"\n")
    for at in (2, 5):
        with pytest.raises(BlindError, match="not judged yet"):
            say(tests, plan, "anna", at, "left", "too early")
    assert all(say(tests, plan, "anna", at, "tie", f"once more {at}") for at in (4, 1, 2))
    assert tests.view(plan, "anna")["pair"]["at"] == 5 and say(tests, plan, "anna", 5, "tie", "last") and "result" in tests.view(plan, "anna")


def test_an_answer_to_what_another_rater_was_shown_is_refused(tests: BlindTests, store: RunStore) -> None:
    """Their pairs stand in another order, and on other sides; nothing is saved."""
    plan = begun(tests, store)
    seen = {rater: tests.view(plan, rater)["pair"]["left"] for rater in ("anna", "ben", "cleo", "dora", "emil")}
    others = [rater for rater, left in seen.items() if left != seen["anna"]]
    assert others  # all alike with odds of 12^-4
    for rater in others:
        with pytest.raises(BlindError, match=f"not the pair that {rater} is shown"):
            tests.answer(plan, rater, 0, seen["anna"], "left", f"of {rater}")
    assert not tests.answers(plan)


def test_pictures_of_weights_that_changed_since_are_not_made(tests: BlindTests, store: RunStore) -> None:
    """Half of a test from other weights would be no test."""
    sides = State(store.folder), State(store.folder, 2)
    plan = tests.create(sides, ("base model", "round 2"), PROMPTS, 3)
    sides[1].weights.write_bytes(b"other weights of round 2")
    for _ in range(3):
        there, failure = tests.make(plan)
        assert there == 0 and "have changed since this test was planned" in failure
    assert not list((tests.folder / plan.id / "pictures").iterdir()) and not tests.comparing.folder.exists()
    sides[1].weights.unlink()
    assert "has no weights" in tests.make(plan)[1]


def test_pages_that_ask_at_once_copy_a_picture_once(tests: BlindTests, store: RunStore) -> None:
    plan = begun(tests, store)
    for file in (tests.folder / plan.id / "pictures").iterdir():
        file.unlink()
    with ThreadPoolExecutor(8) as pool:
        assert all(failure == "" for _, failure in pool.map(lambda _: tests.make(plan), range(32)))
    assert tests.make(plan) == (6, "") and not list((tests.folder / plan.id / "pictures").glob(".*"))


def test_the_result_counts_pairs_not_people(tests: BlindTests, store: RunStore) -> None:
    """Two raters, and one who has not finished and does not count."""
    plan = begun(tests, store)
    judged(tests, plan, "anna", {0: "b", 1: "b", 2: "b", 3: "a", 4: "tie", 5: "bad"})
    judged(tests, plan, "ben", {0: "b", 1: "b", 2: "b", 3: "b", 4: "b", 5: "bad"})
    say(tests, plan, "cleo", 0, "left", "one")
    result = tests.result(plan)
    assert {key: result["total"][key] for key in ("a", "b", "tie", "bad", "decided")} == dict(a=0, b=4, tie=1, bad=1, decided=4)
    assert result["total"]["win_rate"] == 1.0 and result["total"]["interval"] == wilson(4, 4) and result["total"]["p_value"] == sign_test(4, 0)
    assert [(each["name"], each["a"], each["b"]) for each in result["raters"]] == [("anna", 1, 3), ("ben", 0, 5)]
    assert result["waiting"] == ["cleo"]
    assert result["left"]["left"] + result["left"]["right"] == 9 and result["left"]["p_value"] == sign_test(
        result["left"]["left"], result["left"]["right"]
    )
    assert sum(each["a"] + each["b"] + each["tie"] + each["bad"] for each in result["prompts"]) == 6
    assert [each["verdict"] for each in result["pairs"]] == ["b", "b", "b", "tie", "b", "bad"]


def test_sides_are_called_by_what_tells_them_apart(store: RunStore) -> None:
    taste, other = State(store.folder, 2, strength=0.5), State(Path("runs") / "other", lora="/far/away/mine.safetensors")
    assert title_of(taste, State(store.folder)) == "round 2 at 50 %" and title_of(State(store.folder), taste) == "base model"
    assert title_of(taste, other) == "round 2 of taste at 50 %" and title_of(other, taste) == "the LoRA mine over the base of other"
    first, second = (State(store.folder, lora=f"/far/{place}/pytorch_lora_weights.safetensors") for place in ("one", "two"))
    assert title_of(first, State(store.folder)) == "the LoRA pytorch_lora_weights"
    assert [title_of(first, second), title_of(second, first)] == ["the LoRA one/pytorch_lora_weights", "the LoRA two/pytorch_lora_weights"]
    assert title_of(first, State(store.folder, lora=first.lora, strength=0.5)) == "the LoRA pytorch_lora_weights"


def test_a_line_is_added_after_what_a_crash_left(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    for line in ("one", "two"):
        append_line(file, line)
    file.write_bytes(file.read_bytes() + b"half")
    append_line(file, "three")
    assert file.read_text() == "one\ntwo\nhalf\nthree\n"


def test_only_a_test_that_nobody_has_answered_is_deleted(tests: BlindTests, store: RunStore) -> None:
    """With its pictures, and other tests stay; an answer that a crash cut off is an answer here. The list says which can be."""
    kept, gone, cut = (begun(tests, store, 2) for _ in range(3))
    say(tests, kept, "anna", 0, "left", "one")
    (tests.folder / cut.id / "answers.jsonl").write_text('{"rater"')
    for plan in (kept, cut):
        with pytest.raises(BlindError, match="so it is kept"):
            tests.delete(plan)
    assert {each["id"]: each["answered"] for each in tests.listed("ben")} == {kept.id: True, gone.id: False, cut.id: True}
    tests.delete(gone)
    assert {each["id"] for each in tests.listed("ben")} == {path.name for path in tests.folder.iterdir()} == {kept.id, cut.id}
    with pytest.raises(BlindError, match="There is no such blind test"):
        tests.plan(gone.id)


def test_a_plan_of_before_who_began_it_was_kept_is_read(tests: BlindTests, store: RunStore) -> None:
    plan = tests.create((State(store.folder), State(store.folder, 2)), ("base model", "round 2"), PROMPTS, 4, "Anna")
    file = tests.folder / plan.id / "plan.json"
    assert BlindTests(store.folder.parent, tests.comparing).plan(plan.id) == plan
    assert [(each["by"], each["prompts"]) for each in tests.listed("ben")] == [("Anna", 3)]
    file.write_text(json.dumps({name: value for name, value in json.loads(file.read_text()).items() if name != "by"}))
    assert BlindTests(store.folder.parent, tests.comparing).listed("ben")[0]["by"] == ""


# --- routes ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def web(store: RunStore, tests: BlindTests) -> Iterator[TestClient]:
    runs, app = Runs(store.folder.parent), FastAPI()
    app.include_router(build_trials(runs, tests))
    with TestClient(app) as found:
        yield found
    runs.close()


def wish(**changes: Any) -> dict[str, Any]:
    return dict(sides=[dict(run="taste"), dict(run="taste", round=2)], prompts=PROMPTS, pairs=3) | changes


def test_a_test_through_the_routes(web: TestClient, tests: BlindTests) -> None:
    """Begun, made, judged and revealed; a page of another site cannot ask; an answer that comes twice is saved once."""
    id = web.post("/studio/blind", json=wish()).json()["id"]
    deadline = time.monotonic() + 60
    while "pair" not in (view := web.post(f"/studio/blind/{id}", json=dict(rater="anna")).json()):
        assert time.monotonic() < deadline and view["total"] == 3 and view["failure"] == ""
        time.sleep(0.02)
    assert web.get("/studio/blind", params=dict(rater="anna")).json()["tests"][0]["done"] == 0
    for at in range(3):
        assert web.get(view["pair"]["left"]).headers["content-type"] == "image/png"
        answer = dict(rater=view["rater"], at=at, left=view["pair"]["left"], answer="left", client_id=f"c{at}", shown_at=1.0, answered_at=2.0)
        said = web.post(f"/studio/blind/{id}/answers", json=answer).json()
        assert said["new"] is True and len(tests.answers(tests.plan(id))) == at + 1
        if at < 2:
            assert web.post(f"/studio/blind/{id}/answers", json=answer).json()["new"] is False
        view = said["view"]
    assert view["result"]["titles"] == ["base model", "round 2"] and view["result"]["left"]["left"] == 3
    assert web.post(f"/studio/blind/{id}/answers", content=b"{}", headers={"content-type": "text/plain"}).status_code == 415
    assert web.post(f"/studio/blind/{id}/delete", json={}).status_code == 422
    other = web.post("/studio/blind", json=wish(rater="anna")).json()["id"]
    assert web.post(f"/studio/blind/{other}/delete", content=b"{}", headers={"content-type": "text/plain"}).status_code == 415
    assert web.post(f"/studio/blind/{other}/delete", json={}).json() == dict(deleted=other)
    assert [each["id"] for each in web.get("/studio/blind", params=dict(rater="ben")).json()["tests"]] == [id]
    for path in (f"/studio/blind/{id}/picture/..%2Fplan", f"/studio/blind/{id}/picture/{'0' * 32}", "/studio/blind/..%2F..%2Ftaste/picture/x"):
        assert web.get(path).status_code == 404


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(sides=[dict(run="taste"), dict(run="taste")]), "the same model"),
        (dict(sides=[dict(run="taste"), dict(run="taste", round=2, strength=0)]), "the same model"),
        (dict(sides=[dict(run="taste"), dict(run="taste", round=9)]), "has no weights"),
        (dict(sides=[dict(run="gone"), dict(run="taste")]), "There is no run gone"),
        (dict(pairs=0), "1 to 200 pairs"),
        (dict(pairs=201), "1 to 200 pairs"),
        (dict(pairs="3"), "how many pairs"),
        (dict(prompts=[]), "at least one prompt"),
        (dict(rater="a\n"), "the name of who begins it"),
    ],
)
def test_what_can_be_no_test_is_refused_in_words(web: TestClient, tests: BlindTests, changes: dict[str, Any], says: str) -> None:
    answer = web.post("/studio/blind", json=wish(**changes))
    assert answer.status_code == 422 and says in answer.json()["detail"] and not list(tests.folder.glob("*"))
    assert web.post("/studio/blind/0123456789abcdef", json=dict(rater="anna")).status_code == 422


# --- what has come out, in the run's folder ---------------------------------------------------------------------------------------


def test_what_comes_out_is_kept_in_the_run_s_folder_from_a_rater_s_end_on(tests: BlindTests, store: RunStore) -> None:
    """Nothing before the end; then what the page is told, without names; of two raters, together. The rounds are this run's, the base model is 0."""
    plan = begun(tests, store, 4)
    verdicts = {0: "b", 1: "b", 2: "a", 3: "tie"}
    for at, pair in enumerate(plan.order("anna")[:3]):
        assert say(tests, plan, "anna", at, verdicts[pair] if verdicts[pair] == "tie" else "left", f"x-{at}")
    assert results(store.folder) == []
    judged(tests, plan, "bo", verdicts)
    (found,) = results(store.folder)
    assert (found.id, found.titles, found.rounds, found.pairs, found.people) == (plan.id, ("base model", "round 2"), (0, 2), 4, 1)
    assert found.total == Outcome(a=1, b=2, tie=1, bad=0) and sum(found.left) == 3
    judged(tests, plan, "cy", dict.fromkeys(range(4), "b"))
    (found,) = results(store.folder)
    assert found.people == 2 and found.total == Outcome(a=0, b=3, tie=1, bad=0) and sum(found.left) == 7  # pair 3: a tie and a b; pair 2: one each
    assert "bo" not in (store.folder / "blind" / f"{plan.id}.json").read_text()


def test_a_run_that_is_gone_takes_no_answer_with_it_and_is_told_when_it_is_back(tests: BlindTests, store: RunStore) -> None:
    """As where a worker dies between the last answer and what comes out of it: whoever looks at the result has it kept."""
    plan = begun(tests, store, 1)
    store.folder.rename(store.folder.with_name("elsewhere"))
    judged(tests, plan, "bo", {0: "b"})
    assert tests.result(plan)["total"]["b"] == 1
    store.folder.with_name("elsewhere").rename(store.folder)
    assert results(store.folder) == []
    tests.view(plan, "bo")
    (found,) = results(store.folder)
    assert found.total.b == 1 and found.finished_at == tests.answers(plan)[0].saved_at


def test_another_run_of_the_same_name_is_not_told_what_came_out(tests: BlindTests, store: RunStore) -> None:
    """Its weights are others; who judged the test still sees its result."""
    plan = begun(tests, store, 1)
    judged(tests, plan, "bo", {0: "b"})
    assert len(results(store.folder)) == 1
    model = store.config.model
    store.close()
    delete_run(store.folder)
    comparable_run(store.folder, model=model).close()
    assert tests.view(plan, "bo")["result"]["total"]["b"] == 1
    judged(tests, plan, "cy", {0: "b"})
    assert results(store.folder) == []


def test_what_cannot_be_read_is_left_out_and_later_rounds_are_none_of_an_earlier_one_s(tests: BlindTests, store: RunStore) -> None:
    plan = begun(tests, store, 1)
    judged(tests, plan, "bo", {0: "b"})
    (file,) = (store.folder / "blind").iterdir()
    told = json.loads(file.read_text())
    changes = (dict(rounds=["x", 1]), dict(rounds=[1]), dict(total=[]), dict(titles="ab"), dict(finished_at="yesterday"))
    for i, broken in enumerate(("{}", "[" * 100_000, *(json.dumps(told | change) for change in changes))):
        (store.folder / "blind" / f"ffff{i}.json").write_text(broken)
    file.write_text(json.dumps(told | dict(version=1)))
    found = results(store.folder)
    assert len(found) == 1 and until(found, 1) == [] and until(found, 2) == found
