"""BERTScore (Zhang et al. 2020, arXiv 1904.09675): how much of one sentence is found in another, by the cosines of their tokens in context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from rewards.networks import BATCH, Network, loaded


@dataclass(frozen=True)
class Match:
    """Precision, recall and F1 of a candidate against its reference; all 0 where one of them has no word."""

    precision: float
    recall: float
    f1: float


class BertScore(Network[tuple[Any, Any]]):
    """Greedy matching without idf weights and without rescaling, as the reference implementation does it: special tokens count nothing, but may be
    matched with."""

    def __init__(self, name: str, layer: int, device: str = "auto", precision: str = "auto") -> None:
        """
        Args:
            name: a folder or a name on the Hub of an encoder.
            layer: the hidden layer whose states are compared; 0 is the embedding.
        """
        super().__init__(name, device, precision)
        self.layer = layer

    def load(self) -> tuple[Any, Any]:
        """Encoder and tokenizer."""

        def read() -> tuple[Any, Any]:
            local = Path(self.name).is_dir()
            tokenizer = AutoTokenizer.from_pretrained(self.name, local_files_only=local)
            # The published encoder has no safetensors; of a .bin file only tensors are read (weights_only).
            model = AutoModel.from_pretrained(self.name, dtype=self.dtype, weights_only=True, local_files_only=local)
            return model.requires_grad_(False).eval().to(self.device), tokenizer

        return loaded("BERTScore", self.name, read)

    @torch.no_grad()
    def tokens(self, sentences: Sequence[str]) -> list[tuple[Tensor, Tensor]]:
        """Of each sentence its tokens' unit vectors (tokens, d), float32, and which of them are no special ones (tokens,)."""
        model, tokenizer = self.parts
        longest = min(tokenizer.model_max_length, int(getattr(model.config, "max_position_embeddings", 512)) - 2)
        found = []
        for start in range(0, len(sentences), BATCH):
            part = list(sentences[start : start + BATCH])
            inputs = tokenizer(part, padding=True, truncation=True, max_length=longest, return_tensors="pt", return_special_tokens_mask=True)
            special = inputs.pop("special_tokens_mask")
            states = model(**inputs.to(self.device), output_hidden_states=True).hidden_states[self.layer].float().cpu()
            states = torch.nn.functional.normalize(states, dim=-1)
            for row, kept, extra in zip(states, inputs["attention_mask"].cpu().bool(), special.bool(), strict=True):
                found.append((row[kept], ~extra[kept]))
        return found

    def match(self, candidates: Sequence[str], references: Sequence[str]) -> list[Match]:
        """Each candidate against its reference, without white space around them; what is longer than the model reads is cut off."""
        candidates, references = [each.strip() for each in candidates], [each.strip() for each in references]
        sentences = list(dict.fromkeys([*candidates, *references]))
        known = dict(zip(sentences, self.tokens(sentences), strict=True)) if sentences else {}
        return [greedy(*known[candidate], *known[reference]) for candidate, reference in zip(candidates, references, strict=True)]


def greedy(candidate: Tensor, candidate_words: Tensor, reference: Tensor, reference_words: Tensor) -> Match:
    """Zhang et al. 2020, eqs. for R, P and F: unit vectors (m, d) and (n, d), and which of them count (m,), (n,)."""
    if not bool(candidate_words.any()) or not bool(reference_words.any()):
        return Match(0.0, 0.0, 0.0)
    cosines = candidate @ reference.T
    precision = float(cosines.max(dim=1).values[candidate_words].mean())
    recall = float(cosines.max(dim=0).values[reference_words].mean())
    total = precision + recall
    return Match(precision, recall, 2 * precision * recall / total if total else 0.0)
