"""What happened in a run, for its charts: each alarm once, where it began; the best round; changes of reward; where the run came from."""

from __future__ import annotations

from pathlib import Path

from ddpo.milestones import milestones
from tests.toys import add_watched, filled_run


def told(store, up_to: int | None = None) -> list[tuple[int, str, str]]:
    return [(one.round, one.kind, one.text) for one in milestones(store, str.upper, up_to)]


def test_alarms_the_best_round_and_changes_of_reward_stand_at_their_rounds(tmp_path: Path) -> None:
    """Ruined from 10 to 15, well at 20, ruined again at 25: two alarms. The best round is the latest without one, since nothing says what the reward
    made of the pictures; up to 10 it is 5."""
    store = filled_run(tmp_path / "a", rounds=25, reward="jpeg_compressibility")
    for number, fallen in ((0, 0.0), (5, 0.0), (10, 1.5), (15, 2.0), (20, 0.0), (25, 2.0)):
        add_watched(store, number, fallen)
    first = "Alarm: Diversity and one other reward have fallen since round 5. Best round so far: 5."
    found = told(store)
    assert [(number, kind) for number, kind, _ in found] == [(10, "alarm"), (20, "best"), (25, "alarm")]
    assert found[0][2] == first and found[1][2] == "Best round so far" and found[2][2].endswith("Best round so far: 20.")
    assert told(store, 10) == [(5, "best", "Best round so far"), (10, "alarm", first)]
    store.choose("fork b", "15 kl_weight 0.01")
    assert (15, "fork", "b goes on from here") in told(store) and (15, "fork", "b goes on from here") not in told(store, 10)
    store.choose("fork c", "15 kl_weight 0.3")
    store.choose("fork d", "20")
    (both,) = [one for one in milestones(store, str.upper) if one.kind == "fork" and one.round == 15]
    assert both.label == "2 runs" and both.text == "b, c go on from here" and (20, "fork", "d goes on from here") in told(store)
    store.choose("result", "5")
    assert (5, "best", "Rolled back to this round: it is taken away") in told(store) and (20, "best") not in [m[:2] for m in told(store)]
    store.set_reward(12, "aesthetic")
    assert (12, "change", "From round 12: AESTHETIC") in told(store) and len(told(store, 11)) == 2


def test_where_people_rate_and_all_is_well_no_round_is_called_best(tmp_path: Path) -> None:
    store = filled_run(tmp_path / "a", rounds=10)
    for number in (0, 5, 10):
        add_watched(store, number)
    assert told(store) == []
    assert told(filled_run(tmp_path / "unwatched", rounds=3, reward="jpeg_compressibility")) == []
    add_watched(store, 15, 2.0)
    assert [(number, kind) for number, kind, _ in told(store)] == [(10, "best"), (15, "alarm")]
