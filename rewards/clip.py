"""How well does an image fit its prompt? CLIPScore and PickScore: the cosine of a CLIP model's image and text."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from rewards.base import Sample, Score
from rewards.networks import Clip


class _Similarity:
    def __init__(self, clip: str, processor: str = "", device: str = "auto", precision: str = "auto") -> None:
        self.clip = Clip(clip, processor, device, precision)

    def cosines(self, samples: Sequence[Sample]) -> Tensor:
        """The cosine of each image and its prompt, (n,)."""
        prompts = list(dict.fromkeys(sample.prompt for sample in samples))
        texts = self.clip.texts(prompts)
        return (self.clip.images([sample.image for sample in samples]) * texts[[prompts.index(sample.prompt) for sample in samples]]).sum(1)

    def free(self) -> None:
        self.clip.free()


class ClipScore(_Similarity):
    """max(100 cos, 0) (Hessel et al. 2021, eq. 1, with 100 for its 2.5, and the prompt as it is, where theirs begins with "A photo depicts")."""

    name = "clip_score"

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        return [Score(max(100 * cosine, 0.0), {"cosine": cosine}) for cosine in self.cosines(samples).tolist()]


class PickScore(_Similarity):
    """The preference model's logit: its scale times the cosine (Kirstain et al. 2023, section 3)."""

    name = "pickscore"

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        cosines = self.cosines(samples).tolist()
        return [Score(self.clip.scale * cosine, {"cosine": cosine}) for cosine in cosines]
