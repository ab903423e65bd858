"""How a worker listens while it works: progress out, requests in, at safe points."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from ddpo.records import RatingRow, RequestRow
from ddpo.store import RunStore
from rewards.base import RewardError, Sample

POLL_SECONDS = 0.05


KEPT = ("apply", "reward")
"""Requests that outlive the worker they were asked of: an apply names its round, and another reward is for what is scored next."""


class StopRun(Exception):
    """Somebody asked the run to stop now."""


class ChangeReward(Exception):
    """Somebody wants another reward to score what is waiting."""


class Control:
    """The worker's ear and mouth. ``report`` says what is being done; ``listen`` answers requests, waits while paused, and raises to stop."""

    def __init__(
        self,
        store: RunStore,
        watcher: Callable[[str, int, int, int], None] | None = None,
        also: Callable[[], None] = lambda: None,
        waits: bool = True,
        since: float | None = None,
    ) -> None:
        """
        Args:
            watcher: is told all that is reported.
            also: is asked at every safe point as well; it may raise.
            waits: whether a reward that fails waits for people, or ends the run.
            since: when this worker began, in seconds since 1970: what was asked before was asked of one that is gone. By default now.
        """
        self.store, self.watcher, self.also, self.waits = store, watcher, also, waits
        self.stop_after_round = False
        self._paused = self._retry = False
        self._failed = 0
        self._applied: set[int] = set()
        self._now: tuple[str, int, int, int] = ("loading", 0, 0, 0)
        for request in store.pending_requests():
            if request.kind not in KEPT and (since is None or request.created_at < since):  # asked of a worker that is gone
                store.add_event("ignored", f"{request.kind}: asked before this worker started", request.id)

    def report(self, state: str, number: int, done: int = 0, total: int = 0) -> None:
        """Say what is being done, then listen: every report is a safe point.

        Raises:
            StopRun: somebody asked to stop.
        """
        self._now = (state, number, done, total)
        self._tell(*self._now)
        self.listen()

    def listen(self) -> None:
        """Answer what was asked; while paused, wait here."""
        self._answer()
        if not self._paused:
            return
        _, number, done, total = self._now
        self._tell("paused", number, done, total)
        while self._paused:
            time.sleep(POLL_SECONDS)
            self._answer()
        self._tell(*self._now)

    def pause(self) -> None:
        """Pause at the next safe point, as when somebody asks for it."""
        self._paused = True

    def stop_soon(self) -> str:
        """Stop after this round, as when somebody asks for it; says so."""
        self.stop_after_round = True
        return "will stop after this round"

    def wait_until_applied(self, number: int, images: int) -> None:
        """Wait until people apply their ratings of a round, and fix which ratings count.

        Raises:
            ChangeReward: they want another reward to score it instead.
        """
        round_row = self.store.round(number)
        if round_row and round_row.closed_at is not None:
            return
        self.report("awaiting", number, 0, images)
        while number not in self._applied:
            time.sleep(POLL_SECONDS)
            self.listen()
            if number not in self._applied and self._wishes(number):
                raise ChangeReward

    def reward_for(self, number: int) -> str:
        """What scores a round: what people asked for since, or else what is in force. From now on it is written down."""
        row, wanted = self.store.round(number), self._wishes(number)
        reward = str(wanted[-1].payload["reward"]) if wanted else self.store.reward_at(number)
        if row is None or row.reward != reward:
            self.store.set_reward(number, reward)
        for request in wanted:
            last = request is wanted[-1]
            self.store.add_event("reward" if last else "answer", f"From round {number} on, scored by {reward}." if last else "overtaken", request.id)
        return reward

    def _wishes(self, number: int) -> list[RequestRow]:
        """The changes of reward that are for a round, oldest first. A round whose ratings people have applied is scored by these, and what is asked
        waits for the next one, unless a reward has failed beside them: then what was asked after they applied is for this one."""
        if any(request.kind == "apply" and request.payload.get("round") == number for request in self.store.pending_requests()):
            return []
        row = self.store.round(number)
        since = row.closed_at if row and row.closed_at is not None else 0.0
        if since and self._failed != number:
            return []
        return [request for request in self.store.reward_requests() if request.created_at > since]

    def wait_for_reward(self, number: int, error: RewardError) -> None:
        """A reward has failed: say so, and wait until somebody asks to try again, or for another reward.

        Raises:
            RewardError: the same one, where nobody is waited for.
        """
        self._failed = number
        if not self.waits and not self._wishes(number):
            raise error
        self.store.add_event("reward_failed", str(error))
        self._retry = False
        self.report("reward_failed", number)
        while not self._retry and not self._wishes(number):
            time.sleep(POLL_SECONDS)
            self.listen()

    def collect(self, number: int) -> Callable[[Sequence[Sample]], Mapping[int, Sequence[RatingRow]]]:
        """What :class:`rewards.human.Human` asks: wait for people, then their ratings of this round by sample id."""

        def collect(samples: Sequence[Sample]) -> Mapping[int, Sequence[RatingRow]]:
            self.wait_until_applied(number, len(self.store.board(number)))
            return self.store.latest_ratings(number, up_to=self.store.close_round(number))

        return collect

    def _tell(self, state: str, number: int, done: int, total: int) -> None:
        self.store.set_progress(state, number, done, total)
        if self.watcher:
            self.watcher(state, number, done, total)

    def _answer(self) -> None:
        self.also()
        if not (self.store.folder / "config.json").exists():
            raise StopRun  # the run was deleted under the worker
        for request in self.store.pending_requests():
            if request.kind == "apply" and self._is_early(request.payload.get("round")):
                continue  # kept until its turn
            if request.kind == "reward" and not self.store.refusal(request.payload.get("reward")):
                continue  # kept until images are scored next
            self.store.add_event("answer", self._act(request), request.id)

    def _is_early(self, number: object) -> bool:
        """Whether somebody applies the ratings of a round that does not wait for them yet, but whose images are being made or there already."""
        state, now, _, _ = self._now
        return (number == now and state != "awaiting") or (isinstance(number, int) and number > now and self.store.round(number) is not None)

    def _act(self, request: RequestRow) -> str:
        if request.kind == "stop":
            self.store.add_event("answer", "stopping", request.id)
            raise StopRun
        if request.kind == "pause":
            self._paused = True
            return "paused"
        if request.kind == "resume":
            self._paused = False
            return "resumed"
        if request.kind == "stop_after_round":
            return self.stop_soon()
        if request.kind == "retry":
            self._retry = True
            return "trying again" if self._now[0] == "reward_failed" else "nothing to try again"
        if request.kind == "reward":
            return self.store.refusal(request.payload.get("reward"))
        number = request.payload.get("round")
        if number != self._now[1] or self._now[0] != "awaiting":
            return f"round {number} is not waiting for ratings"
        self.store.close_round(number)  # before the answer, so that nobody is asked to apply twice
        self._applied.add(number)
        return f"ratings of round {number} applied"
