"""The simulated people of the ratings benchmark, and HERO's recipe in the studio's loop."""

from __future__ import annotations

import contextlib
import statistics
from pathlib import Path

import pytest
import torch

import rewards
from benchmarks import hero as recipe
from benchmarks import hundred_ratings
from benchmarks.hero import SETTINGS, HeroTaster, HeroTrainer, NoiseReuseTrainer, distance
from benchmarks.hundred_ratings import HELD_OUT, TRAINED, WAYS, Person, missed, report
from benchmarks.tastes import opinion_of
from ddpo.control import StopRun
from ddpo.engine import Engine
from ddpo.files import read_image
from ddpo.policy import StableDiffusionPolicy
from ddpo.store import RunStore
from tests.models import tiny_pipeline
from tests.toys_ddpo import tiny_config

PROMPTS = ["a cat"] * 16


@pytest.fixture
def hero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HeroTrainer:
    """Two rounds of the tiny Stable Diffusion, of 16 images each, of one prompt; its network learns for 20 epochs a round."""
    monkeypatch.setattr(recipe, "EPOCHS", 20)
    tiny_pipeline().save_pretrained(tmp_path / "model")
    changes = SETTINGS | dict(steps=6, prompts=("a cat",), images_per_prompt=16, microbatch=5, reward="human", rounds=2, held_out_images=0)
    config = tiny_config(tmp_path / "model", **changes)
    store = RunStore.create(tmp_path / "run", config)
    person = Person(store, "dark", 0, 1000)
    return HeroTrainer(config, store, StableDiffusionPolicy.load(config), person, rewards.load, chooser=person)


def test_a_person_likes_half_of_what_they_see_and_errs_in_one_of_four_and_hero_learns_from_the_best(hero: HeroTrainer) -> None:
    assert hero.run()
    store, person = hero.store, hero.control
    assert isinstance(person, Person) and person.given == 32
    right, seen, most_liked = list[bool](), list[float](), -1.0
    for number in (1, 2):
        rows, said = store.samples(number), store.scores(number, "human")
        liked = [opinion_of("dark", read_image(store.folder / row.image)) for row in rows]
        seen += liked
        up = [said[row.id].value == 1.0 for row in rows]
        right += [thumb == (value > statistics.median(seen)) for thumb, value in zip(up, liked, strict=True)]
        best = max((i for i in range(16) if up[i]), key=liked.__getitem__)
        values = [hero.taster.learned(number)[row.id].value for row in rows]
        assert len(set(values)) == 16
        if liked[best] > most_liked:
            assert person.best[number] == best and max(values) == values[best] == pytest.approx(1.0)
        else:
            assert number not in person.best
        most_liked = max(most_liked, liked[best])
    assert 18 <= sum(right) <= 30
    assert hero.engine.liked is not None and len(hero.engine.liked) in (sum(up), sum(up) + 1)


def test_hero_starts_half_of_a_round_from_the_best_noise_and_half_from_good_ones(hero: HeroTrainer) -> None:
    seeds = hero.engine.draw_seeds(1)
    plain = hero.engine.noises(1, PROMPTS, seeds)
    hero.engine.liked = torch.randn(3, *hero.engine.policy.latent_shape, generator=torch.Generator().manual_seed(0))
    noise = hero.engine.noises(1, PROMPTS, seeds)
    assert torch.equal(noise[1:], plain[1:])
    near = torch.nn.functional.cosine_similarity(noise[0].flatten(1)[:, None], hero.engine.liked.flatten(1), dim=-1)
    assert near.max(1).values.min() > 0.98 and len({tuple(start.flatten().tolist()) for start in noise[0]}) == 16
    assert near[::2].argmax(1).tolist() == [2] * 8 and set(near[1::2].argmax(1).tolist()) == {0, 1}
    assert noise[0].std() == pytest.approx(1.0, abs=0.1)
    # The same image starts from the same noise, whatever else is in its batch.
    assert torch.equal(hero.engine.noises(1, PROMPTS[:3], seeds[7:10]), noise[:, 7:10])


def test_hero_puts_what_is_good_near_the_best_and_what_is_not_away_from_it(hero: HeroTrainer) -> None:
    taster = hero.taster
    assert isinstance(taster, HeroTaster)
    generator = torch.Generator().manual_seed(0)
    good, bad = (torch.randn(8, *hero.engine.policy.latent_shape, generator=generator) + shift for shift in (0.5, -0.5))

    def told_apart() -> float:
        with torch.no_grad():
            best, others = taster.encoder(good[:1]), taster.encoder(torch.cat([good[1:], bad]))
        return float(distance(others[7:], best).mean() - distance(others[:7], best).mean())

    before = told_apart()
    taster.train(good[:1], good[1:], bad, 0, 16)
    assert told_apart() > before + 1e-4


def test_no_prompt_that_is_measured_is_trained_and_every_way_is_asked_for_enough() -> None:
    assert not set(TRAINED) & set(HELD_OUT) and len(TRAINED) + len(HELD_OUT) == 45
    for way in WAYS.values():
        config = way.config(100, 3)
        boards = -(-config.rounds // config.board_every)
        assert boards * (config.board_images or config.images_per_round) >= 100 and set(config.prompts) <= set(TRAINED) and config.seed == 3


def test_the_report_is_of_lines_that_would_be_made_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.common import add_line, effective

    monkeypatch.setattr(hundred_ratings, "RESULTS", tmp_path / "lines.jsonl")
    line = dict(name="rate", taste="warm", asked=100, rounds=7, wins=0.9, shift=0.75, animals_before=0.8, animals_after=0.75, diversity=0.9)
    for seed, wins in ((0, 0.9), (1, 0.7)):
        config = effective(WAYS["rate"].config(100, seed))
        add_line(hundred_ratings.RESULTS, line | dict(seed=seed, wins=wins, config=config))
    add_line(hundred_ratings.RESULTS, line | dict(seed=2, wins=0.1, config=config | dict(learning_rate=0.5)))
    assert "| warm | 2 | 7 ± 0 | 80 ± 10 | 0.75 ± 0.00 | 80 ± 0, 75 ± 0 | 90 ± 0 | wins 1 of 2 |" in report(100)
    assert "half strength" not in report(100)
    add_line(hundred_ratings.RESULTS, line | dict(seed=3, config=effective(WAYS["rate"].config(100, 3)), half=dict(wins=0.8, shift=0.4)))
    assert "| rate, half strength | warm | 1 | 7 | 80 | 0.40 | 80, 75 | 90 | shift 1 of 1 |" in report(100)
    assert report(50).count("\n") == 2
    assert missed(line) == [] and missed(line | dict(animals_after=0.69, diversity=0.5)) == ["animals", "diversity"]


def test_a_person_leaves_when_asked_for_more_than_they_give(hero: HeroTrainer) -> None:
    person = hero.control
    assert isinstance(person, Person)
    person.most = 12
    with pytest.raises(StopRun):
        hero.run()
    assert person.given == 12 and list(hero.store.checkpoints()) == [1]


def test_noise_reuse_starts_an_image_from_the_noises_of_the_better_half_of_its_prompt_s_last_images(tmp_path: Path) -> None:
    """The best is last, as HERO's engine has it; what is worse is no start, and nor is what is of another prompt."""
    tiny_pipeline().save_pretrained(tmp_path / "model")
    config = tiny_config(
        tmp_path / "model", steps=6, images_per_round=8, images_per_update=8, images_per_prompt=4, microbatch=16, reward="human", rounds=2,
        preference="lead", held_out_images=0,
    )  # fmt: skip
    store = RunStore.create(tmp_path / "run", config)
    trainer = NoiseReuseTrainer(config, store, StableDiffusionPolicy.load(config), Person(store, "dark", 0, config.images_per_round))
    with contextlib.suppress(StopRun):
        trainer.run()
    assert list(store.checkpoints()) == [1]
    seeds, prompts = trainer.engine.draw_seeds(1), trainer.engine.draw_prompts(1)
    starts = Engine.noises(trainer.engine, 1, prompts, seeds)[0]
    said = [trainer.taster.learned(1)[row.id].value or 0.0 for row in store.samples(1)]
    assert set(trainer.engine.of_prompt) == set(prompts) and len(set(prompts)) == 2
    for first, prompt in ((0, prompts[0]), (4, prompts[4])):
        better = sorted(range(first, first + 4), key=said.__getitem__)[2:]
        assert torch.equal(trainer.engine.of_prompt[prompt], starts[better])
    again, fresh = trainer.engine.noises(2, [*prompts[:4], "a stranger"], trainer.engine.draw_seeds(2)[:5])[0], trainer.engine.draw_seeds(2)
    near = torch.nn.functional.cosine_similarity(again[:4].flatten(1)[:, None], trainer.engine.of_prompt[prompts[0]].flatten(1), dim=-1)
    assert near.max(1).values.min() > 0.98
    assert torch.equal(again[4], Engine.noises(trainer.engine, 2, ["a stranger"], fresh[4:5])[0, 0])
