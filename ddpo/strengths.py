"""How strong? The same pictures at several strengths of what was trained, and what rewards say of them: for who chooses a LoRA's weight.

A strength s is the model base + s (trained - base), in weights. What a run wants to reach and what it does harm to need not fade alike on the way
back, so a weaker model can be better than an earlier round (of supervised finetuning: Wortsman et al. 2022, arXiv 2109.01903, WiSE-FT; of policies
that rewards have trained: Ramé et al. 2024, arXiv 2406.16768, WARP). Every picture has its twin of the base model, by the same prompt and a seed that
was not trained on; gains and intervals as in :mod:`ddpo.generalisation`. Where people rate, their taste is what its model guesses, if it is surely
right more often than chance. What is measured is kept in the run's folder, ``strengths/<round>.json``. Imports torch for the measuring alone.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import rewards
from ddpo.alarms import is_told
from ddpo.dataset import public_reward
from ddpo.document import document, grid, picture, section, short
from ddpo.files import read_image, read_json, write_json
from ddpo.generalisation import TRAINED, Gain, gain_of
from ddpo.markup import Html, shown, tag, words_for
from ddpo.store import RunStore, is_reward
from ddpo.twins import Failure, Report, Twin, make

FOLDER = "strengths"
STRENGTHS = (0.25, 0.5, 0.75, 1.0)
TASTE = "taste (guessed)"
"""What the model of taste makes of pictures, beside what rewards say."""
ROWS = 8
"""How many prompts the document shows."""


@dataclass(frozen=True)
class Strengths:
    """What was measured after a round."""

    round: int
    reward: str
    """What was optimised."""
    prompts: int
    pictures: int
    """At each strength."""
    gains: Mapping[str, tuple[Gain, ...]]
    """By reward, what each of :data:`STRENGTHS` gains over the base model; of :data:`TASTE` without an interval."""
    variety: tuple[float | None, ...]
    """How much a prompt's pictures differ at each of them, as a share of the base model's."""
    strengths: tuple[float, ...] = STRENGTHS

    @property
    def wanted(self) -> str | None:
        """What a run wants to reach, by its name among the gains; None where it cannot be asked."""
        return next((name for name in (self.reward, TASTE) if name in self.gains), None)

    def words(self) -> list[str]:
        """What it says, in sentences: of how many pictures it is; how much of what is wanted is kept at each strength; and which rewards that an
        alarm would ask (:mod:`ddpo.alarms`) surely fall."""
        made = f"{words_for(self.pictures, 'picture')} of {words_for(self.prompts, 'prompt')}"
        told = [f"{made} at each strength of what was learned until round {self.round}, of seeds that were not trained on, beside the base model's."]
        told.append(self._kept())
        for name, gains in self.gains.items():
            sound = [i for i, gain in enumerate(gains) if gain.high is None or gain.high >= 0]
            first = max(sound, default=-1) + 1
            if name != self.wanted and is_told(name, self.reward) and first < len(gains):
                told.append(f"{name} surely falls from {percent(STRENGTHS[first])} on." if first else f"{name} surely falls at each of them.")
        return told

    def _kept(self) -> str:
        """How much of what is wanted is kept at each strength."""
        name = self.wanted
        if name is None:
            return "What is wanted cannot be asked about these pictures: look at them."
        *weaker, whole = self.gains[name]
        kept = [f"{percent(s)} keeps {100 * gain.gain / whole.gain:.0f} %" for s, gain in zip(STRENGTHS, weaker, strict=False) if whole.gain > 0]
        shares = f"{', '.join(kept[:-1])} and {kept[-1]}" if kept else ""
        if name == TASTE:
            gained = f"Of what is gained at full strength as the model of taste guesses, {shares}."
            return gained if shares else "The model of taste guesses that nothing is gained at full strength."
        if whole.low is None or whole.high is None:
            return f"The pictures are too few to say what {name} gains."
        if whole.low > 0:
            return f"Of what {name} gains at full strength, {shares}."
        return f"{name} {'surely falls' if whole.high < 0 else 'does not surely gain'} at full strength."


def percent(strength: float) -> str:
    return f"{100 * strength:.0f} %"


NAMES = ("base model", *map(percent, STRENGTHS))
"""What the pictures of each side are called."""


def rows_of(found: Strengths) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """What was measured as a table: its head, and a row a reward with the base model's mean and each strength's gain."""
    head = ("gain, ± half of its 95 % interval", *NAMES)
    rows = [(name, "–" if name == TASTE else shown(gains[0].before), *map(_gain, gains)) for name, gains in found.gains.items()]
    if any(share is not None for share in found.variety):
        shares = ("–" if share is None else percent(share) for share in found.variety)
        rows.append(("how much a prompt's pictures differ", "100 %", *shares))
    return head, rows


def _gain(gain: Gain) -> str:
    """As many decimals as the interval's half width needs for two digits."""
    half = (gain.high - gain.low) / 2 if gain.low is not None and gain.high is not None else None
    decimals = 2 if not half else max(0, 1 - math.floor(math.log10(half)))
    return f"{gain.gain:+.{decimals}f}" + (f" ± {half:.{decimals}f}" if half is not None else "")


# --- measuring ------------------------------------------------------------------------------------------------------------------


def measure(
    store: RunStore, number: int, place: Path, folder: Path, count: int, report: Report = lambda done, total: None
) -> tuple[Strengths, list[Twin], list[Failure]]:
    """Make pictures of the run's prompts, two of each as far as they go, at each strength, and score them.

    Args:
        place: the round's checkpoint.
        folder: where the pictures go, as they are made: of each prompt the base model's first.

    Returns:
        What was measured, which is in the run's folder too; the pictures; and the rewards that could not be asked.

    Raises:
        ConfigError: the model cannot be loaded, or what is optimised cannot be asked.
        CheckpointError: the weights cannot be read, or are of another base model.
        OSError: a rated image is gone.
    """
    import torch

    from ddpo.monitor import drawn, mean_of, pixels_of, spread_of
    from ddpo.rollout import derive_seed
    from ddpo.taster import Taster
    from rewards.preference import joined

    own, reward = list(dict.fromkeys(store.config.prompts)), store.reward_at(number)
    chosen = drawn(own, max(1, count // 2))
    items = [(TRAINED, chosen[i % len(chosen)], derive_seed(FOLDER, i)) for i in range(count)]
    sides = {f"{100 * strength:03.0f}": strength for strength in (0.0, *STRENGTHS)}
    taster = Taster(store.config, store)
    taste, blind = None, list[Failure]()
    try:
        if "human" in rewards.parts(reward):
            taste = taster.trusted(number)  # before anything that takes long
            taster.free()
    except rewards.RewardError as error:
        blind.append((TASTE, str(error)))
    twins, failures = make(store, number, place, folder, items, sides, report)
    failures = [*blind, *failures]
    prompts, gains = [twin.prompt for twin in twins], dict[str, tuple[Gain, ...]]()
    if taste is not None:
        seen = [joined(taster.look([read_image(folder / twin.files[side])]) for twin in twins) for side in range(len(sides))]
        base, *guessed = (taste.guess(look, prompts).mean.tolist() for look in seen)
        found = [gain_of(prompts, base, each) for each in guessed]
        gains[TASTE] = tuple(Gain(gain.before, gain.after, gain.gain, None, None) for gain in found if gain)
    for name in twins[0].values:
        base, *others = zip(*(twin.values[name] for twin in twins), strict=True)
        found = [gain_of(prompts, base, each, all_known=len(chosen) == len(own)) for each in others]
        if all(found):
            gains[name] = tuple(gain for gain in found if gain)
    small = (torch.cat([pixels_of([read_image(folder / twin.files[side])]) for twin in twins]) for side in range(len(sides)))
    apart = [mean_of(spread_of(pixels, prompts)) for pixels in small]
    variety = tuple(side / apart[0] if side is not None and apart[0] else None for side in apart[1:])
    told = Strengths(number, public_reward(reward), len(set(prompts)), count, gains, variety)
    save(store, told)
    return told, twins, failures


def page(store: RunStore, number: int, place: Path, count: int, report: Report = lambda done, total: None) -> tuple[str, list[Failure]]:
    """Measure, and tell it as a document with the pictures of some prompts side by side; and the rewards that could not be asked.

    Raises:
        ConfigError, CheckpointError, OSError: as of :func:`measure`.
    """
    config = store.config
    with tempfile.TemporaryDirectory() as made:
        found, twins, failures = measure(store, number, place, Path(made), count, report)
        each = list({twin.prompt: twin for twin in reversed(twins)}.values())[::-1][:ROWS]
        rows = [tag("tr", tag("th", tag("bdi", short(twin.prompt, 40)), scope="row"), *_cells(Path(made), twin)) for twin in each]
    top = tag("tr", tag("td"), *(tag("th", name, scope="col") for name in NAMES))
    pictures = tag("div", tag("table", tag("thead", top), tag("tbody", *rows), class_="sheet"), class_="scroll", tabindex=0)
    weight = ", or the weight to give its LoRA in other programs" if config.training == "lora" else ""
    notes = [f"The strength that you like best is the one to take away{weight}."]
    notes += ["The LoRA that the run began with is weakened, too; the base model is without it."] if config.init_lora else []
    head = tag(
        "header",
        tag("p", "Strengths of a run · DDPO Studio", class_="over"),
        tag("h1", store.name),
        tag("p", f"How strong should it be? What was learned until round {number}, at several strengths: the same prompts and seeds.", class_="lede"),
        tag("p", " ".join(notes), class_="muted"),
    )
    lacking = [tag("p", f"Could not be asked: {', '.join(name for name, _ in failures)}.", class_="note")] if failures else []
    said = section("What rewards say", tag("p", " ".join(found.words())), grid(*rows_of(found)), *lacking)
    return document(f"{store.name}: strengths · DDPO Studio", head, section("The pictures", pictures), said), failures


def _cells(folder: Path, twin: Twin) -> list[Html]:
    return [tag("td", picture(read_image(folder / file), f"{twin.prompt}, {name}")) for file, name in zip(twin.files, NAMES, strict=True)]


# --- keeping --------------------------------------------------------------------------------------------------------------------


def save(store: RunStore, found: Strengths) -> None:
    """Keep what was measured in the run's folder; of a round the latest."""
    write_json(store.folder / FOLDER / f"{found.round:04d}.json", found)


def measured(store: RunStore, number: int) -> Strengths | None:
    """What was measured after a round; None where nothing was, or at other strengths, or by a reward that is no more, or its file is damaged."""
    found = read_json(store.folder / FOLDER / f"{number:04d}.json", Strengths)
    if found is None or found.strengths != STRENGTHS or not is_reward(found.reward):
        return None
    return found if all(len(each) == len(STRENGTHS) for each in (*found.gains.values(), found.variety)) else None
