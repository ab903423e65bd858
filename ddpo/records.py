"""What a run's database holds: the schema, a row of each table, and the words for what a worker can be doing. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE round (
        number INTEGER PRIMARY KEY,
        started_at REAL NOT NULL,
        sampled_at REAL, scored_at REAL, updated_at REAL, checkpointed_at REAL,  -- the four durable marks
        closed_at REAL, closed_rating INTEGER                                    -- people applied: ratings up to this id count
    ) STRICT;
    CREATE TABLE sample (
        id INTEGER PRIMARY KEY,
        round INTEGER NOT NULL REFERENCES round(number),
        position INTEGER NOT NULL,
        prompt TEXT NOT NULL,
        seed INTEGER NOT NULL,
        image TEXT NOT NULL,
        created_at REAL NOT NULL,
        UNIQUE (round, position)
    ) STRICT;
    CREATE TABLE score (
        sample INTEGER NOT NULL REFERENCES sample(id),
        reward TEXT NOT NULL,
        value REAL,
        explanation TEXT NOT NULL,
        PRIMARY KEY (sample, reward)
    ) STRICT;
    CREATE TABLE metric (
        round INTEGER NOT NULL, name TEXT NOT NULL, value REAL,
        PRIMARY KEY (round, name)
    ) STRICT;
    CREATE TABLE checkpoint (round INTEGER PRIMARY KEY, path TEXT NOT NULL, created_at REAL NOT NULL) STRICT;
    CREATE TABLE event (
        id INTEGER PRIMARY KEY, created_at REAL NOT NULL, kind TEXT NOT NULL, message TEXT NOT NULL, request INTEGER
    ) STRICT;
    CREATE TABLE progress (
        only INTEGER PRIMARY KEY CHECK (only = 0),
        state TEXT NOT NULL, round INTEGER NOT NULL, done INTEGER NOT NULL, total INTEGER NOT NULL,
        started_at REAL NOT NULL, changed_at REAL NOT NULL
    ) STRICT;
    CREATE TABLE rating (
        id INTEGER PRIMARY KEY,
        client_id TEXT NOT NULL UNIQUE,
        sample INTEGER NOT NULL REFERENCES sample(id),
        rater TEXT NOT NULL, kind TEXT NOT NULL, value REAL,
        shown_at REAL, answered_at REAL, created_at REAL NOT NULL
    ) STRICT;
    CREATE INDEX rating_sample ON rating (sample, rater, id);
    CREATE TABLE request (
        id INTEGER PRIMARY KEY, created_at REAL NOT NULL, kind TEXT NOT NULL, payload TEXT NOT NULL
    ) STRICT;
    """,
    """
    ALTER TABLE round ADD COLUMN reward TEXT;
    """,
    """
    ALTER TABLE sample ADD COLUMN shown INTEGER NOT NULL DEFAULT 1;  -- whether people are asked for a rating
    """,
    """
    ALTER TABLE sample ADD COLUMN updates INTEGER NOT NULL DEFAULT 0;  -- how many rounds the policy that made it had learned from
    UPDATE sample SET updates = (SELECT count(*) FROM round WHERE updated_at < sample.created_at);
    """,
    """
    ALTER TABLE rating ADD COLUMN other INTEGER REFERENCES sample(id);  -- the second image of a pair
    CREATE TABLE choice (
        id INTEGER PRIMARY KEY, created_at REAL NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL  -- of each name the latest holds
    ) STRICT;
    """,
    """
    CREATE TABLE probe (
        id INTEGER PRIMARY KEY,
        round INTEGER NOT NULL,  -- 0 is the base model
        position INTEGER NOT NULL, kind TEXT NOT NULL, prompt TEXT NOT NULL, seed INTEGER NOT NULL, image TEXT NOT NULL,
        found TEXT NOT NULL,  -- what was measured of the picture, by name
        created_at REAL NOT NULL,
        UNIQUE (round, position)
    ) STRICT;
    """,
    """
    ALTER TABLE rating ADD COLUMN board INTEGER;  -- the round on whose board the image was
    """,
)
"""The database's schema, step by step; a step once released is never changed. ``PRAGMA user_version`` counts the steps taken."""

MARKS = ("sampled", "scored", "updated", "checkpointed")

LIVE_STATES = ("loading", "sampling", "awaiting", "scoring", "reward_failed", "updating", "checkpointing", "measuring", "paused")
ENDED_STATES = ("finished", "stopped", "failed")
"""What a worker can be doing, and how it can have ended. A run is also "new" (never started) or "interrupted" (its worker died)."""

REQUESTS = ("pause", "resume", "apply", "stop_after_round", "stop", "reward", "retry")

RESULT, FORK = "result", "fork "
"""Choices: the round that a run was rolled back to; and, with a run's name behind it, the round that this one goes on from."""

SAMPLE_COLUMNS = "id, round, position, prompt, seed, image, created_at, shown, updates"
ROUND_COLUMNS = "number, started_at, sampled_at, scored_at, updated_at, checkpointed_at, closed_at, closed_rating, reward"


@dataclass(frozen=True)
class SampleRow:
    id: int
    round: int
    position: int
    prompt: str
    seed: int
    image: str
    """Path relative to the run folder."""
    created_at: float
    shown: bool = True
    """Whether people are asked for a rating."""
    updates: int = 0
    """How many rounds the policy that made it had learned from."""


@dataclass(frozen=True)
class RatingRow:
    """One rating event. ``kind`` and ``value`` as in :mod:`rewards.human`."""

    id: int
    client_id: str
    sample: int
    rater: str
    kind: str
    value: float | None
    shown_at: float | None
    answered_at: float | None
    created_at: float
    other: int | None = None
    """The second image of a pair."""
    round: int = 0
    """Of which round the image is."""
    board: int | None = None
    """The round on whose board it was when this was said; None where whoever said it did not tell."""

    @property
    def about(self) -> tuple[str, frozenset[int | None]]:
        """Who said it, and of what."""
        return self.rater, frozenset((self.sample, self.other))


@dataclass(frozen=True)
class RatingCounts:
    """How much was said in a run."""

    ratings: int
    """Events that rate; what skips or clears is none."""
    images: int
    """Images that these are of; of a pair the first."""
    raters: int
    """Everybody who said anything."""


@dataclass(frozen=True)
class RoundRow:
    number: int
    started_at: float
    sampled_at: float | None
    scored_at: float | None
    updated_at: float | None
    checkpointed_at: float | None
    closed_at: float | None
    closed_rating: int | None
    reward: str | None
    """What scores the round, once its scoring has begun; a setting as RunConfig's ``reward``."""

    @property
    def next_mark(self) -> str | None:
        """The first phase whose mark is missing, or None when the round is complete."""
        return next((mark for mark in MARKS if getattr(self, f"{mark}_at") is None), None)


@dataclass(frozen=True)
class ProbeRow:
    """A picture that is watched and never trained on, and what was measured of it (:mod:`ddpo.monitor`)."""

    id: int
    round: int
    """After which round it was made; 0 is the base model."""
    position: int
    """The same position is the same prompt and seed in every round."""
    kind: str
    """``trained``, or the prompt set that the prompt is of."""
    prompt: str
    seed: int
    image: str
    """Path relative to the run folder."""
    found: Mapping[str, float | None]


@dataclass(frozen=True)
class EventRow:
    id: int
    created_at: float
    kind: str
    message: str
    request: int | None


@dataclass(frozen=True)
class RequestRow:
    id: int
    created_at: float
    kind: str
    payload: dict[str, Any]


@dataclass(frozen=True)
class ChoiceRow:
    """What somebody settled; see :meth:`RunStore.choose`."""

    id: int
    created_at: float
    name: str
    value: str


@dataclass(frozen=True)
class Status:
    """What a run is doing, from its folder alone."""

    state: str
    """One of LIVE_STATES, ENDED_STATES, "new" or "interrupted"."""
    round: int = 0
    done: int = 0
    total: int = 0
    started_at: float = 0.0
    """When the present phase began (seconds since the epoch)."""
    changed_at: float = 0.0
    pid: int | None = None
    message: str = ""
    """The last error or end, in plain words."""
    pending: tuple[str, ...] = field(default=())
    """Requests that the worker has not answered yet."""

    @property
    def alive(self) -> bool:
        return self.pid is not None

    @property
    def seconds_left(self) -> float | None:
        """Estimated time left in the phase, or None while that is unknown."""
        if not self.alive or not 0 < self.done < self.total or self.state in ("awaiting", "paused"):
            return None
        if self.changed_at == self.started_at:  # it begins half done, as a round does whose first images were made ahead
            return None
        return (self.changed_at - self.started_at) / self.done * (self.total - self.done)


def is_late(event: RatingRow, row: RoundRow) -> bool:
    """Whether something was said of an image on its own round's board and arrived after that was closed, as from a tab that was offline. It changes
    no score that was learned from, and counts wherever people's last word does. What is said of an image that is shown once more, on a later board,
    is not late."""
    return row.closed_rating is not None and event.id > row.closed_rating and event.board == row.number


def is_once_more(event: RatingRow, row: RoundRow) -> bool:
    """Whether something was said of a closed round's image when it was shown once more."""
    return row.closed_rating is not None and event.id > row.closed_rating and not is_late(event, row)


def latest(ratings: Iterable[RatingRow]) -> dict[int, list[RatingRow]]:
    """Each rater's latest of some events on each sample and each pair, by sample id, those of a pair by its first; what was cleared is left out."""
    found: dict[int, list[RatingRow]] = {}
    for row in {row.about: row for row in ratings}.values():
        if row.kind != "clear":
            found.setdefault(row.sample, []).append(row)
    return found
