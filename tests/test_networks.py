"""Rewards with networks, on tiny random models of the real classes."""

from __future__ import annotations

import random
from pathlib import Path

import httpx
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel, CLIPProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import rewards
from pocket import world
from rewards.aesthetic import Aesthetic, Head
from rewards.base import RewardError, Sample
from rewards.clip import ClipScore, PickScore
from rewards.networks import Clip, remedy
from tests.models import tiny_tokenizer
from tests.toys import picture

PROMPTS = ("a cat", "a dog", "one horse")


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A CLIP with towers of one layer and unit vectors of 8 numbers, as `save_pretrained` writes it."""
    folder, tokenizer = tmp_path_factory.mktemp("clip"), tiny_tokenizer()
    special = dict(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    shape = dict(hidden_size=16, intermediate_size=32, num_attention_heads=2, num_hidden_layers=1, projection_dim=8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text = dict(shape, vocab_size=len(tokenizer), max_position_embeddings=12, **special)
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=dict(shape, image_size=16, patch_size=8), projection_dim=8))
    model.save_pretrained(folder)
    size = dict(height=16, width=16)
    CLIPImageProcessorPil(size=size, crop_size=size).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def samples(count: int = 5) -> list[Sample]:
    return [Sample(i, PROMPTS[i % len(PROMPTS)], picture(i)) for i in range(count)]


def test_clip_score_is_a_hundred_times_the_cosine_that_the_model_itself_gives(tiny_clip: str) -> None:
    model = CLIPModel.from_pretrained(tiny_clip).eval()
    processor = CLIPProcessor(CLIPImageProcessorPil.from_pretrained(tiny_clip), tiny_tokenizer())
    asked = samples()
    inputs = processor(text=[s.prompt for s in asked], images=[s.image for s in asked], return_tensors="pt", padding="max_length", max_length=12)
    with torch.no_grad():
        cosines = model(**inputs).logits_per_image.diagonal() / model.logit_scale.exp()
    found = ClipScore(tiny_clip, device="cpu").score(asked)
    assert [s.explanation["cosine"] for s in found] == pytest.approx(cosines.tolist(), abs=1e-5)
    assert [s.value for s in found] == pytest.approx([max(100 * c, 0.0) for c in cosines.tolist()], abs=1e-3)
    picked = PickScore(tiny_clip, device="cpu").score(asked)
    assert [s.value for s in picked] == pytest.approx((model.logit_scale.exp().item() * cosines).tolist(), rel=1e-4)


def test_a_score_does_not_depend_on_the_others_it_is_asked_with(tiny_clip: str) -> None:
    """More images than go through at once, in another order, each alone: the same."""
    asked = samples(40)
    reward = ClipScore(tiny_clip, device="cpu")
    together, backwards = reward.score(asked), reward.score(asked[::-1])[::-1]
    alone = [reward.score([sample])[0] for sample in asked[:3]]
    assert [s.value for s in together] == pytest.approx([s.value for s in backwards], abs=1e-3)
    assert [s.value for s in alone] == pytest.approx([s.value for s in together[:3]], abs=1e-3)
    assert reward.score([]) == []


def test_a_long_a_strange_and_an_empty_prompt_are_scored(tiny_clip: str) -> None:
    asked = [Sample(0, "a cat " * 2000, picture(0)), Sample(1, "🦊 $%&", picture(1)), Sample(2, "", picture(2))]
    assert all(score.value is not None for score in ClipScore(tiny_clip, device="cpu").score(asked))


def test_memory_is_given_back_and_the_next_score_loads_again(tiny_clip: str) -> None:
    reward = ClipScore(tiny_clip, device="cpu")
    assert reward.clip._parts is None
    before = reward.score(samples())
    reward.free()
    assert reward.clip._parts is None and reward.score(samples()) == before


def test_other_modes_and_sizes_are_scored_as_rgb(tiny_clip: str) -> None:
    image = picture(1)
    reward = ClipScore(tiny_clip, device="cpu")
    wide = Image.new("RGBA", (50, 20), (200, 10, 10, 255))
    grey = [Sample(0, "a cat", image.convert("L")), Sample(1, "a cat", image.convert("L").convert("RGB")), Sample(2, "a cat", wide)]
    found = reward.score(grey)
    assert found[0].value == pytest.approx(found[1].value, abs=1e-3) and found[2].value is not None


# --- the aesthetic predictor


def test_the_published_aesthetic_is_one_matrix_on_unit_embeddings(tiny_clip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published file names its layers layers.0, .2, .4, .6 and .7, with dropout between."""
    head = Head(8).eval()
    torch.save(head.state_dict(), tmp_path / "aesthetic-model.pth")
    monkeypatch.setattr("rewards.aesthetic.hf_hub_download", lambda name, file: str(tmp_path / file))
    assert [k for k in head.state_dict() if k.endswith("weight")] == [f"layers.{i}.weight" for i in (0, 2, 4, 6, 7)]
    asked = samples()
    x = Clip(tiny_clip, device="cpu").images([s.image for s in asked])
    assert torch.linalg.norm(x, dim=1).tolist() == pytest.approx([1.0] * 5, abs=1e-5)
    for i in (0, 2, 4, 6, 7):
        x = x @ head.state_dict()[f"layers.{i}.weight"].T + head.state_dict()[f"layers.{i}.bias"]
    reward = Aesthetic(tiny_clip, "trl-lib/ddpo-aesthetic-predictor", device="cpu")
    assert [s.value for s in reward.score(asked)] == pytest.approx(x[:, 0].tolist(), abs=1e-5)
    reward.free()
    assert reward._head is None


def test_the_pocket_s_aesthetic_has_rectifiers_and_sees_the_tower_s_states(tiny_clip: str, tmp_path: Path) -> None:
    head = Head(32, on_states=True).eval()
    head.save(tmp_path)
    asked = samples()
    model = CLIPModel.from_pretrained(tiny_clip).eval()
    pixels = CLIPImageProcessorPil.from_pretrained(tiny_clip)([s.image for s in asked], return_tensors="pt").pixel_values
    with torch.no_grad():
        seen = model.vision_model(pixel_values=pixels)
        x = torch.cat([seen.pooler_output, seen.last_hidden_state[:, 1:].mean(1)], 1)
        for i in (0, 2, 4, 6, 7):
            x = x @ head.state_dict()[f"layers.{i}.weight"].T + head.state_dict()[f"layers.{i}.bias"]
            x = x.relu() if i < 6 else x
    found = Aesthetic(tiny_clip, str(tmp_path), device="cpu").score(asked)
    assert [s.value for s in found] == pytest.approx(x[:, 0].tolist(), abs=2e-3)


def test_a_pickle_that_runs_code_is_not_run(tiny_clip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return open, (str(tmp_path / "sprung"), "w")  # type: ignore[return-value]

    torch.save(dict(trap=Trap()), tmp_path / "aesthetic-model.pth")
    monkeypatch.setattr("rewards.aesthetic.hf_hub_download", lambda name, file: str(tmp_path / file))
    with pytest.raises(RewardError, match=r"(?i)weights.only|unsupported"):
        Aesthetic(tiny_clip, "trl-lib/ddpo-aesthetic-predictor").score(samples())
    assert not (tmp_path / "sprung").exists()


def test_a_head_of_another_shape_is_refused(tiny_clip: str, tmp_path: Path) -> None:
    save_file({"layers.0.weight": torch.zeros(3, 8)}, tmp_path / "model.safetensors")
    with pytest.raises(RewardError, match="other layers than LAION's"):
        Aesthetic(tiny_clip, str(tmp_path)).score(samples())


# --- what to do when networks are not there


def test_a_model_that_cannot_be_had_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RewardError, match=r"nobody/nothing is not in .*hf download nobody/nothing.*copy that folder here\.$"):
        ClipScore("nobody/nothing").score(samples())
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(RewardError, match="empty cannot be loaded"):
        ClipScore(str(empty)).score(samples())


@pytest.mark.parametrize("name", [name for name, card in rewards.REWARDS.items() if card.published])
def test_pocket_networks_are_advised_where_there_are_some(name: str) -> None:
    """PickScore has none, and would refuse who took the advice."""
    for network in (each for each in rewards.card(name).published.values() if "/" in each):
        assert ("choose reward_models pocket" in remedy(network, ConnectionError())) == (name != "pickscore"), network


def test_a_machine_without_network_is_told_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not told to be offline, only without a way out: what the libraries raise then, whichever of them it is."""

    def refuse(*arguments: object, **settings: object) -> None:
        raise OSError("We couldn't connect to 'https://huggingface.co'") from httpx.ConnectError("no route")

    monkeypatch.setattr(CLIPModel, "from_pretrained", refuse)
    with pytest.raises(RewardError, match=r"and the Hub cannot be reached.*hf download nobody/nothing"):
        ClipScore("nobody/nothing").score(samples())


def test_a_reward_without_pocket_networks_says_so() -> None:
    with pytest.raises(RewardError, match=r"pickscore has no pocket networks.*reward_models published"):
        rewards.load("pickscore", "pocket")


def test_the_pocket_s_llava_describes_and_answers() -> None:
    """Through the rewards' own code, on renders: the true prompt is described better than another, and strict answers are right."""
    asked = [Sample(i, prompt, world.render(world.Scene("cat", count=3), random.Random(7))) for i, prompt in enumerate(("three cats", "two dogs"))]
    right, wrong = rewards.load("alignment", "pocket").score(asked)
    assert right.explanation["answer"] == "three cats" and (right.value or 0) > (wrong.value or 0) + 0.1
    right, wrong = rewards.load("satisfaction", "pocket").score(asked)
    assert right.value == 1.0 and wrong.value == 0.0


def test_pocket_networks_need_no_download() -> None:
    """The pocket CLIP prefers the prompt that a picture was made for, and the aesthetic gives points near its typical 5."""
    reward = rewards.load("clip_score", "pocket")
    assert all(score.value is not None for score in reward.score(samples()))
    points = [score.value for score in rewards.load("aesthetic", "pocket").score(samples())]
    assert all(value is not None and -2 < value < 12 for value in points)
