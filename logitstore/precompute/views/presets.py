"""View specs by name or from a JSON file, and how their images are prepared for measuring.

Steps are only named here; ``transforms`` checks and makes them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from logitstore.errors import InputError, UnknownName
from logitstore.precompute.views.transforms import ALLOWED, Spec


def _cutout(share: float) -> dict[str, Any]:
    """Return the step that blackens one square of this share of the image, anywhere inside it.

    DeVries, Taylor 2017, arXiv:1708.04552, let it hang over the edge.
    """
    return {"name": "RandomErasing", "p": 1.0, "scale": [share, share], "ratio": [1.0, 1.0]}


_FLIP = {"name": "RandomHorizontalFlip"}
_CROP32 = {"name": "RandomCrop", "size": 32, "padding": 4}


@dataclass(frozen=True)
class Preset:
    """A spec with the size that it is made for; None leaves the images' own."""

    spec: Spec
    size: int | None = None


PRESETS: dict[str, Preset] = {
    "eval": Preset(()),
    "cifar-train": Preset((_CROP32, _FLIP)),
    "cifar-strong": Preset(
        (
            {"name": "RandomResizedCrop", "scale": [0.25, 1.0]},
            _FLIP,
            {
                "name": "ColorJitter",
                "brightness": 0.4,
                "contrast": 0.4,
                "saturation": 0.4,
                "hue": 0.1,
            },
            _cutout(0.25),
        ),
        32,
    ),
    "cifar-autoaugment": Preset(
        (_CROP32, _FLIP, {"name": "AutoAugment", "policy": "cifar10"}, _cutout(0.25))
    ),
    "imagenet-train": Preset(({"name": "RandomResizedCrop", "scale": [0.08, 1.0]}, _FLIP), 224),
    "imagenet-eval": Preset(({"name": "Resize", "size": 256}, {"name": "CenterCrop", "size": 224})),
}


def parse_view_spec(text: str) -> Preset:
    """Return a preset by name, or the spec in a JSON file, whose steps are not checked yet."""
    if text in PRESETS:
        return PRESETS[text]
    if not text.endswith(".json"):
        raise UnknownName.among("view preset (or FILE.json)", text, PRESETS)
    try:
        loaded = json.loads(Path(text).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{text}: not a readable view spec: {error}") from None
    if not isinstance(loaded, list) or not all(isinstance(step, dict) for step in loaded):
        raise InputError(f'{text}: expected a list such as [{{"name": "CenterCrop", "size": 224}}]')
    return Preset(tuple(loaded))


def evaluation_spec(spec: Spec) -> Spec:
    """Return the spec that prepares images for measuring what was trained on views of ``spec``.

    Random steps go, a random crop becomes the central one of its size; what was trained as
    ``imagenet-train`` is measured as ``imagenet-eval``.
    """
    if spec == PRESETS["imagenet-train"].spec:
        return PRESETS["imagenet-eval"].spec
    central = [
        {"name": "CenterCrop", "size": step["size"]} if step["name"] == "RandomCrop" else step
        for step in spec
    ]
    return tuple(step for step in central if not ALLOWED[step["name"]].random)
