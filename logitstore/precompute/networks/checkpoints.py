"""Read checkpoints without running any code of theirs, and load them into networks.

``torch.load`` is always ``weights_only=True`` and there is no fallback: a checkpoint that needs
pickle can run anything.  ``torch.export`` archives (``.pt2``) are refused for the same reason:
their loader unpickles constants and evaluates shape expressions.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from logitstore.errors import InputError, NotFound, UnknownName
from logitstore.storage.archives import zip_entries
from logitstore.storage.plain_files import open_plain

_WRAPPERS = (
    *("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params"),
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema"),
)
"""Entries that hold a checkpoint's weights, in the order of preference: averaged ones last."""

_HARMLESS = "num_batches_tracked"
"""A count that inference does not use: older checkpoints lack it."""

_LISTED = 5
"""Keys that a message names, at most."""


def load_weights(
    path: Path, weights_key: str | None = None
) -> tuple[dict[str, Tensor], str | None]:
    """Read a checkpoint's tensors: (state dict, the entry of the checkpoint that held it or None).

    ``weights_key`` chooses an entry such as ``model_ema``; by default ``state_dict``, ``model`` and
    the like are preferred to averaged weights.  Raises NotFound or InputError.
    """
    loaded = _read(path)
    if weights_key is not None:
        if weights_key not in loaded:
            raise UnknownName.among(f"entry in {path}", weights_key, [str(key) for key in loaded])
        chosen = loaded[weights_key]
        if not _is_state(chosen):
            raise InputError(f"{path}: entry {weights_key!r} holds no weights")
        return _tensors(chosen), weights_key
    if _is_state(loaded):
        return _tensors(loaded), None
    for key in _WRAPPERS:
        if _is_state(loaded.get(key)):
            return _tensors(loaded[key]), key
    raise InputError(
        f"{path}: no weights found; it holds "
        f"{', '.join(sorted(map(str, loaded))[:15]) or 'nothing'}; "
        "name the right entry with --weights-key"
    )


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise NotFound(f"{path}: there is no such checkpoint")
    if path.suffix == ".pt2":
        raise InputError(
            f"{path}: torch.export archives can run code when they are loaded; save "
            "model.state_dict() with safetensors and name the network with --arch"
        )
    if path.suffix != ".safetensors":
        _refuse_archive(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not _is_pickle(path):
            raise InputError(f"{path}: not a readable checkpoint (no pickle of tensors)") from None
        refused = re.search(r"GLOBAL (\S+)", str(error))
        asks = f" (it asks for {refused[1]})" if refused else ""
        raise InputError(
            f"{path}: this checkpoint needs pickle, which can run any code, and is not loaded"
            f"{asks}; where you trust it, load it yourself and save model.state_dict()"
        ) from None
    except PermissionError as error:
        raise InputError(f"{path}: may not be read ({error.strerror})") from None
    except Exception as error:  # a damaged file makes these parsers raise anything
        raise InputError(f"{path}: not a readable checkpoint ({_first_line(error)})") from None
    if not isinstance(loaded, Mapping):
        raise InputError(f"{path}: holds a {type(loaded).__name__}, expected a dict of tensors")
    return loaded


def _refuse_archive(path: Path) -> None:
    """Refuse an archive that torch would unpack to more than the file's own bytes, or to code."""
    entries = zip_entries(path)
    if any("/code/" in entry.filename for entry in entries):
        raise InputError(
            f"{path}: a TorchScript archive, which holds code: save model.state_dict() and name "
            "the network with --arch"
        )
    packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
        what = f"{packed[0][:100]!r} is compressed" if packed else "its entries overlap"
        raise InputError(
            f"{path}: {what}, as in no checkpoint that torch writes: save model.state_dict() with "
            "torch.save or safetensors"
        )


def _is_pickle(path: Path) -> bool:
    """Return whether a file holds a pickle: in a zip archive of torch, or from its first byte."""
    with open_plain(path) as file:
        return file.read(1) == b"\x80" or zipfile.is_zipfile(file)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and any(isinstance(entry, Tensor) for entry in value.values())
        and not any(isinstance(entry, Mapping) for entry in value.values())
    )


def _tensors(state: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {str(key): value for key, value in state.items() if isinstance(value, Tensor)}


def load_into(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load a state dict, unwrapping ``module.``, ``_orig_mod.`` and the like.

    InputError lists the missing, unexpected and mis-shaped keys: the first five and how many.
    """
    expected = model.state_dict()
    state = unwrapped(state, set(expected))
    missing = [key for key in expected if key not in state and not key.endswith(_HARMLESS)]
    unexpected = [key for key in state if key not in expected]
    misshaped = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    problems = [
        f"{len(keys)} {what}: {', '.join(keys[:_LISTED])}{', …' if len(keys) > _LISTED else ''}"
        for what, keys in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("mis-shaped", misshaped),
        )
        if keys
    ]
    if problems:
        raise InputError(
            f"{where}: the checkpoint does not fit this architecture; {'; '.join(problems)}; check "
            "--arch (and the number of classes)"
        )
    model.load_state_dict({**expected, **state})


def unwrapped(state: Mapping[str, Tensor], keys: set[str]) -> dict[str, Tensor]:
    """Strip the prefix under which most of the model's keys stand."""
    state = {key.replace("_orig_mod.", ""): value for key, value in state.items()}
    state.pop("n_averaged", None)  # torch.optim.swa_utils.AveragedModel
    if not keys or keys & state.keys():
        return state
    probe = min(keys)
    prefixes = {key.removesuffix(probe) for key in state if key.endswith(f".{probe}")}
    best = max(prefixes, key=lambda prefix: _fits(state, prefix, keys), default="")
    inside = {key.removeprefix(best): value for key, value in state.items() if key.startswith(best)}
    return inside if best else state


def _fits(state: Mapping[str, Tensor], prefix: str, keys: set[str]) -> int:
    return sum(key.startswith(prefix) and key.removeprefix(prefix) in keys for key in state)
