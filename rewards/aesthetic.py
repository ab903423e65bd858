"""LAION's aesthetic predictor V2, a small network on CLIP's image embedding (Schuhmann et al. 2022); the paper's aesthetic reward."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rewards.base import RewardError, Sample, Score
from rewards.networks import Clip, loaded

FILE = "model.safetensors"
PUBLISHED_FILE = "aesthetic-model.pth"


class Head(nn.Module):
    """Features (n, width) to points (n,): LAION's layers. As published they are on CLIP's unit embedding, with nothing between them but dropout; the
    pocket's are on the tower's states, with rectifiers between, since 64 numbers made for names of animals say too little of beauty."""

    def __init__(self, width: int, on_states: bool = False) -> None:
        super().__init__()
        self.on_states = on_states
        self.layers = nn.Sequential(
            nn.Linear(width, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2), nn.Linear(128, 64), nn.Dropout(0.1), nn.Linear(64, 16),
            nn.Linear(16, 1),
        )  # fmt: skip

    def forward(self, features: Tensor) -> Tensor:
        for layer in self.layers:
            features = layer(features)
            if self.on_states and isinstance(layer, nn.Linear) and layer.out_features > 16:
                features = features.relu()
        return features[:, 0]

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: weight.half().contiguous() for name, weight in self.state_dict().items()}
        save_file(state, folder / FILE, metadata=dict(features="states" if self.on_states else "embedding"))

    @classmethod
    def load(cls, name: str) -> Head:
        """From a folder of ours, or the published file on the Hub, of which only tensors are read.

        Raises:
            RewardError: it cannot be had, or is no such predictor.
        """

        def read() -> tuple[dict[str, Tensor], bool]:
            if not Path(name).is_dir():
                return torch.load(hf_hub_download(name, PUBLISHED_FILE), map_location="cpu", weights_only=True), False
            with safe_open(Path(name) / FILE, framework="pt") as stored:
                return {key: stored.get_tensor(key) for key in stored.keys()}, (stored.metadata() or {}).get("features") == "states"  # noqa: SIM118

        state, on_states = loaded("The aesthetic predictor", name, read)
        try:
            head = cls(state["layers.0.weight"].shape[1], on_states)
            head.load_state_dict({key: weight.float() for key, weight in state.items()})
        except (KeyError, RuntimeError) as error:
            raise RewardError(f"The aesthetic predictor: {name} holds other layers than LAION's ({error}).") from error
        return head.requires_grad_(False).eval()


class Aesthetic:
    """Points of about 1 to 10; fooled by one style, whatever the prompt."""

    name = "aesthetic"

    def __init__(self, clip: str, head: str, device: str = "auto", precision: str = "auto") -> None:
        self.clip, self.head_name = Clip(clip, device=device, precision=precision), head
        self._head: Head | None = None

    @property
    def head(self) -> Head:
        if self._head is None:
            self._head = Head.load(self.head_name)
        return self._head

    @torch.no_grad()
    def score(self, samples: Sequence[Sample]) -> list[Score]:
        images = [sample.image for sample in samples]
        points = self.head(self.clip.states(images) if self.head.on_states else self.clip.images(images)).tolist()
        return [Score(value, {"points": value}) for value in points]

    def free(self) -> None:
        self._head = None
        self.clip.free()
