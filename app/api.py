"""The few calls that other programs may make: start, stop, resume, status, metrics, change_reward, retry, list_batch, rate, count_rater, apply,
export, compare and blind_results."""

from __future__ import annotations

import uuid
from dataclasses import asdict
from typing import Any

import gradio as gr

from app.blind import told
from app.board import apply_refusal, board_of, board_round, is_applying, rating_refusal
from app.comparing import Comparing
from app.comparisons import ComparisonError, compared, values_of
from app.downloads import made
from app.exports import ExportFailure, Exports
from app.launch import Launcher, LaunchError
from app.pages import new_run, run
from app.pages.progress import images_of_round
from app.routes import MAX_NAME_CHARACTERS, is_name
from app.runs import Runs
from app.scoring import Scoring
from ddpo.blind import results
from ddpo.config import ConfigError
from ddpo.export import EXPORTS
from ddpo.presets import presets
from ddpo.store import StoreError
from rewards.base import RewardError
from rewards.human import valid


def publish(runs: Runs, launcher: Launcher, exports: Exports, comparing: Comparing, scoring: Scoring) -> None:
    """Add the calls to the blocks that are being built."""

    def start(name: str, preset: str = "rate", settings: dict[str, Any] | None = None) -> dict[str, Any]:
        """Start a run from a preset, with some settings changed; returns its status."""
        check(str, name=name, preset=preset)
        try:
            if settings is not None and not isinstance(settings, dict):
                raise ConfigError("settings is an object: values by the names of settings.")
            if preset not in presets():
                raise ConfigError(f"There is no preset {preset!r}; choose one of {', '.join(presets())}.")
            values = {key: getattr(presets()[preset].config, key) for key in new_run.SETTINGS}
            if unknown := sorted(set(settings or {}) - set(values)):
                raise ConfigError(f"Unknown setting {', '.join(unknown)}.")
            launcher.start(new_run.create(runs, name, values | (settings or {}), given=settings or {}).folder)
        except (ConfigError, StoreError, LaunchError) as error:
            raise gr.Error(str(error), print_exception=False) from error
        return status(name)

    def stop(name: str, after_round: bool = True) -> dict[str, Any]:
        """Stop a run after its round, or now; returns its status."""
        check(bool, after_round=after_round)
        return steer(name, "stop_after_round" if after_round else "stop")

    def resume(name: str) -> dict[str, Any]:
        """Have a run that was stopped, interrupted or paused go on; returns its status."""
        try:
            return steer(name, "resume" if runs.open(name).status().alive else "launch")
        except StoreError as error:
            raise gr.Error(str(error), print_exception=False) from error

    def status(name: str) -> dict[str, Any]:
        """What a run is doing."""
        try:
            store = runs.open(name)
            return dict(run=store.name, **run.bar_value(store, launcher), message=store.status().message)
        except StoreError as error:
            raise gr.Error(str(error), print_exception=False) from error

    def metrics(name: str) -> dict[str, list[tuple[int, float | None]]]:
        """All measures of a run by name, each a list of round and value; nothing stands for what is not known."""
        try:
            return runs.open(name).metrics()
        except StoreError as error:
            raise gr.Error(str(error), print_exception=False) from error

    def blind_results(name: str) -> list[dict[str, Any]]:
        """What has come out of a run's blind tests, the latest first: A's and B's titles, counts, win rate with its 95 % interval, and p-values."""
        try:
            found = results(runs.open(name).folder)
        except StoreError as error:
            raise gr.Error(str(error), print_exception=False) from error
        return [asdict(result) | dict(total=told(result.total), left_p_value=result.left_p_value) for result in found]

    def change_reward(name: str, reward: str) -> dict[str, Any]:
        """Have another reward score from the next scores on: a name, or a blend such as "blend: 1 aesthetic, 0.5 clip_score"; returns the status."""
        check(str, reward=reward)
        return steer(name, "reward", reward)

    def retry(name: str) -> dict[str, Any]:
        """Ask a reward that failed once more; returns the run's status."""
        found = status(name)
        if found["state"] != "reward_failed":
            raise gr.Error(f"{name} waits for no reward: it is {found['state']}. A run that has ended goes on with resume.", print_exception=False)
        return steer(name, "retry")

    def steer(name: str, kind: str, reward: str = "", rater: str = "") -> dict[str, Any]:
        try:
            run.steer(runs.open(name), launcher, kind, reward, rater)
        except (StoreError, LaunchError, RewardError) as error:
            raise gr.Error(str(error), print_exception=False) from error
        return status(name)

    def list_batch(name: str) -> dict[str, Any]:
        """The images of the board that waits for ratings, or of the latest board or round, with their scores so far."""
        try:
            store = runs.open(name)
            row = board_round(store)
            return images_of_round(store, row.number, board_of(store, row.number)) if row else dict(round=0, images=[], summary="")
        except StoreError as error:
            raise gr.Error(str(error), print_exception=False) from error

    def rate(name: str, image: int, value: float | None, rater: str = "api", client_id: str = "", other: int | None = None) -> bool:
        """Rate an image as the run is rated now: thumbs -1 or 1, stars 1 to 5, best 1 (a good one) or 2 (the best), best-worst -1 or 1; or in pairs,
        beside another one: 1 the image is better, -1 the other, 0 neither. Nothing is a skip. True when it was new."""
        check(str, rater=rater, client_id=client_id)
        try:
            store = runs.open(name)
            if not is_name(rater) or (client_id and not is_name(client_id)):
                raise StoreError(f"rater and client_id are texts of 1 to {MAX_NAME_CHARACTERS} characters, without control characters.")
            for what, number in (("image", image), ("other", other)):
                if not (is_whole(number) or (what == "other" and number is None)):
                    raise StoreError(f"{what} is the id of an image, a whole number.")
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise StoreError("value is a number, or nothing for a skip.")
            kind = store.rating if value is not None else "skip"
            sample, second = store.sample(int(image)), None if other is None else store.sample(int(other))
            if not valid(kind, value, pair=other is not None):
                raise StoreError(f"{value} is no rating of {'an image' if other is None else 'a pair'} in {kind}.")
            return store.add_rating(
                client_id or uuid.uuid4().hex, int(image), rater, kind, value,
                other=None if other is None else int(other), refusal=lambda: rating_refusal(store, sample, rater, second) if sample else "",
            )  # fmt: skip
        except StoreError as error:
            raise gr.Error(str(error), print_exception=False) from error

    def count_rater(name: str, rater: str, weight: float = 1.0) -> dict[str, Any]:
        """Have a rater count as others do (1), half beside others (0.5), or not (0); scores are worked out anew. Returns the run's status."""
        check(str, rater=rater)
        kinds = {1.0: "count", 0.5: "halve", 0.0: "leave_out"}
        if not isinstance(weight, (int, float)) or weight not in kinds:
            raise gr.Error(f"weight is {weight!r}; choose 1, 0.5 or 0.", print_exception=False)
        return steer(name, kinds[weight], rater=rater)

    def apply(name: str, number: int) -> dict[str, Any]:
        """Have the run learn from its ratings of a round, as Enter does on the page; returns the run's status."""
        try:
            store = runs.open(name)
            if not is_whole(number):
                raise StoreError("number is a round, a whole number.")
            if not is_applying(store, number):
                if refusal := apply_refusal(store, number):
                    raise StoreError(refusal)
                store.add_request("apply", round=number)
        except StoreError as error:
            raise gr.Error(str(error), print_exception=False) from error
        return status(name)

    def export(name: str, kind: str = "diffusers", number: int = 0, strength: float = 1.0, names: bool = False) -> dict[str, Any]:
        """Make a file to take away, of a kind that ``python -m ddpo export --as`` knows, of a round: 0 is a model's last one, or the one that the run
        is rolled back to, and all rounds of data. Returns where to fetch it, once, with its name and size."""
        check(str, kind=kind)
        check(bool, names=names)
        try:
            if kind not in EXPORTS:
                raise ExportFailure(f"{kind!r} is no kind of export; choose one of {', '.join(EXPORTS)}.")
            if not is_whole(number):
                raise ExportFailure("number is a round, a whole number; 0 is the model's last one, and all rounds of data.")
            if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not 0 < strength <= 10:
                raise ExportFailure("strength is a number above 0 and at most 10; 1 is all of what was trained.")
            return made(exports, runs.open(name), kind, number or None, float(strength), names)
        except (StoreError, ExportFailure) as error:
            raise gr.Error(str(error), print_exception=False) from error

    def compare(
        a: dict[str, Any], b: dict[str, Any], prompts: list[str], seeds: list[int], rewards: list[str] | None = None, beside: bool = False
    ) -> list[dict[str, Any]]:
        """The same prompts and seeds by two sides {"run", "round" (0 is the base model), "lora" (a file instead of a round), "strength"}; of each
        pair its prompt and seed, and of either side the file, where to fetch it, and its values by automatic rewards, both by the networks that b's
        run would take. With beside, while a run is at work, too, which slows it down."""
        check(bool, beside=beside)
        try:
            asked = [] if rewards is None else rewards
            if not isinstance(asked, list):
                raise ComparisonError('rewards is a list of names, such as ["aesthetic"].')
            pairs = compared(runs, comparing, dict(sides=[a, b], prompts=prompts, seeds=seeds, beside=beside))
            return values_of(comparing, scoring, pairs, asked)
        except ComparisonError as error:
            raise gr.Error(str(error), print_exception=False) from error

    for call in (start, stop, resume, status, metrics, change_reward, retry, list_batch, rate, count_rater, apply, export, compare, blind_results):
        gr.api(call, api_name=call.__name__, queue=False)


TYPES: dict[type, str] = {str: "a text", bool: "true or false"}


def check(wanted: type, **values: object) -> None:
    """Refuse what a program sent that is of another type, by its name.

    Raises:
        gr.Error: one is.
    """
    for name, value in values.items():
        if not isinstance(value, wanted):
            raise gr.Error(f"{name} is {repr(value)[:80]}; it must be {TYPES[wanted]}.", print_exception=False)


def is_whole(number: object) -> bool:
    """Whether something that a program sent is a whole number."""
    return isinstance(number, int) and not isinstance(number, bool) and abs(number) < 2**63
