"""The judge: a small classifier of pocket scenes, trained apart from the model it judges.

It shares nothing with the pocket CLIP or the denoiser: other renders (other seeds, with noise, blur and colour shifts), another
network, and no text. A part of the renders were drawn again by the denoiser (:mod:`pocket.redraw`), so that it knows the texture of its pictures.
Its own accuracy on held-out renders is stored beside its weights in ``judge/accuracy.json``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from pocket import world
from pocket.training import images_of

FOLDER = Path(__file__).parent / "judge"

SUBJECTS = [*world.GLYPHS, "nothing recognisable"]
NOTHING = len(SUBJECTS) - 1
"""The class of pictures whose subject cannot be named; no caption has it, so such a picture is always wrong."""

ACTIVITIES = ["none", *world.ACTIVITIES]
COUNTS = [1, 2, 3, 4]
CLASSES: dict[str, list[Any]] = dict(subject=SUBJECTS, activity=ACTIVITIES, count=COUNTS)


def label_of(caption: str) -> tuple[int, int, int]:
    """Class indices (subject, activity, count) of one of the world's captions.

    Raises:
        ValueError: the caption names no subject of the world.
    """
    first, rest = caption.split(" ", 1)
    count = world.COUNTS.get(first, 1)
    for subject in world.GLYPHS:
        noun = world.plural(subject) if count > 1 else subject
        if rest == noun or rest.startswith(noun + " "):
            activity = next((a for a in world.ACTIVITIES if rest.endswith(a)), "none")
            return SUBJECTS.index(subject), ACTIVITIES.index(activity), COUNTS.index(count)
    raise ValueError(f"{caption!r} names nothing of the pocket world.")


def block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2),
    )  # fmt: skip


class Judge(nn.Module):
    """Images (n, 3, 64, 64) in [-1, 1] to logits of subject, activity and count."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(block(3, 24), block(24, 48), block(48, 96), block(96, 160), nn.Flatten(), nn.Dropout(0.2))
        self.heads = nn.ModuleList(nn.Linear(160 * 16, len(classes)) for classes in CLASSES.values())

    def forward(self, images: Tensor) -> list[Tensor]:
        features = self.body(images)
        return [head(features) for head in self.heads]

    def save(self, folder: Path, accuracy: dict[str, float]) -> None:
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.half() if v.is_floating_point() else v for k, v in self.state_dict().items()}, folder / "model.safetensors")
        (folder / "accuracy.json").write_text(json.dumps(accuracy, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path = FOLDER) -> Judge:
        from safetensors.torch import load_file

        judge = cls()
        judge.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in load_file(folder / "model.safetensors").items()})
        return judge.eval()


@torch.no_grad()
def judge_images(judge: Judge, images: list[Image.Image], prompts: list[str]) -> list[dict[str, bool]]:
    """For each image: is its subject, activity and count what the prompt says?

    ``subject`` lets the judge say that nothing can be recognised; ``named`` makes it choose a subject all the same.
    """
    logits = judge(images_of(torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in images]))))
    found = [head.argmax(1).tolist() for head in logits]
    named = logits[0][:, :NOTHING].argmax(1).tolist()
    wanted = [label_of(p) for p in prompts]
    verdicts = [{name: found[i][n] == wanted[n][i] for i, name in enumerate(CLASSES)} for n in range(len(images))]
    return [verdict | dict(named=named[n] == wanted[n][0]) for n, verdict in enumerate(verdicts)]
