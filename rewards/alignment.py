"""Does the image show its prompt? A model describes it, and BERTScore compares the description with the prompt (Black et al. 2023, section 5.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from rewards.base import Sample, Score
from rewards.bertscore import BertScore
from rewards.vlm import open_vlm

QUESTION = "Answer concisely: what is going on in this image?"
REFERENCE = "The image contains {prompt}"


class Alignment:
    """BERTScore's recall of the answer against "The image contains {prompt}"; an empty answer has 0. Fooled by whatever the describing model reads
    into an image: words that are written in it, for one.

    Raw recall hardly moves: unrelated sentences have 0.517 with the published encoder (bert-score's table of baselines, deberta-xlarge-mnli, layer
    40). The explanation's ``calibrated`` is 0 at ``baseline`` and 1 at a perfect match; learning does not care: advantages are standardised.
    """

    name = "alignment"

    def __init__(self, vlm: str, bert: str, layer: str, baseline: str = "0", device: str = "auto", precision: str = "auto") -> None:
        """
        Args:
            vlm: a LLaVA's folder or name on the Hub, or ``http://host/v1#model``.
            bert, layer: BERTScore's encoder, and which of its hidden layers is compared.
            baseline: the recall of answers with prompts that are not theirs.
        """
        self.vlm, self.baseline = open_vlm(vlm, device, precision), float(baseline)
        self.bert = BertScore(bert, int(layer), device, "auto" if precision == "4bit" else precision)

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        answers = self.vlm.answer([sample.image for sample in samples], [QUESTION] * len(samples))
        matches = self.bert.match(answers, [REFERENCE.format(prompt=sample.prompt) for sample in samples])
        scores = []
        for answer, match in zip(answers, matches, strict=True):
            calibrated = (match.recall - self.baseline) / (1 - self.baseline)
            scores.append(Score(match.recall, dict(answer=answer, **asdict(match), calibrated=calibrated)))
        return scores

    def free(self) -> None:
        self.vlm.free()
        self.bert.free()
