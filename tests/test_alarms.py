"""What is said to go wrong: each rule fires where it must and keeps quiet where it must not; and a run heeds it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ddpo.alarms import Alarm, Sign, alarm_at, best_round, changes, diversity_by_prompt, is_on, paid_for, series_of, signs_of
from ddpo.records import ProbeRow
from tests.test_monitor import watched_config
from tests.toys_ddpo import toy_trainer

BASE = (0.0, 1.0, 2.0, 3.0)
"""Mean 1.5, standard deviation √1.25 = 1.118."""
UNIT = 1.25**0.5

Found = dict[int, dict[str, Sequence[float | None]]]


def moved(by: float, start: Sequence[float] = BASE) -> list[float]:
    """Four pictures' values, all moved by as many of the base's standard deviations, but for a little that tells them apart."""
    return [value + by * UNIT + 0.001 * i for i, value in enumerate(start)]


def series(rounds: Sequence[int] = (0, 5, 10), **measures: Sequence[float]) -> Found:
    """Each measure's moves from the base, by round."""
    return {at: {name: moved(by[i]) if at else list(BASE) for name, by in measures.items()} for i, at in enumerate(rounds)}


def told(found: Found, number: int, reward: str = "aesthetic") -> dict[str, float]:
    return {sign.name: sign.strength for sign in signs_of(found, dict.fromkeys(found, reward))[number]}


def alarm(found: Found, number: int, reward: str = "aesthetic") -> Alarm | None:
    return alarm_at(found, number, dict.fromkeys(found, reward))


# --- signs ------------------------------------------------------------------------------------------------------------------------


def test_a_reward_that_fell_by_half_a_deviation_since_its_best_round_is_a_sign() -> None:
    """It rose by 0.4 to round 5; at 0.1 below the base it has fallen by 0.5, once the threshold; at the base by 0.4, which is none."""
    assert told(series(clip_score=(0, 0.4, -0.1)), 10) == {"clip_score": pytest.approx(1, abs=0.01)}
    assert told(series(clip_score=(0, 0.4, 0.0)), 10) == {} and told(series(clip_score=(0, 0.4, -0.1)), 5) == {}
    assert signs_of(series(clip_score=(0, 0.4, -0.6)), dict.fromkeys((0, 5, 10), "aesthetic"))[10][0].since == 5


def test_what_is_optimised_and_what_has_no_merit_is_no_sign() -> None:
    found = series(clip_score=(0, 0, -3), jpeg_compressibility=(0, 0, -3), kl=(0, 0, -3))
    assert told(found, 10, "clip_score") == {} and told(found, 10, "blend: 1 clip_score, 1 aesthetic") == {}
    assert list(told(found, 10, "aesthetic")) == ["clip_score"]


def test_where_people_rate_rewards_of_taste_are_not_asked() -> None:
    found = series(image_statistics=(0, 0, -3), clip_score=(0, 0, -1))
    assert list(told(found, 10, "human")) == ["clip_score"] and set(told(found, 10)) == {"image_statistics", "clip_score"}
    plain = series(flatness=(0, 0, 3), texture=(0, 0, 3))
    for reward in ("human", "alignment", "blend: 1 aesthetic, 1 clip_score"):
        assert not told(plain, 10, reward), "it may be the better for it"
    for reward in ("aesthetic", "jpeg_incompressibility"):
        assert set(told(plain, 10, reward)) == {"flatness", "texture"}


def test_texture_is_what_is_not_flat() -> None:
    """Pictures that grow busy all over are a sign, as those that grow blank are."""
    shares = [(at, i, share + 0.01 * (i % 3) * (at + 1)) for at, share in ((0, 0.6), (6, 0.2)) for i in range(8)]
    rows = [ProbeRow(8 * at + i, at, i, "trained", "a cat", i, "", dict(flatness=share)) for at, i, share in shares]
    found = series_of(rows)
    assert found[6]["texture"][:2] == pytest.approx([0.8, 0.73])
    assert [sign.name for sign in signs_of(found, dict.fromkeys((0, 6), "aesthetic"))[6]] == ["texture"]
    last = alarm_at(found, 6, dict.fromkeys((0, 6), "aesthetic"))
    assert last is not None and last.text.endswith("exture has spread since the start. No watched round so far was without an alarm.")


def test_a_fall_within_its_error_is_no_sign() -> None:
    """Four changes of mean -1.118 and standard error 0.0491 or 0.0514: 22.8 and 21.8 errors; one comparison in ten thousand has 22.2 by chance."""
    for spread, sure in ((0.085, True), (0.089, False)):
        found: Found = {0: {"clip_score": list(BASE)}, 5: {"clip_score": [v - UNIT + s * spread for v, s in zip(BASE, (-1, 1, -1, 1), strict=True)]}}
        assert bool(told(found, 5)) == sure


def test_diversity_is_a_share_of_the_base_s_and_damage_is_beyond_it() -> None:
    """A loss of 60 % is twice the threshold of 30; one of 20 % none. Noise a deviation above the base is once its threshold, below it is none;
    clipping that the base has nowhere is told by hundredths."""
    for share, wanted in ((0.4, 2.0), (0.7, 1.0), (0.8, None)):
        found: Found = {0: {"diversity": [0.25, 0.25, 0.25, None]}, 5: {"diversity": [0.25 * share] * 3 + [None]}}
        assert told(found, 5) == ({"diversity": pytest.approx(wanted)} if wanted else {})
    assert told(series((0, 5), noise=(0, 1)), 5) == {"noise": pytest.approx(1, abs=0.01)} and told(series((0, 5), noise=(0, -2)), 5) == {}
    found = {0: {"clipping": [0.0, 0.0]}, 5: {"clipping": [0.03, 0.03]}}
    assert told(found, 5) == {"clipping": pytest.approx(3)}


def test_the_pictures_that_show_it_are_those_that_changed_most() -> None:
    after = [-5.0, 1.0, -8.0, 3.0]
    found: Found = {0: {"clip_score": list(BASE)}, 5: {"clip_score": after}, 6: {"clip_score": [-5.0, None, -8.0, 3.0]}}
    assert changes(found, "clip_score", 0, 6) == {0: -5, 2: -10, 3: 0}
    found[5]["clip_score"] = [v - 60 for v in (0.5, 0.9, 0.0, 3.0)]
    assert signs_of(found, dict.fromkeys(found, "aesthetic"))[5][0].pictures == (2, 1, 3, 0)


def paid_series(by: float, apart: float) -> Found:
    """Twelve pictures whose texture has moved by so many deviations after round 5, each change that far from their mean."""
    base = [0.1 * i for i in range(12)]
    unit = (sum((v - 0.55) ** 2 for v in base) / 12) ** 0.5
    return {0: {"texture": base}, 5: {"texture": [v + unit * (by + (apart if i % 2 else -apart)) for i, v in enumerate(base)]}}


@pytest.mark.parametrize(
    ("by", "apart", "plain", "paid"),
    [(0.74, 0.1, 0, 1.97), (1.01, 0.1, 1.01, 2.69), (0.76, 0.92, 0, 2.03), (0.76, 0.94, 0, 0), (0.37, 0.1, 0, 0)],
)
def test_what_the_reward_pays_for_is_a_sign_sooner_and_on_less_evidence(by: float, apart: float, plain: float, paid: float) -> None:
    """At three eighths of a deviation instead of one, and beyond what chance makes once in a hundred times: 2.72 standard errors of twelve changes.
    One of ±apart has the error apart / √11: 0.277 and 0.283."""
    found, rewards_at = paid_series(by, apart), dict.fromkeys((0, 5), "jpeg_incompressibility")
    signs = [signs_of(found, rewards_at, known)[5] for known in ({}, {5: frozenset({"texture"})})]
    assert [sum(sign.strength for sign in each) for each in signs] == pytest.approx([plain, paid], abs=0.01)
    assert all(sign.paid for sign in signs[1]) and not any(sign.paid for sign in signs[0])
    last = alarm_at(found, 5, rewards_at, {5: frozenset({"texture"})})
    assert (last is not None) == (paid >= 2) and (last is None or last.text.startswith("Texture, which it pays for, has spread since the start."))


def test_what_covers_pictures_is_paid_for_where_scores_go_with_it(tmp_path: Path) -> None:
    """Seven tenths, the mean over six rounds, three at least, of the reward in force; what people pay for they may want."""
    store = toy_trainer(tmp_path / "run", watched_config(reward="jpeg_incompressibility")).store
    for number, texture in enumerate((0.9, 0.9, 0.5, 0.9, 0.9, 0.9, 0.0), start=1):
        store.add_metrics(number, dict(pays_for_texture=texture, pays_for_noise=0.2, pays_for_clipping=0.9))
    assert [bool(names) for names in paid_for(store, range(1, 8)).values()] == [False, False, True, True, True, True, False]
    assert paid_for(store, [6]) == {6: {"texture"}}
    store.start_round(5)
    store.set_reward(5, "aesthetic")
    assert paid_for(store, [6, 4]) == {6: set(), 4: {"texture"}}
    store.set_reward(5, "human")
    store.add_metrics(8, dict(pays_for_texture=1.0))
    assert paid_for(store, [8]) == {8: set()}


def test_the_shuffled_control_is_paid_by_nothing(tmp_path: Path) -> None:
    for shuffled in (False, True):
        store = toy_trainer(tmp_path / f"{shuffled}", watched_config(reward="jpeg_incompressibility", shuffle_scores=shuffled)).store
        for number in range(1, 6):
            store.add_metrics(number, dict(pays_for_texture=0.9))
        assert bool(paid_for(store, [5])[5]) != shuffled


def test_what_is_paid_for_is_read_once_for_all_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once a round: a metric's points lie all over the table."""
    store, asked = toy_trainer(tmp_path / "run", watched_config(reward="jpeg_incompressibility")).store, list[str]()
    monkeypatch.setattr(store, "points", lambda name: asked.append(name) or [])
    assert len(paid_for(store, range(200))) == 200 and len(asked) == 2


# --- the alarm --------------------------------------------------------------------------------------------------------------------


def test_two_signs_or_one_twice_as_strong_make_an_alarm() -> None:
    def sign(strength: float) -> Sign:
        return Sign("noise", 0, strength, (0,))

    assert not is_on([]) and not is_on([sign(1.9)]) and is_on([sign(2)]) and is_on([sign(1), sign(1)])
    assert alarm(series(clip_score=(0, 0, -0.9)), 10) is None and alarm(series(clip_score=(0, 0, -1.01)), 10) is not None
    assert alarm(series(clip_score=(0, 0, -0.51), image_statistics=(0, 0.2, -0.4)), 10) is not None


def test_all_is_well_while_everything_rises_or_only_wavers() -> None:
    """The reward rises, the others with it, or by chance up and down by a third of a deviation: no alarm in a hundred runs of ten rounds."""
    assert alarm(series(aesthetic=(0, 1, 2), clip_score=(0, 0.3, 0.2), image_statistics=(0, 0.5, 1), noise=(0, 0.5, 0.9)), 10) is None
    for seed in range(100):
        draw = random.Random(seed)
        rounds = range(0, 55, 5)
        found: Found = {
            at: {name: [v + draw.gauss(0, UNIT / 3) for v in (0.0, 1.0, 2.0, 3.0) * 4] for name in ("clip_score", "image_statistics", "noise")}
            for at in rounds
        }
        assert not any(is_on(signs) for signs in signs_of(found, dict.fromkeys(rounds, "aesthetic")).values()), seed


def test_chance_alone_seldom_makes_an_alarm() -> None:
    """Nothing changes, but every picture is drawn anew each time, with a correlation of a half with its twin: in twenty runs of twenty watched rounds
    at most one alarm."""
    alarms = 0
    for seed in range(20):
        draw, rounds = random.Random(seed), range(0, 105, 5)
        found: Found = {
            at: {name: [v + draw.gauss(0, 1.118) for v in (0.0, 1.0, 2.0, 3.0) * 4] for name in ("clip_score", "image_statistics", "noise")}
            for at in rounds
        }
        alarms += any(is_on(signs) for signs in signs_of(found, dict.fromkeys(rounds, "aesthetic")).values())
    assert alarms <= 1


def test_chance_alone_makes_a_sign_in_one_long_run_of_fifty() -> None:
    """As above, in 200 runs of sixty watched rounds: 2.4 signs are expected at most, and seven are three standard deviations more."""
    found, rounds = 0, range(0, 305, 5)
    for seed in range(200):
        draw = random.Random(seed)
        run: Found = {at: {name: [v + draw.gauss(0, 1.118) for v in BASE * 4] for name in ("clip_score", "image_statistics")} for at in rounds}
        found += any(signs_of(run, dict.fromkeys(rounds, "aesthetic")).values())
    assert found <= 7


def test_a_height_that_was_asked_for_is_none_to_fall_from() -> None:
    """Beauty is optimised to three deviations; then another reward takes over, and beauty relaxes to where it still is far above the base."""
    found = series((0, 5, 10, 15), aesthetic=(0, 3, 3, 1.2), clip_score=(0, 0, 0, 1))
    rewards_at = {0: "aesthetic", 5: "aesthetic", 10: "aesthetic", 15: "clip_score"}
    assert signs_of(found, rewards_at)[15] == ()
    assert [sign.name for sign in signs_of(found, dict.fromkeys(rewards_at, "clip_score"))[15]] == ["aesthetic"]


GAMED = dict(
    rounds=(0, 5, 10, 15, 20), aesthetic=(0, 1, 2, 3, 4), clip_score=(0, 0.2, 0.3, -0.4, -1), image_statistics=(0, 0.5, 0.6, 0.2, -0.2),
    diversity=(0, 0, 0, 0, 0),
)  # fmt: skip


def gamed() -> Found:
    found = series(**GAMED)  # type: ignore[arg-type]
    for at, share in zip((0, 5, 10, 15, 20), (1, 1, 0.9, 0.8, 0.5), strict=True):
        found[at]["diversity"] = [0.3 * share, 0.29 * share, 0.3 * share, 0.31 * share]
    return found


def test_the_sentence_says_what_rises_what_falls_since_when_and_which_round_was_best() -> None:
    """The reward rises throughout. At 15 CLIPScore has fallen by 0.7 since 10, one sign of 1.4; at 20 everything has."""
    found = gamed()
    assert alarm(found, 15) is None
    at_20 = alarm(found, 20)
    assert at_20 is not None and (at_20.began, at_20.since, at_20.best, at_20.rises) == (20, 10, 15, True)
    assert at_20.text == "The reward still rises, but diversity and two other rewards have fallen since round 10. Best round so far: 15."
    assert {sign.name for sign in at_20.signs} == {"clip_score", "image_statistics", "diversity"}
    assert [sign.strength for sign in at_20.signs] == sorted((sign.strength for sign in at_20.signs), reverse=True)


@pytest.mark.parametrize(
    ("found", "reward", "text"),
    [
        (series((0, 5), noise=(0, 2.5)), "human", "Noise has spread since the start. No watched round so far was without an alarm."),
        (series((0, 5), clipping=(0, 2.5)), "human", "Clipped colours have spread since the start. No watched round so far was without an alarm."),
        (
            series(aesthetic=(0, 1, 0.5), clip_score=(0, 0.1, -1.2), flatness=(0, -0.1, 1.5)), "aesthetic",
            "The reward has stopped rising, and one other reward has fallen and flat places have spread since round 5. Best round so far: 5.",
        ),
    ],
)  # fmt: skip
def test_the_sentence_in_other_cases(found: Found, reward: str, text: str) -> None:
    last = alarm(found, max(found), reward)
    assert last is not None and last.text == text


def test_the_best_round_has_the_highest_reward_while_no_alarm_is_on() -> None:
    """The reward fell at 15 and no alarm was on: 10 is best. Where people rate, the latest without an alarm; where there is none, none."""
    found = series((0, 5, 10, 15, 20), aesthetic=(0, 1, 2, 1.5, 5), clip_score=(0, 0, 0, 0, -2))
    rewards_at = dict.fromkeys(found, "aesthetic")
    assert best_round(found, rewards_at) == 10 and best_round(found, rewards_at, up_to=5) == 5
    assert best_round(found, dict.fromkeys(found, "human")) == 15 and best_round(found, rewards_at, up_to=0) == 0
    later = alarm(series((0, 5, 10, 15), clip_score=(0, 0, -2, -3)), 15)
    assert later is not None and later.began == 10


def test_rows_become_series() -> None:
    rows = [ProbeRow(i, at, i, "trained", "a", 0, "", {"noise": 10.0 * at + i}) for at in (0, 5) for i in (0, 1)]
    assert series_of(rows) == {0: {"noise": [0, 1]}, 5: {"noise": [50, 51]}}


# --- a run ------------------------------------------------------------------------------------------------------------------------


def ruined(folder: Path, **changes: Any) -> Any:
    """A toy run at a learning rate that makes all pictures white within a few rounds, so that they grow alike."""
    return toy_trainer(folder, watched_config(learning_rate=1.0, watch_every=1, rounds=6, **changes))


def test_a_ruined_run_says_so_once_and_goes_on(tmp_path: Path) -> None:
    trainer = ruined(tmp_path / "run")
    assert trainer.run()
    found = [event.message for event in trainer.store.events() if event.kind == "alarm"]
    assert len(found) == 1 and "fallen" in found[0] and trainer.monitor.alarm(6) is not None
    calm = toy_trainer(tmp_path / "calm", watched_config(learning_rate=0.001, watch_every=1, rounds=4))
    assert calm.run() and not [event for event in calm.store.events() if event.kind == "alarm"]


def test_a_run_stops_or_pauses_at_the_alarm_and_goes_on_when_asked(tmp_path: Path) -> None:
    """Stopped after the round of the alarm, and resumed to the end without stopping again; paused there until somebody resumes. Both end as the
    straight run did."""
    straight = ruined(tmp_path / "straight")
    assert straight.run()
    shift = straight.engine.policy.shift
    stopped = ruined(tmp_path / "stopped", on_alarm="stop")
    assert not stopped.run()
    first = max(stopped.store.checkpoints())
    alarm = stopped.monitor.alarm(first)
    assert alarm is not None and alarm.began == first < 6
    resumed = ruined(tmp_path / "stopped", on_alarm="stop")
    assert resumed.run() and (resumed.engine.policy.shift == shift).all()
    paused, states = ruined(tmp_path / "paused", on_alarm="pause"), list[str]()

    def watcher(state: str, number: int, done: int, total: int) -> None:
        states.append(state)
        if state == "paused":
            assert max(paused.store.checkpoints()) == first
            paused.store.add_request("resume")

    paused.control.watcher = watcher
    assert paused.run() and states.count("paused") == 1 and (paused.engine.policy.shift == shift).all()


def test_a_prompt_s_diversity_is_a_share_of_its_own_base_s() -> None:
    """By hand: cats 0.2 and 0.4 become 0.1 and 0.05, a quarter; dogs, of which one is not known, 0.1 becomes 0.2; one fox alone, and boats that the
    base model makes all alike, have no share."""
    prompts = ("a cat", "a dog", "a cat", "a dog", "a fox", "a boat", "a boat")
    found = {0: (0.2, 0.1, 0.4, None, None, 0.0, 0.0), 6: (0.1, 0.2, 0.05, None, None, 0.1, 0.1)}
    rows = [
        ProbeRow(0, at, i, "trained", prompts[i], i, "", dict(diversity=value, kl=1.0))
        for at, values in found.items()
        for i, value in enumerate(values)
    ]
    told = diversity_by_prompt(rows)
    assert told == {"a cat": [(0, 1.0), (6, pytest.approx(0.25))], "a dog": [(0, 1.0), (6, pytest.approx(2.0))]}
    assert diversity_by_prompt([]) == diversity_by_prompt([row for row in rows if row.round]) == {}
