"""The run folder: where the app and the worker meet. With its schema (:mod:`ddpo.records`) the only SQL of the project. Imports no torch.

::

    runs/<name>/
      config.json            written once before launch
      init_lora.safetensors  a copy of the LoRA that the run starts from, if it does
      ratings/               a copy of the ratings from elsewhere that it learns from as well, if it does (ddpo/earlier.py)
      parent/                of a run that goes on from another one's round: a copy of that checkpoint, and parent.json, which names it
      run.db                 SQLite: WAL, synchronous=FULL, foreign keys on
      samples/0003/<sha>.png worker
      rounds/0003/           trajectory tensors, kept until the round's checkpoint exists
      checkpoints/0003/      adapter, optimiser state, header
      generalisation/, strengths/, blind/ what was measured of how far a round reaches and how strong it should be, and what blind tests said (JSON)
      <tracker>.json          as what a tracker knows the run, and what it was sent; tensorboard/ has TensorBoard's events
      taste.json             worker: what its model of taste believes, where it has one (ddpo/beliefs.py)
      worker.log, worker.lock

One table, one writer. The worker writes round, sample, score, metric, probe, checkpoint, event, progress; the app writes rating,
request and choice. A row is a promise: what it names is on disk before it. Ratings are events that are never changed: the latest of a rater on a
sample, or on a pair of samples, counts.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import rewards
from ddpo.config import ConfigError, RunConfig
from ddpo.files import copy_file, sync, sync_tree, write_file
from ddpo.lock import holder
from ddpo.records import (
    ENDED_STATES,
    FORK,
    MARKS,
    MIGRATIONS,
    REQUESTS,
    ROUND_COLUMNS,
    SAMPLE_COLUMNS,
    ChoiceRow,
    EventRow,
    ProbeRow,
    RatingCounts,
    RatingRow,
    RequestRow,
    RoundRow,
    SampleRow,
    Status,
    is_late,
    latest,
)
from ddpo.source import init_lora_file
from rewards.base import RewardError, Score

PATIENCE = 30.0
"""Seconds to wait for other processes' turns with a database."""

INIT_LORA = "init_lora.safetensors"
RATINGS = "ratings"
LATE = """FROM rating CROSS JOIN sample ON sample.id = rating.sample JOIN round ON round.number = sample.round
    WHERE rating.board = round.number AND rating.id > round.closed_rating"""
"""Late ratings (:func:`ddpo.records.is_late`), few of many: each rating's image is looked up, not each image's ratings."""
PARENT = "parent"
"""The folder of what a run goes on from, where that is another run's round."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
"""What a run may be called: the name is a folder's."""


class StoreError(RuntimeError):
    """The run folder cannot be used; the message says why and what to do."""


class NoRun(StoreError):
    """There is no such run, so that trying again would not help."""


class RatingRefused(StoreError):
    """A rating is not taken; the message says why."""


class RunStore:
    """One run's folder and database. One instance serves one process; threads take turns."""

    def __init__(self, folder: Path) -> None:
        """Open an existing run.

        Raises:
            NoRun: the folder is no run.
            StoreError: it cannot be opened, or was made by a newer program.
        """
        self.folder = Path(folder)
        if not (self.folder / "config.json").exists():
            raise NoRun(f"{self.folder} is no run folder: it has no config.json.")
        try:
            self._db = sqlite3.connect(self.folder / "run.db", timeout=PATIENCE, isolation_level=None, check_same_thread=False)
            self._use_wal()
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA foreign_keys = ON")
        except sqlite3.Error as error:
            raise StoreError(f"The database of {self.folder} cannot be opened: {error}. Is the disk full or the folder read-only?") from error
        self._lock = threading.RLock()
        self._migrate()

    @classmethod
    def create(
        cls, folder: Path, config: RunConfig, parent: tuple[RunStore, int] | None = None, fill: Callable[[Path], None] | None = None
    ) -> RunStore:
        """Make a run folder; its configuration is never written again.

        Args:
            parent: the run and the round whose state it goes on from, if it does.
            fill: writes into the folder what else belongs to the run, before it is one.

        Raises:
            StoreError: a run of that name exists, the name cannot be a folder's, or the disk refuses.
            ConfigError: the LoRA that it starts from cannot be used.
        """
        folder = Path(folder)
        if not NAME.fullmatch(folder.name):
            raise StoreError(
                f"{folder.name!r} cannot name a run. Use letters, digits, dots, dashes and underscores, 80 at most; a letter or digit comes first."
            )
        if (folder / "config.json").exists():
            raise StoreError(f"A run already exists in {folder}. Choose another name, or resume that run.")
        if (folder / "run.db").exists():
            raise StoreError(f"{folder} holds what is left of another run, whose config.json is gone. Choose another name, or delete that folder.")
        start, new = init_lora_file(config), False
        try:
            if not folder.is_dir():
                folder.mkdir(parents=True)
                new = True
            if start is not None:
                copy_file(start, folder / INIT_LORA)  # a run is its folder, whatever becomes of the file elsewhere
            _forget_state(folder / PARENT)  # of a fork that could not be made
            if parent is not None:
                _copy_state(*parent, folder / PARENT)
            if fill is not None:
                fill(folder)
            partial = folder / "config.json.partial"
            config.save(partial)
            sync(partial)
            partial.rename(folder / "config.json")
            sync(folder)
        except (OSError, StoreError) as error:
            if new:  # nothing of it was there before
                shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, StoreError):
                raise
            raise StoreError(
                f"The run folder {folder} cannot be written: {error}. Choose a folder on a disk with room, and with write permission."
            ) from error
        return cls(folder)

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @property
    def config(self) -> RunConfig:
        return RunConfig.load(self.folder / "config.json")

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def parent(self) -> tuple[str, int] | None:
        """The run and the round that this one goes on from, if it does."""
        try:
            found = json.loads((self.folder / PARENT / "parent.json").read_text(encoding="utf-8"))
            return str(found["run"]), int(found["round"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    # --- plumbing ---------------------------------------------------------------------------------------------------------------

    def _use_wal(self) -> None:
        """Let readers and a writer go on beside each other (write-ahead logging).

        SQLite does not wait by itself here: of two processes that change a new file's mode at once, one is told at once that it is locked.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
            time.sleep(0.01)

    def _migrate(self) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version > len(MIGRATIONS):
            raise StoreError(f"{self.folder} was made by a newer version of this program. Update the program to open it.")
        if version == len(MIGRATIONS):
            return
        with self._transaction():
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            for number, step in enumerate(MIGRATIONS[version:], start=version + 1):
                for statement in step.split(";"):
                    if re.sub(r"--[^\n]*", "", statement).strip():
                        self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {number}")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                if self._db.in_transaction:  # on a full disk SQLite has rolled back by itself
                    self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._db.execute(sql, values).fetchall()

    @property
    def revision(self) -> str:
        """Changes whenever the database does, for readers that wish to skip what they have seen."""
        with self._lock:
            return f"{self._db.execute('PRAGMA data_version').fetchone()[0]}.{self._db.total_changes}"

    @property
    def said(self) -> tuple[int, ...]:
        """Changes whenever somebody rates, settles something, or closes a round."""
        sql = """SELECT (SELECT coalesce(max(id), 0) FROM rating), (SELECT coalesce(max(id), 0) FROM choice),
            (SELECT count(*) FROM round WHERE closed_at IS NOT NULL)"""
        return tuple(self._rows(sql)[0])

    # --- worker: rounds and samples ---------------------------------------------------------------------------------------------

    def start_round(self, number: int) -> RoundRow:
        """The round, begun now if it was not."""
        with self._transaction():
            self._db.execute("INSERT OR IGNORE INTO round (number, started_at) VALUES (?, ?)", (number, time.time()))
        return self._rounds("WHERE number = ?", number)[0]

    def mark(self, number: int, mark: str) -> None:
        """Say that a phase of a round is done and on disk."""
        if mark not in MARKS:
            raise ValueError(f"{mark!r} is none of {MARKS}")
        with self._transaction():
            self._db.execute(f"UPDATE round SET {mark}_at = ? WHERE number = ? AND {mark}_at IS NULL", (time.time(), number))

    def add_samples(
        self,
        number: int,
        positions: Sequence[int],
        prompts: Sequence[str],
        seeds: Sequence[int],
        paths: Sequence[str],
        shown: Container[int] | None = None,
        updates: int = 0,
    ) -> None:
        """Promise images that :func:`write_images` has written. A sample that exists already stays as it is.

        Args:
            shown: the positions that people are asked about; by default all.
            updates: how many rounds the policy that made them had learned from.
        """
        with self._transaction():
            self._db.executemany(
                "INSERT OR IGNORE INTO sample (round, position, prompt, seed, image, created_at, shown, updates) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (number, position, *row, time.time(), int(shown is None or position in shown), updates)
                    for position, *row in zip(positions, prompts, seeds, paths, strict=True)
                ],
            )

    def show(self, number: int, samples: Sequence[int]) -> None:
        """Choose the samples of a round that people are asked about, by id. A board that somebody has begun to rate stays."""
        with self._transaction():
            if self._rows("SELECT 1 FROM rating JOIN sample ON sample.id = rating.sample WHERE round = ? LIMIT 1", number):
                return
            self._db.execute("UPDATE sample SET shown = 0 WHERE round = ?", (number,))
            self._db.executemany("UPDATE sample SET shown = 1 WHERE round = ? AND id = ?", [(number, id) for id in samples])

    def add_scores(self, reward: str, scores: Mapping[int, Score]) -> None:
        """Scores by sample id; a value that is no number is kept as none."""
        with self._transaction():
            self._db.executemany(
                "INSERT OR REPLACE INTO score (sample, reward, value, explanation) VALUES (?, ?, ?, ?)",
                [(sample, reward, finite(s.value), json.dumps(s.explanation)) for sample, s in scores.items()],
            )

    def add_metrics(self, number: int, metrics: Mapping[str, float]) -> None:
        with self._transaction():
            self._db.executemany(
                "INSERT OR REPLACE INTO metric (round, name, value) VALUES (?, ?, ?)", [(number, k, finite(v)) for k, v in metrics.items()]
            )

    def add_probes(
        self,
        number: int,
        kinds: Sequence[str],
        prompts: Sequence[str],
        seeds: Sequence[int],
        paths: Sequence[str],
        found: Sequence[Mapping[str, Any]],
    ) -> None:
        """The watched pictures after a round, by position, which :func:`write_images` has written; what is there of that round is replaced."""
        rows = enumerate(zip(kinds, prompts, seeds, paths, found, strict=True))
        with self._transaction():
            self._db.executemany(
                "INSERT OR REPLACE INTO probe (round, position, kind, prompt, seed, image, found, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (number, position, kind, prompt, seed, path, json.dumps({name: finite(value) for name, value in each.items()}), time.time())
                    for position, (kind, prompt, seed, path, each) in rows
                ],
            )

    def add_checkpoint(self, number: int, path: Path) -> None:
        with self._transaction():
            row = (number, path.relative_to(self.folder).as_posix(), time.time())
            self._db.execute("INSERT OR REPLACE INTO checkpoint (round, path, created_at) VALUES (?, ?, ?)", row)

    def close_round(self, number: int) -> int:
        """People have applied their ratings: fix which ones count. Returns the id of the last that does; a second call changes nothing."""
        with self._transaction():
            last = self._db.execute("SELECT coalesce(max(id), 0) FROM rating").fetchone()[0]
            row = (time.time(), last, number)
            self._db.execute("UPDATE round SET closed_at = ?, closed_rating = ? WHERE number = ? AND closed_at IS NULL", row)
            return int(self._db.execute("SELECT closed_rating FROM round WHERE number = ?", (number,)).fetchone()[0])

    def set_reward(self, number: int, reward: str) -> None:
        """Say what scores a round."""
        with self._transaction():
            self._db.execute("UPDATE round SET reward = ? WHERE number = ?", (reward, number))

    def set_progress(self, state: str, number: int, done: int = 0, total: int = 0) -> None:
        """What the worker is doing now; the phase's clock starts over when ``state`` or ``number`` changes."""
        now = time.time()
        with self._transaction():
            self._db.execute(
                """INSERT INTO progress (only, state, round, done, total, started_at, changed_at) VALUES (0, ?, ?, ?, ?, ?, ?)
                ON CONFLICT (only) DO UPDATE SET
                    started_at = CASE WHEN state = excluded.state AND round = excluded.round THEN started_at ELSE excluded.started_at END,
                    state = excluded.state, round = excluded.round, done = excluded.done, total = excluded.total, changed_at = excluded.changed_at""",
                (state, number, done, total, now, now),
            )

    def add_event(self, kind: str, message: str, request: int | None = None) -> None:
        """A line of the run's history, or the answer to a request."""
        with self._transaction():
            self._db.execute("INSERT INTO event (created_at, kind, message, request) VALUES (?, ?, ?, ?)", (time.time(), kind, message, request))

    # --- app: ratings, requests and choices -------------------------------------------------------------------------------------

    def add_rating(
        self,
        client_id: str,
        sample: int,
        rater: str,
        kind: str,
        value: float | None,
        shown_at: float | None = None,
        answered_at: float | None = None,
        other: int | None = None,
        refusal: Callable[[], str] = str,
        board: int | None = None,
    ) -> bool:
        """Append a rating event; on disk when this returns. A repeat of a ``client_id`` changes nothing and returns False, whatever came since.

        Args:
            other: the second image, where the rating is of a pair.
            board: the round on whose board the image was; another one's where it was shown once more.
            refusal: says why it is not taken, if it is not. It is asked while nobody else can write, so that no round is closed in between.

        Raises:
            RatingRefused: it is not taken.
            StoreError: there is no such sample.
        """
        try:
            with self._transaction():
                if self._rows("SELECT 1 FROM rating WHERE client_id = ?", client_id):
                    return False
                if why := refusal():
                    raise RatingRefused(why)
                self._db.execute(
                    """INSERT INTO rating (client_id, sample, rater, kind, value, shown_at, answered_at, created_at, other, board)
                    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)""",
                    (client_id, sample, rater, kind, value, shown_at, answered_at, time.time(), other, board),
                )
                return True
        except (sqlite3.IntegrityError, OverflowError) as error:
            also = "" if other is None else f" or {other}"
            raise StoreError(f"There is no image {sample}{also} in run {self.name}.") from error

    def add_request(self, kind: str, **payload: Any) -> int:
        """Ask the worker for something; it answers with an event."""
        if kind not in REQUESTS:
            raise ValueError(f"{kind!r} is none of {REQUESTS}")
        with self._transaction():
            cursor = self._db.execute("INSERT INTO request (created_at, kind, payload) VALUES (?, ?, ?)", (time.time(), kind, json.dumps(payload)))
            return int(cursor.lastrowid or 0)

    def choose(self, name: str, value: str) -> None:
        """Settle something for the run from now on, or write down that somebody did: ``rating``, the mode in which people rate; ``rater NAME``,
        whether a rater counts (``in``, ``half`` beside others, or ``out``); ``alarm``, the round up to which people were told what goes wrong;
        ``result``, the round that the run is rolled back to, or nothing; ``fork NAME``, the round that another run goes on from, and the settings
        that it changes.

        Raises:
            ConfigError: the run cannot be rated in that mode.
        """
        if name == "rating":
            self.config.with_changes(rating=value)
        with self._transaction():
            self._db.execute("INSERT INTO choice (created_at, name, value) VALUES (?, ?, ?)", (time.time(), name, value))

    # --- readers ----------------------------------------------------------------------------------------------------------------

    def choices(self) -> dict[str, str]:
        """What people settled, by name: the latest of each."""
        return {str(name): str(value) for name, value in self._rows("SELECT name, value FROM choice ORDER BY id")}

    def decisions(self) -> list[ChoiceRow]:
        """All that people settled, oldest first."""
        return [ChoiceRow(*row) for row in self._rows("SELECT id, created_at, name, value FROM choice ORDER BY id")]

    def last_decision(self, name: str) -> ChoiceRow | None:
        """What was settled last under a name."""
        sql = "SELECT id, created_at, name, value FROM choice WHERE name = ? ORDER BY id DESC LIMIT 1"
        return next((ChoiceRow(*row) for row in self._rows(sql, name)), None)

    @property
    def forks(self) -> list[tuple[str, int]]:
        """The runs that go on from this one's rounds, and from which, oldest first."""
        found = [(row.name.removeprefix(FORK), row.value.split(" ")[0]) for row in self.decisions() if row.name.startswith(FORK)]
        return [(name, int(number)) for name, number in found]

    @property
    def rating(self) -> str:
        """The mode in which people rate now: what they chose on the Rate page, or else what the settings say."""
        return self.choices().get("rating") or self.config.rating

    @property
    def left_out(self) -> set[str]:
        """The raters whose ratings do not count."""
        return {name.removeprefix("rater ") for name, value in self.choices().items() if name.startswith("rater ") and value == "out"}

    @property
    def weights(self) -> dict[str, float]:
        """How much raters count beside others, where it is less than others do."""
        return {name.removeprefix("rater "): 0.5 for name, value in self.choices().items() if name.startswith("rater ") and value == "half"}

    def _rounds(self, which: str, *values: Any) -> list[RoundRow]:
        return [RoundRow(*row) for row in self._rows(f"SELECT {ROUND_COLUMNS} FROM round {which}", *values)]

    def rounds(self) -> list[RoundRow]:
        return self._rounds("ORDER BY number")

    def round(self, number: int) -> RoundRow | None:
        """One round, without reading the others."""
        return next(iter(self._rounds("WHERE number = ?", number)), None)

    def last_round(self) -> RoundRow | None:
        """The newest round, without reading the others: what a board that polls shows."""
        return next(iter(self._rounds("ORDER BY number DESC LIMIT 1")), None)

    def open_round(self) -> RoundRow | None:
        """The round that people see: the first with something to show that is neither closed nor scored, or else the newest. (Others may be in the
        making beside it: the board after it, or rounds without a board.)"""
        which = """WHERE closed_at IS NULL AND scored_at IS NULL
            AND EXISTS (SELECT 1 FROM sample WHERE sample.round = round.number AND shown) ORDER BY number LIMIT 1"""
        return next(iter(self._rounds(which)), None) or self.last_round()

    def reward_at(self, number: int) -> str:
        """What scores a round: what was said of it, or else of the latest one before it, or else in the settings."""
        sql = "SELECT reward FROM round WHERE number <= ? AND reward IS NOT NULL ORDER BY number DESC LIMIT 1"
        return next((str(reward) for (reward,) in self._rows(sql, number)), None) or self.config.reward

    def reward_requests(self) -> list[RequestRow]:
        """The changes of reward that people asked for and that are not made yet, oldest first; what names no reward is none."""
        return [request for request in self.pending_requests() if request.kind == "reward" and not self.refusal(request.payload.get("reward"))]

    def refusal(self, reward: object) -> str:
        """Why this cannot score the run, in plain words; nothing where it can."""
        if not is_reward(reward):
            return f"{str(reward)[:200]!r} names no reward"
        try:
            self.config.with_changes(reward=reward)
        except ConfigError as error:
            return str(error)
        return ""

    @property
    def reward_wanted(self) -> str | None:
        """The reward that people asked for last, and that does not score yet."""
        wanted = self.reward_requests()
        return str(wanted[-1].payload["reward"]) if wanted else None

    def reward_stretches(self) -> list[tuple[int, str]]:
        """Which reward is in force from which round on: one entry, and one more for every change."""
        found = [(1, self.config.reward)]
        for number, reward in self._rows("SELECT number, reward FROM round WHERE reward IS NOT NULL ORDER BY number"):
            if reward != found[-1][1]:
                found = [*found, (number, reward)] if number > 1 else [(1, reward)]
        return found

    def first_values(self, reward: str) -> list[float]:
        """What a reward said of the images that the run first scored by it: of the first round with two different values, if there is one."""
        sql = """SELECT round, value FROM score JOIN sample ON sample.id = score.sample
            WHERE reward = ? AND value IS NOT NULL AND round = coalesce(
                (SELECT round FROM score JOIN sample ON sample.id = score.sample WHERE reward = ?1 GROUP BY round
                    HAVING min(value) < max(value) ORDER BY round LIMIT 1), 1)
            ORDER BY position"""
        return [value for _, value in self._rows(sql, reward)]

    def samples(self, number: int) -> list[SampleRow]:
        """A round's samples, in order of position."""
        return [SampleRow(*row) for row in self._rows(f"SELECT {SAMPLE_COLUMNS} FROM sample WHERE round = ? ORDER BY position", number)]

    def board(self, number: int) -> list[SampleRow]:
        """Those of a round's samples that people are asked about, in order of position."""
        return [row for row in self.samples(number) if row.shown]

    def asked(self, number: int) -> dict[int, str]:
        """What people are asked about in a round: the prompt of each sample of the board, by id, in order of position."""
        return {row.id: row.prompt for row in self.board(number)}

    def sample(self, id: int) -> SampleRow | None:
        return next((SampleRow(*row) for row in self._rows(f"SELECT {SAMPLE_COLUMNS} FROM sample WHERE id = ?", id)), None)

    def scores(self, number: int, reward: str) -> dict[int, Score]:
        """A round's scores by one reward, by sample id."""
        sql = "SELECT sample, value, explanation FROM score JOIN sample ON sample.id = score.sample WHERE round = ? AND reward = ?"
        return {sample: Score(value, json.loads(explanation)) for sample, value, explanation in self._rows(sql, number, reward)}

    def prompt_means(self, reward: str) -> dict[str, list[tuple[int, float]]]:
        """The (round, mean score by a reward) points of each prompt, of the rounds that have images of it with a score."""
        sql = """SELECT prompt, round, avg(value) FROM score JOIN sample ON sample.id = score.sample
            WHERE reward = ? AND value IS NOT NULL GROUP BY prompt, round ORDER BY round"""
        found: dict[str, list[tuple[int, float]]] = {}
        for prompt, number, mean in self._rows(sql, reward):
            found.setdefault(prompt, []).append((number, mean))
        return found

    def score_history(self, reward: str, before: int) -> dict[str, list[float]]:
        """The scores of all rounds before one, by prompt, in the order of rounds and positions."""
        sql = """SELECT prompt, value FROM score JOIN sample ON sample.id = score.sample
            WHERE reward = ? AND round < ? AND value IS NOT NULL ORDER BY round, position"""
        found: dict[str, list[float]] = {}
        for prompt, value in self._rows(sql, reward, before):
            found.setdefault(prompt, []).append(value)
        return found

    def rating_counts(self) -> RatingCounts:
        """How much was said, without reading all of it."""
        sql = "SELECT count(value), count(DISTINCT CASE WHEN value IS NOT NULL THEN sample END), count(DISTINCT rater) FROM rating"
        return RatingCounts(*self._rows(sql)[0])

    def ratings(self, number: int | None = None, up_to: int | None = None, after: int = 0) -> list[RatingRow]:
        """All rating events, oldest first; of one round, up to an id, and after one, if these are given."""
        of_round = "round = ?1" if number is not None else "?1 IS NULL"  # an OR of both would read all ratings for those of a round
        sql = f"""SELECT rating.id, client_id, sample, rater, kind, value, shown_at, answered_at, rating.created_at, other, round, board
            FROM rating JOIN sample ON sample.id = rating.sample
            WHERE {of_round} AND (?2 IS NULL OR rating.id <= ?2) AND rating.id > ?3 ORDER BY rating.id"""
        return [RatingRow(*row) for row in self._rows(sql, number, up_to, after)]

    def latest_ratings(self, number: int, up_to: int | None = None, everyone: bool = False) -> dict[int, list[RatingRow]]:
        """Each rater's latest event on each sample and each pair of a round, by sample id, those of a pair by its first; what was cleared is left
        out, and so are raters who do not count, unless ``everyone`` is asked for."""
        absent = set() if everyone else self.left_out
        return latest(row for row in self.ratings(number, up_to) if row.rater not in absent)

    def last_words(self, number: int, everyone: bool = False) -> dict[int, list[RatingRow]]:
        """As ``latest_ratings``, of what was said of a round's board, be it late (:func:`ddpo.records.is_late`); not of images shown once more. What
        somebody said late counts no more where they had changed their mind elsewhere and that had arrived."""
        row, absent = self.round(number), set() if everyone else self.left_out
        said = [each for each in self.ratings(number) if each.rater not in absent]
        if row is None or row.closed_rating is None:
            return latest(said)
        counted = [each for each in said if each.id <= row.closed_rating]
        answered = {each.about: each.answered_at or 0.0 for each in counted}
        late = (each for each in said if is_late(each, row) and (each.answered_at or math.inf) >= answered.get(each.about, 0.0))
        return latest([*counted, *late])

    def late_rounds(self) -> set[int]:
        """The rounds of whose boards something was said late (:func:`ddpo.records.is_late`)."""
        return {number for (number,) in self._rows(f"SELECT DISTINCT rating.board {LATE}")}

    def came_late(self, client_id: str) -> bool:
        """Whether a rating is a late one."""
        return bool(self._rows(f"SELECT 1 {LATE} AND client_id = ?", client_id))

    def metrics(self) -> dict[str, list[tuple[int, float | None]]]:
        """Every metric's (round, value) points, in order of rounds."""
        found: dict[str, list[tuple[int, float | None]]] = {}
        for number, name, value in self._rows("SELECT round, name, value FROM metric ORDER BY round"):
            found.setdefault(name, []).append((number, value))
        return found

    def points(self, name: str) -> list[tuple[int, float | None]]:
        """One metric's (round, value) points, in order of rounds."""
        return [(number, value) for number, value in self._rows("SELECT round, value FROM metric WHERE name = ? ORDER BY round", name)]

    def metric(self, number: int, name: str) -> float | None:
        """One metric of a round; None where it was not measured."""
        return next((value for (value,) in self._rows("SELECT value FROM metric WHERE round = ? AND name = ?", number, name)), None)

    def has_metric(self, number: int, name: str) -> bool:
        """Whether a round has a metric, be it without a value."""
        return bool(self._rows("SELECT 1 FROM metric WHERE round = ? AND name = ?", number, name))

    def probes(self, number: int | None = None) -> list[ProbeRow]:
        """The watched pictures in order of rounds and positions, of one round if that is given."""
        sql = """SELECT id, round, position, kind, prompt, seed, image, found FROM probe
            WHERE ?1 IS NULL OR round = ?1 ORDER BY round, position"""
        return [ProbeRow(*(*row[:7], json.loads(row[7]))) for row in self._rows(sql, number)]

    @property
    def probed(self) -> tuple[int, ...]:
        """Changes whenever pictures were watched."""
        return tuple(self._rows("SELECT count(*), coalesce(max(id), 0) FROM probe")[0])

    def probe(self, id: int) -> ProbeRow | None:
        sql = "SELECT id, round, position, kind, prompt, seed, image, found FROM probe WHERE id = ?"
        return next((ProbeRow(*(*row[:7], json.loads(row[7]))) for row in self._rows(sql, id)), None)

    def checkpoints(self) -> dict[int, Path]:
        return {number: self.folder / path for number, path in self._rows("SELECT round, path FROM checkpoint ORDER BY round")}

    def events(self, after: int = 0) -> list[EventRow]:
        return [EventRow(*row) for row in self._rows("SELECT id, created_at, kind, message, request FROM event WHERE id > ? ORDER BY id", after)]

    def last_event(self, kind: str) -> EventRow | None:
        """The latest event of a kind."""
        sql = "SELECT id, created_at, kind, message, request FROM event WHERE kind = ? ORDER BY id DESC LIMIT 1"
        return next((EventRow(*row) for row in self._rows(sql, kind)), None)

    def pending_requests(self) -> list[RequestRow]:
        """Requests without an answer, oldest first."""
        sql = "SELECT id, created_at, kind, payload FROM request WHERE id NOT IN (SELECT request FROM event WHERE request IS NOT NULL) ORDER BY id"
        return [RequestRow(id, at, kind, json.loads(payload)) for id, at, kind, payload in self._rows(sql)]

    def status(self) -> Status:
        """What the run is doing, from the lock and the rows."""
        rows = self._rows("SELECT state, round, done, total, started_at, changed_at FROM progress")
        pid = holder(self.folder / "worker.lock")
        pending = tuple(r.kind for r in self.pending_requests())
        if not rows:
            return Status("loading" if pid is not None else "new", pid=pid, pending=pending)
        state, number, done, total, started_at, changed_at = rows[0]
        if pid is None:
            # The worker may have ended between the two looks: read what it said last.
            state = self._rows("SELECT state FROM progress")[0][0]
            state = state if state in ENDED_STATES else "interrupted"
        elif state in ENDED_STATES:
            state = "loading"
        last = self._rows("SELECT message FROM event WHERE kind IN ('failed', 'finished', 'stopped', 'reward_failed') ORDER BY id DESC LIMIT 1")
        message = last[0][0] if last and state in (*ENDED_STATES, "reward_failed") else ""
        return Status(state, number, done, total, started_at, changed_at, pid, message, pending)

    def log_tail(self, lines: int = 12, of_bytes: int = 16_384) -> str:
        """The last lines of the worker's log."""
        try:
            with open(self.folder / "worker.log", "rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - of_bytes))
                return "\n".join(file.read().decode("utf-8", "replace").splitlines()[-lines:])
        except FileNotFoundError:
            return ""


def is_reward(reward: object) -> bool:
    """Whether this names something that can score."""
    try:
        return isinstance(reward, str) and bool(rewards.parts(reward))
    except RewardError:
        return False


def finite(value: float | None) -> float | None:
    """The value, or None where it is no finite number."""
    return None if value is None or not math.isfinite(value) else float(value)


def _forget_state(folder: Path) -> None:
    """Remove what :func:`_copy_state` wrote, and the folder if nothing else is in it."""
    for file in folder.glob("*"):
        if file.name.removeprefix(".").startswith(("state", "moments", "parent.json")) and file.is_file():
            file.unlink()
    with suppress(OSError):
        folder.rmdir()


def _copy_state(store: RunStore, number: int, folder: Path) -> None:
    """Copy the state after a run's round, and say whose it is."""
    folder.mkdir(exist_ok=True)
    for file in sorted(store.checkpoints()[number].glob("*.safetensors")):
        if file.name.startswith(("state", "moments")):
            copy_file(file, folder / file.name)
    write_file(folder / "parent.json", json.dumps(dict(run=store.name, round=number)).encode())
    sync_tree(folder)


def runs_in(folder: Path) -> list[Path]:
    """The run folders in a folder, newest first."""
    found = [path.parent for path in Path(folder).glob("*/config.json") if not path.parent.name.startswith(".")]
    return sorted(found, key=lambda path: (path / "config.json").stat().st_mtime, reverse=True)


def delete_run(folder: Path) -> None:
    """Delete a run and everything in it.

    Raises:
        StoreError: it is no run, its worker lives, or the disk refuses.
    """
    if not (folder / "config.json").exists():
        raise NoRun(f"{folder} is no run folder.")
    if holder(folder / "worker.lock") is not None:
        raise StoreError(f"{folder.name} is running. Stop it first.")
    gone = folder.with_name(f".deleted-{folder.name}-{time.time_ns()}")
    try:
        folder.rename(gone)  # at once, so that no name ever stands for half a run
    except OSError as error:
        raise StoreError(f"{folder.name} cannot be deleted: {error.strerror or error}. Is one of its files open elsewhere?") from error
    for left in folder.parent.glob(".deleted-*"):  # this one, and what an interrupted deletion left
        shutil.rmtree(left, ignore_errors=True)
