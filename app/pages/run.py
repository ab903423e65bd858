"""The Run page's upper half: what the selected run does, and the buttons that steer it. Pure reads of the store, and requests to it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gradio as gr

import rewards
from app import words
from app.board import board_round, config_of, is_applying, is_turn, looked_at, status_seen
from app.launch import Launcher, LaunchError, kill
from app.raters import raters_value
from app.widgets.kit import widget
from ddpo.config import RunConfig
from ddpo.records import MARKS, RoundRow, SampleRow, Status
from ddpo.result import rolled_back
from ddpo.source import located_reward
from ddpo.store import RunStore

PATIENCE_SECONDS = 10.0
"""How long a worker may leave Stop unanswered before Force quit is offered."""

EVENTS_SHOWN = 60
STRIP_IMAGES = 16
COUNTS = dict(count="in", halve="half", leave_out="out")
"""How much a rater can count, by what is asked for."""
PHASES = ("Make images", "Score", "Learn", "Save")
PHASE_WORDS = dict(zip(MARKS, ("Making images", "Scoring", "Learning", "Saving"), strict=True))


def build() -> gr.HTML:
    """The run's panel; its ``act`` events say which button was pressed."""
    return widget("panel")


# --- what is shown --------------------------------------------------------------------------------------------------------------


def status_of(store: RunStore, launcher: Launcher) -> Status:
    """The run's status; a worker that was started an instant ago counts as loading."""
    status = store.status()
    if not status.alive and launcher.starting(store.folder):
        return Status("loading", status.round, pending=status.pending)
    return status_seen(store, status)


def bar_value(store: RunStore, launcher: Launcher) -> dict[str, Any]:
    """What the strip above all pages says of a run."""
    status, config = status_of(store, launcher), config_of(store)
    headline, tone = headline_of(store, status, launcher)
    done, total = progress_of(store, status)
    return dict(
        alive=status.alive, state=status.state, headline=headline, tone=tone, round=min(status.round, config.rounds), rounds=config.rounds,
        done=done, total=total, left=status.seconds_left, changed_at=status.changed_at, unit=unit_of(status),
        your_turn=status.state == "awaiting" or _is_turn(store, status),
    )  # fmt: skip


def _is_turn(store: RunStore, status: Status) -> bool:
    """Whether there is a board for people, whose ratings they have not applied yet."""
    row = board_round(store)
    return row is not None and is_turn(store, status, row) and not is_applying(store, row.number)


def panel_value(store: RunStore, launcher: Launcher) -> dict[str, Any]:
    """Everything the Run page says of a run."""
    status, config, rounds = status_of(store, launcher), config_of(store), store.rounds()
    reward = store.reward_at(status.round)
    wanted = store.reward_wanted or reward
    latest = next((row for row in reversed(rounds) if row.number == status.round), rounds[-1] if rounds else None)
    return bar_value(store, launcher) | dict(
        kind="run", run=store.name,
        phase=phase_of(latest, status), phases=phases_of(reward),
        rounds_done=sum(row.checkpointed_at is not None for row in rounds),
        run_left=run_left(rounds, config.rounds, reward, status),
        stops_soon=status.alive and stops_soon(store),
        failure=failure_of(store, status, launcher),
        controls=controls(status, stop_overdue(store, status)),
        time=time_split(rounds),
        raters=raters_value(store), facts=facts(config, reward, store.parent, rolled_back(store)), images=strip(store, rounds),
        events=history(store),
        log=store.log_tail(40),
        rewards=choices(rewards.parts(wanted)), weights=rewards.parts(wanted), blend=wanted.startswith(rewards.BLEND),
        wanted=words.reward(wanted) if wanted != reward else "",
    )  # fmt: skip


def history(store: RunStore) -> list[dict[str, Any]]:
    """What the worker has said and what people have settled, newest first."""
    found: list[dict[str, Any]] = [dict(id=f"e{e.id}", at=e.created_at, kind=e.kind, text=e.message) for e in store.events()]
    found += [dict(id=f"c{d.id}", at=d.created_at, kind="decision", text=words.decision(d.name, d.value)) for d in store.decisions()]
    return sorted(found, key=lambda each: each["at"], reverse=True)[:EVENTS_SHOWN]


def headline_of(store: RunStore, status: Status, launcher: Launcher) -> tuple[str, str]:
    if status.state == "new" and store.log_tail(1):
        return "Did not start", "bad"
    if status.state == "scoring" and store.reward_at(status.round) == "human":
        return "Taking in your ratings", "busy"
    return words.STATES.get(status.state, (status.state.capitalize(), "idle"))


def progress_of(store: RunStore, status: Status) -> tuple[int, int]:
    """How much of the phase is done; while people rate, how many images of the board are rated."""
    if status.state == "awaiting":
        board = store.board(status.round)
        return looked_at(board, store.latest_ratings(status.round)), len(board) or status.total or config_of(store).images_per_round
    if not status.alive:
        return 0, 0
    return status.done, status.total


def unit_of(status: Status) -> str:
    return {"awaiting": "rated", "updating": "steps learned from"}.get(status.state, "images")


def phase_of(row: RoundRow | None, status: Status) -> int | None:
    """The index of the round's present phase."""
    if row is None or row.next_mark is None or status.state in ("finished", "measuring"):
        return None
    return MARKS.index(row.next_mark)


def phases_of(reward: str) -> list[str]:
    return [PHASES[0], "Rate" if reward == "human" else PHASES[1], *PHASES[2:]]


def choices(present: Iterable[str]) -> list[dict[str, str]]:
    """What can score, for those who choose; a blend is made of these. What scores at present is among them."""
    names = dict.fromkeys(("human", *rewards.automatic(), *present))
    return [dict(name=name, label=words.reward(name), asks=rewards.card(name).asks) for name in names]


def run_left(rounds: list[RoundRow], wanted: int, reward: str, status: Status) -> float | None:
    """Seconds until the last round is done, from the recent rounds; None while people set the pace."""
    took = [row.checkpointed_at - row.started_at for row in rounds if row.checkpointed_at is not None][-5:]
    left = wanted - sum(row.checkpointed_at is not None for row in rounds)
    if "human" in rewards.parts(reward) or not took or not left or not status.alive or status.state in ("paused", "reward_failed"):
        return None
    return sorted(took)[len(took) // 2] * left


def time_split(rounds: list[RoundRow]) -> list[dict[str, Any]]:
    """Seconds that each phase took, over all rounds; of what was made ahead, while people rated, those since the round before was done."""
    totals, before = dict.fromkeys(MARKS, 0.0), 0.0
    for row in rounds:
        before = max(before, row.started_at)
        for mark in MARKS:
            if (at := getattr(row, f"{mark}_at")) is not None:
                totals[mark] += max(0.0, at - before)
                before = max(before, at)
    return [dict(label=PHASE_WORDS[mark], seconds=round(seconds, 2)) for mark, seconds in totals.items() if seconds > 0]


def stops_soon(store: RunStore) -> bool:
    """Has this worker been asked to stop when its round is done?"""
    last_start = max((event.id for event in store.events() if event.kind == "started"), default=0)
    return any(event.message.startswith("will stop after") for event in store.events(after=last_start))


def stop_overdue(store: RunStore, status: Status) -> bool:
    return status.alive and any(r.kind == "stop" and time.time() - r.created_at > PATIENCE_SECONDS for r in store.pending_requests())


def failure_of(store: RunStore, status: Status, launcher: Launcher) -> dict[str, str] | None:
    """What went wrong, what to do, and what the worker said last."""
    if status.state == "reward_failed":
        kept = "Scores that are made are kept, and no image is made again."
        return dict(title="The reward failed", text=f"{status.message} {kept} Retry, or change the reward.", log="")
    if status.state == "failed":
        return dict(title="The run failed", text=status.message or "The worker ended with an error.", log=store.log_tail(8))
    if status.state == "interrupted":
        text = "The worker ended without a word, as when it is killed or the computer is switched off. All that was finished is kept: press Resume."
        return dict(title="The run was interrupted", text=text, log=store.log_tail(8))
    if status.state == "new" and (log := store.log_tail(8)):
        return dict(title="The worker did not start", text="It ended before it began to work. Its last words are below; then press Start.", log=log)
    return None


def controls(status: Status, overdue: bool) -> list[dict[str, Any]]:
    """The buttons, and which of them can be pressed now."""
    pending = set(status.pending) if status.alive else set()
    live = status.alive or status.state == "loading"

    def button(kind: str, label: str, enabled: bool, **more: Any) -> dict[str, Any]:
        return dict(kind=kind, label=label, enabled=enabled and kind not in pending, pending=kind in pending, **more)

    change = dict(kind="reward", label="Change reward", enabled=True, pending=False)
    if not live:
        label = "Start" if status.state == "new" else "Resume"
        return [] if status.state == "finished" else [button("launch", label, True, primary=True), change]
    calm = not pending & {"stop", "pause", "resume"} and status.alive
    pause = button("resume", "Resume", calm, primary=True) if status.state == "paused" else button("pause", "Pause", calm)
    stop = button("stop", "Stop now", "stop" not in pending and status.alive)
    if status.state == "reward_failed":
        found = [button("retry", "Retry", calm, primary=True), change, stop]
    else:
        found = [pause, change, button("stop_after_round", "Stop after this round", calm), stop]
    return [*found, button("kill", "Force quit", True, danger=True)] if overdue else found


def facts(config: RunConfig, reward: str, parent: tuple[str, int] | None = None, result: int | None = None) -> list[list[str]]:
    """The settings worth seeing at a glance. A file of somebody's own that is run is named in full."""
    files = [name for name in rewards.parts(reward) if rewards.FUNCTION.fullmatch(name)]
    warm = f", reached after {words.count(config.warmup_rounds, 'round')}" if config.warmup_rounds else ""
    shown = [
        ["Scored by", words.reward(reward)],
        *(["Runs code of", name] for name in files),
        ["Model", config.model],
        *([["Goes on from", f"{parent[0]}, round {parent[1]}"]] if parent else []),
        *([["Rolled back to", f"round {result}"]] if result else []),
        *([["Learns from ratings of", ", ".join(Path(name).name for name in config.ratings_sources)]] if config.ratings_from else []),
        ["Prompts", f"{words.count(len(config.prompts), 'prompt')}{f', {len(config.held_out_prompts)} held out' if config.held_out_prompts else ''}"],
        ["Each round", f"{words.count(config.images_per_round, 'image')}, {config.images_per_prompt} per prompt"],
        ["Learning rate", f"{config.learning_rate:g}{warm}"],
        ["Seed", str(config.seed)],
    ]
    return [*shown, ["Control", "scores are shuffled"]] if config.shuffle_scores else shown


def strip(store: RunStore, rounds: list[RoundRow], limit: int = STRIP_IMAGES) -> list[dict[str, Any]]:
    """The latest images, as links."""
    for row in reversed(rounds):
        if samples := store.samples(row.number):
            return [dict(url=image_url(store, sample), prompt=sample.prompt[:300]) for sample in samples[-limit:]]
    return []


def image_url(store: RunStore, sample: SampleRow) -> str:
    """An image's address; with its hash, so that a browser may keep it for good."""
    return f"/studio/runs/{store.name}/image/{sample.id}?v={Path(sample.image).stem}"


# --- what is done ---------------------------------------------------------------------------------------------------------------


def steer(store: RunStore, launcher: Launcher, kind: str, reward: str = "", rater: str = "") -> str | None:
    """Do what a button says; returns a sentence when there is something to add.

    Args:
        reward: what shall score from now on, where ``kind`` is reward.
        rater: who counts as others do from now on, where ``kind`` is count, half beside others, where it is halve, or not, where it is leave_out.

    Raises:
        LaunchError: the process could not be started or ended.
        RewardError: there is no such reward.
    """
    status = store.status()
    if kind == "reward":
        store.add_request("reward", reward=located_reward(reward))
        return None if status.alive else "It scores once you press Resume."
    if kind in COUNTS:
        if all(rater != each["name"] for each in raters_value(store)["raters"]):
            raise LaunchError(f"Nobody called {rater[:80]!r} rated this run.")
        store.choose(f"rater {rater}", COUNTS[kind])
        return None
    if kind == "launch":
        launcher.start(store.folder)
    elif kind == "kill":
        if not kill(store):
            return "The worker has ended by itself."
    elif kind not in ("pause", "resume", "stop", "stop_after_round", "retry"):
        raise LaunchError(f"There is no button {kind!r}.")
    elif not status.alive:
        return "The worker has ended already."
    elif kind not in status.pending:
        store.add_request(kind)
    return None
