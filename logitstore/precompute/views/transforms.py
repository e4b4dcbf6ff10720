"""The transforms that a view may be made of, and the check of specs that name them.

A spec is a list of ``{"name": TRANSFORM, …arguments}``.  It may come from a stranger's store, so
names and arguments are checked against the table below before torchvision sees them.  Every
transform here draws from torch's global CPU generator or not at all, and works on PIL images with
integer results: no Python ``random``, no NumPy, no float tensors (blurs, AugMix, elastic), whose
bits differ between CPUs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from logitstore.errors import InputError, UnknownName

Spec = tuple[dict[str, Any], ...]
_Side = Annotated[int, Field(ge=1, le=4096)]
_Sides = _Side | tuple[_Side, _Side]
_Border = Annotated[int, Field(ge=0, le=1024)]
_Borders = _Border | tuple[_Border, _Border] | tuple[_Border, _Border, _Border, _Border]
_Level = Annotated[int, Field(ge=0, le=255)]
_Fill = _Level | tuple[_Level, _Level, _Level]
_Chance = Annotated[float, Field(ge=0, le=1)]
_Chances = tuple[_Chance, _Chance]
_Positive = Annotated[float, Field(gt=0, le=100)]
_Range = tuple[_Positive, _Positive]
_Angle = Annotated[float, Field(ge=-360, le=360)]
_Angles = Annotated[float, Field(ge=0, le=360)] | tuple[_Angle, _Angle]
_Strength = Annotated[float, Field(ge=0, le=100)]
_Jitter = _Strength | tuple[_Strength, _Strength]
_Shift = Annotated[float, Field(ge=-0.5, le=0.5)]
_Hue = Annotated[float, Field(ge=0, le=0.5)] | tuple[_Shift, _Shift]
_PadMode = Literal["constant", "edge", "reflect", "symmetric"]
_Interpolation = Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]
_Bins = Annotated[int, Field(ge=2, le=1000)]


class _Region(v2.RandomResizedCrop):  # type: ignore[misc]  # torchvision has no types
    """RandomResizedCrop without the resizing, which comes last in a view.

    What follows it (an erased box, say) then falls on the same part of the image whatever the size.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(size=1, **arguments)

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self._call_kernel(F.crop, inpt, **params)


class _Erasing(v2.RandomErasing):  # type: ignore[misc]  # torchvision has no types
    """RandomErasing on the PIL image itself: the same pixels in a tenth of the time."""

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if params["v"] is None:
            return inpt
        values = [int(value) for value in self.value] * (
            1 if len(self.value) > 1 else len(inpt.mode)
        )
        left, top = params["j"], params["i"]
        erased = inpt.copy()
        colour = values[0] if inpt.mode == "L" else tuple(values)
        erased.paste(colour, (left, top, left + params["w"], top + params["h"]))
        return erased


def _auto_augment(policy: str = "imagenet", **arguments: Any) -> Any:
    return v2.AutoAugment(policy=v2.AutoAugmentPolicy(policy), **arguments)


@dataclass(frozen=True)
class _Kind:
    """A transform: what makes it, the types of its arguments, and whether it draws at random."""

    make: Callable[..., Any]
    arguments: Mapping[str, Any]
    random: bool = True


_P = {"p": _Chance}
_LOOK = {"interpolation": _Interpolation, "fill": _Fill}

ALLOWED: dict[str, _Kind] = {
    "Resize": _Kind(v2.Resize, {"size": _Sides, "interpolation": _Interpolation}, random=False),
    "CenterCrop": _Kind(v2.CenterCrop, {"size": _Sides}, random=False),
    "Pad": _Kind(
        v2.Pad, {"padding": _Borders, "fill": _Fill, "padding_mode": _PadMode}, random=False
    ),
    "Grayscale": _Kind(v2.Grayscale, {"num_output_channels": Literal[1, 3]}, random=False),
    "RandomCrop": _Kind(
        v2.RandomCrop,
        {
            "size": _Sides,
            "padding": _Borders,
            "pad_if_needed": bool,
            "fill": _Fill,
            "padding_mode": _PadMode,
        },
    ),
    "RandomResizedCrop": _Kind(_Region, {"scale": _Chances, "ratio": _Range}),
    "RandomHorizontalFlip": _Kind(v2.RandomHorizontalFlip, _P),
    "RandomVerticalFlip": _Kind(v2.RandomVerticalFlip, _P),
    "RandomRotation": _Kind(v2.RandomRotation, {"degrees": _Angles, **_LOOK}),
    "RandomAffine": _Kind(
        v2.RandomAffine,
        {"degrees": _Angles, "translate": _Chances, "scale": _Range, "shear": _Angles, **_LOOK},
    ),
    "RandomPerspective": _Kind(v2.RandomPerspective, {"distortion_scale": _Chance, **_P, **_LOOK}),
    "ColorJitter": _Kind(
        v2.ColorJitter,
        {"brightness": _Jitter, "contrast": _Jitter, "saturation": _Jitter, "hue": _Hue},
    ),
    "RandomGrayscale": _Kind(v2.RandomGrayscale, _P),
    "RandomInvert": _Kind(v2.RandomInvert, _P),
    "RandomPosterize": _Kind(v2.RandomPosterize, {"bits": Annotated[int, Field(ge=1, le=8)], **_P}),
    "RandomSolarize": _Kind(v2.RandomSolarize, {"threshold": _Level, **_P}),
    "RandomAutocontrast": _Kind(v2.RandomAutocontrast, _P),
    "RandomEqualize": _Kind(v2.RandomEqualize, _P),
    "RandomAdjustSharpness": _Kind(v2.RandomAdjustSharpness, {"sharpness_factor": _Strength, **_P}),
    "RandomErasing": _Kind(_Erasing, {"scale": _Chances, "ratio": _Range, "value": _Fill, **_P}),
    "AutoAugment": _Kind(
        _auto_augment, {"policy": Literal["imagenet", "cifar10", "svhn"], **_LOOK}
    ),
    "RandAugment": _Kind(
        v2.RandAugment,
        {
            "num_ops": Annotated[int, Field(ge=1, le=20)],
            "magnitude": Annotated[int, Field(ge=0, le=1000)],
            "num_magnitude_bins": _Bins,
            **_LOOK,
        },
    ),
    "TrivialAugmentWide": _Kind(v2.TrivialAugmentWide, {"num_magnitude_bins": _Bins, **_LOOK}),
}

_MOST_STEPS = 100
"""Most transforms of a view."""

_MIXING = ("MixUp", "CutMix", "Mixup", "Cutmix")
"""Transforms of batches, which people try to name in a spec."""


def transforms(spec: Iterable[Mapping[str, Any]]) -> list[tuple[str, Any]]:
    """Make the steps of a spec: (name and position, the torchvision transform) of each.

    UnknownName or InputError names the transform, its position (from 0) and what is allowed.
    """
    steps = list(spec)
    if len(steps) > _MOST_STEPS:
        raise InputError(f"a view of {len(steps)} transforms: it has at most {_MOST_STEPS}")
    return [_transform(step, position) for position, step in enumerate(steps)]


def grown(step: Mapping[str, Any], width: int, height: int) -> tuple[int, int]:
    """Return the largest width and height that an image has inside a checked step.

    ``step`` is one of a spec, or ``{"size": …}`` for the resizing after it.
    """
    left, top, right, bottom = _borders(step.get("padding", 0))
    width, height = width + left + right, height + top + bottom
    size = step.get("size")
    if size is None:
        return width, height
    if step.get("name", "Resize") == "Resize" and not isinstance(size, list | tuple):
        shorter = min(width, height)  # it becomes ``size``, the longer one may become any
        return max(width, -(-width * size // shorter)), max(height, -(-height * size // shorter))
    across, down = _pair(size)
    if step.get("pad_if_needed"):  # on both sides by what is missing
        across, down = 2 * across, 2 * down
    return max(width, across), max(height, down)


def _pair(size: Any) -> tuple[int, int]:
    """Return width and height of a size, which is a side or (height, width)."""
    sides = list(size) if isinstance(size, list | tuple) else [size]
    return sides[-1], sides[0]


def _borders(padding: Any) -> tuple[int, int, int, int]:
    """Return the pixels added left, above, right and below."""
    sides = list(padding) if isinstance(padding, list | tuple) else [padding]
    left, top, right, bottom = sides * (4 // len(sides))
    return left, top, right, bottom


def is_random(spec: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether views of this (checked) spec may differ from one another."""
    return any(ALLOWED[step["name"]].random for step in spec)


def cuts_regions(spec: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether the spec leaves a region of any shape, which is then resized to the size."""
    return any(step["name"] == "RandomResizedCrop" for step in spec)


@cache
def _adapter(name: str, argument: str) -> TypeAdapter[Any]:
    strict = ConfigDict(strict=True, allow_inf_nan=False)
    return TypeAdapter(ALLOWED[name].arguments[argument], config=strict)


def _transform(step: Mapping[str, Any], position: int) -> tuple[str, Any]:
    arguments = dict(step)
    name = str(arguments.pop("name", None))
    where = f"transform {name} at position {position}"
    if name in _MIXING:
        raise InputError(
            f"{where} mixes samples and their labels: that is no view of one sample; give "
            "--mix mixup:0.2 or --mix cutmix:1.0 instead"
        )
    if name not in ALLOWED:
        raise UnknownName.among(f"transform at position {position}:", name, ALLOWED)
    if name == "RandomResizedCrop" and "size" in arguments:
        raise InputError(
            f"{where}: the size is kept apart from the spec, so that networks of other input sizes "
            "see the same region: drop it and give --size"
        )
    for argument, value in arguments.items():
        _check_argument(where, name, argument, value)
    try:
        return where, ALLOWED[name].make(**arguments)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: {error}") from None


def _check_argument(where: str, name: str, argument: str, value: Any) -> None:
    if argument not in ALLOWED[name].arguments:
        raise UnknownName.among(f"argument of {where}:", argument, ALLOWED[name].arguments)
    try:
        # As JSON, where a list may be a tuple and 1 a float, but true is no number.
        checked = _adapter(name, argument).validate_json(json.dumps(value))
    except (ValidationError, TypeError, ValueError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise InputError(f"{where}: {argument} = {value!r}: {reason.lower()}") from None
    rises = isinstance(checked, tuple) and argument in ("scale", "ratio")
    if rises and checked[0] > checked[1]:
        raise InputError(f"{where}: {argument} = {value!r}: the smaller value comes first")
