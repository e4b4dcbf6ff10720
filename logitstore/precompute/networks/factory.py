"""Build a network from its spec.

    resnet20 … resnet110, cnn5?width=16, mlp?hidden=256,256     our own small networks
    torchvision:resnet50                                        any torchvision classification model
    timm:NAME                                                   any timm model, when installed
    package.module:factory, path/to/file.py:factory             a callable that returns a module

The first three get the dataset's class count; a factory decides for itself and is checked later.
A spec that a user typed may be any of them; one out of a file names no code (``refuse_untyped``).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from logitstore.errors import InputError, MissingExtra, UnknownName
from logitstore.precompute.networks.small import MLP, CifarResNet, PlainCNN
from logitstore.specs import (
    Spec,
    file_sha256,
    is_factory,
    load_factory,
    not_typed,
    value_of,
)

Shape = tuple[int, int, int]
"""Channels, height and width of an image."""


def _mlp(spec: Spec, classes: int, shape: Shape) -> nn.Module:
    spec.only("hidden", "dropout")
    text = spec.options.get("hidden", "256")
    try:
        hidden = [int(width) for width in text.split(",")]
        dropout = float(spec.options.get("dropout", "0"))
    except ValueError:
        raise InputError(f"{spec.text!r}: expected mlp?hidden=256,256&dropout=0.5") from None
    if min(hidden) < 1 or not 0 <= dropout < 1:
        raise InputError(f"{spec.text!r}: hidden widths are positive and dropout is in [0, 1)")
    return MLP(shape[0] * shape[1] * shape[2], hidden, classes, dropout)


def _cnn5(spec: Spec, classes: int, shape: Shape) -> nn.Module:
    spec.only("width")
    width = value_of(spec.options.get("width", "16"))
    if not isinstance(width, int) or width < 1:
        raise InputError(f"{spec.text!r}: width must be a positive whole number")
    if min(shape[1:]) < 4:
        raise InputError(
            f"{spec.text!r}: images of {shape[1]}x{shape[2]} are too small for it (4x4)"
        )
    return PlainCNN(shape[0], classes, width)


def _resnet(depth: int) -> Callable[[Spec, int, Shape], nn.Module]:
    def build(spec: Spec, classes: int, shape: Shape) -> nn.Module:
        spec.only()
        return CifarResNet(depth, shape[0], classes)

    return build


NETWORKS: dict[str, Callable[[Spec, int, Shape], nn.Module]] = {
    "mlp": _mlp,
    "cnn5": _cnn5,
    **{f"resnet{depth}": _resnet(depth) for depth in (20, 32, 44, 56, 110)},
}


_UNTYPED_OPTIONS: dict[str, frozenset[str]] = {
    **{name: frozenset({"hidden", "dropout", "width"}) for name in NETWORKS},
    "torchvision": frozenset(
        {
            *("dropout", "stochastic_depth_prob", "width_mult", "image_size", "groups"),
            *("width_per_group", "aux_logits", "transform_input", "init_weights", "progress"),
            "zero_init_residual",
        }
    ),
    "timm": frozenset({"drop_rate", "drop_path_rate", "drop_block_rate", "img_size", "in_chans"}),
}
"""Options of a network that a file may set: numbers that no code, file or download hides behind."""

_LARGEST_UNTYPED, _MOST_UNTYPED = 8192, 16
"""The largest number that a file may give an option, and how many of them."""


def refuse_untyped(text: str, file: Path, remedy: str) -> None:
    """Refuse a network that stands in ``file`` if making it runs code or fetches anything.

    Only our own networks, torchvision's and timm's are made, with options that are numbers.
    """
    spec = Spec.parse(text)
    kind, colon, _ = spec.head.partition(":")
    if colon and kind not in _UNTYPED_OPTIONS:
        raise not_typed(text, file, "making it runs code", remedy)
    for key, value in spec.options.items():
        if key not in _UNTYPED_OPTIONS.get(kind, ()):
            raise not_typed(
                text, file, f"its option {key!r} is not one that is always safe", remedy
            )
        numbers = [value_of(part) for part in value.split(",")]
        small = all(not isinstance(n, str) and abs(n) <= _LARGEST_UNTYPED for n in numbers)
        if not small or len(numbers) > _MOST_UNTYPED:
            raise not_typed(text, file, f"{key}={value[:50]} is no small number", remedy)


def build_model(text: str, *, classes: int, shape: Shape) -> nn.Module:
    """Build the network that a spec names, freshly initialised, for images (C, H, W) of ``shape``.

    Raises UnknownName, InputError, NotFound or MissingExtra.
    """
    spec = Spec.parse(text)
    scheme, colon, name = spec.head.partition(":")
    if not colon:
        if spec.head not in NETWORKS:
            raise UnknownName.among(
                "architecture",
                spec.head,
                [*NETWORKS, "torchvision:NAME", "timm:NAME", "module:factory"],
            )
        try:
            return NETWORKS[spec.head](spec, classes, shape)
        except (RuntimeError, MemoryError) as error:
            reason = str(error).splitlines()[0][:200]
            raise InputError(
                f"{text!r} cannot be made for {classes} classes and images of {shape}: {reason}"
            ) from None
    if scheme == "torchvision":
        return _torchvision(spec, name, classes)
    if scheme == "timm":
        return _timm(spec, name, classes)
    if not is_factory(spec.head):
        raise UnknownName.among(
            "kind of architecture", scheme, ["torchvision", "timm", "module:factory"]
        )
    spec.only()
    return _from_factory(spec.head)


def portable_arch(text: str) -> tuple[str, str | None]:
    """Return the spec without folders, and the sha256 of its file if it is ``file.py:factory``."""
    head = Spec.parse(text).head
    place, _, name = head.rpartition(":")
    if place.endswith(".py") and is_factory(head):
        return f"{Path(place).name}:{name}", file_sha256(Path(place))
    return text, None


def _torchvision(spec: Spec, name: str, classes: int) -> nn.Module:
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise UnknownName.among("torchvision model", name, known)
    return _called(spec, torchvision.models.get_model, name, num_classes=classes)


def _timm(spec: Spec, name: str, classes: int) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise MissingExtra(f"{spec.text!r} needs timm: pip install timm") from error
    if not timm.is_model(name):
        raise UnknownName.among("timm model", name, timm.list_models())
    return _called(spec, timm.create_model, name, num_classes=classes)


def _called(spec: Spec, create: Callable[..., Any], name: str, **fixed: Any) -> nn.Module:
    options = {**fixed, **{key: value_of(value) for key, value in spec.options.items()}}
    try:
        model: nn.Module = create(name, **options)
    except (TypeError, ValueError) as error:
        raise InputError(f"{spec.text!r}: {error}") from error
    return model


def _from_factory(head: str) -> nn.Module:
    factory, _ = load_factory(head)
    try:
        model = factory()
    except Exception as error:
        needed = "" if inspect.isclass(factory) else " (factories are called without arguments)"
        raise InputError(f"{head!r}: {type(error).__name__}: {error}{needed}") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"{head!r} returned a {type(model).__name__}, not a torch.nn.Module")
    return model
