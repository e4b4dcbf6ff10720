"""Read checkpoints without running any code of theirs, and find the weights in them.

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
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from logitstore.errors import InputError, NotFound, UnknownName
from logitstore.storage.archives import zip_entries
from logitstore.storage.plain_files import open_plain

_WRAPPERS = (
    *("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params"),
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema"),
)
"""Entries that hold a checkpoint's weights, in the order of preference: averaged ones last."""


class Weights(NamedTuple):
    """The tensors of one place in a checkpoint.

    ``key`` names that place, None if the file holds nothing else.  ``others`` are the entries
    beside it that hold as many tensors, such as averaged weights.
    """

    state: dict[str, Tensor]
    key: str | None
    others: tuple[str, ...] = ()

    def note(self, path: Path) -> str | None:
        """Return a line that says which of several entries was taken, None if there is one."""
        if not self.others:
            return None
        return (
            f"{path}: the weights in {self.key!r} are used; {', '.join(map(repr, self.others))} "
            f"holds weights too: --weights-key {self.others[0]} takes those"
        )


def load_weights(path: Path, weights_key: str | None = None) -> Weights:
    """Read a checkpoint's tensors.

    ``weights_key`` chooses an entry such as ``model_ema``, a prefix of the tensors' names such as
    ``teacher``, or both, as in ``state_dict.teacher``.  By default ``state_dict``, ``model`` and
    the like are preferred to averaged weights.  Raises NotFound, UnknownName or InputError.
    """
    loaded = _read(path)
    found = _entry(loaded)
    if weights_key is not None:
        return _chosen(path, loaded, found, weights_key)
    if found is None:
        raise InputError(
            f"{path}: no weights found; it holds "
            f"{', '.join(sorted(map(str, loaded))[:15]) or 'nothing'}; "
            "name the right entry with --weights-key"
        )
    key, state = found
    others = () if key is None else _rivals(loaded, key, len(state))
    return Weights(_tensors(state), key, others)


def _entry(loaded: Mapping[Any, Any]) -> tuple[str | None, Mapping[Any, Any]] | None:
    """Return the entry (None: the whole) that holds the weights, with its tensors."""
    if _is_state(loaded):
        return None, loaded
    return next(((key, loaded[key]) for key in _WRAPPERS if _is_state(loaded.get(key))), None)


def _rivals(loaded: Mapping[Any, Any], taken: str, tensors: int) -> tuple[str, ...]:
    """Return the other entries that hold as many tensors as the one that was taken."""
    return tuple(
        str(key)
        for key, value in loaded.items()
        if key != taken and _is_state(value) and len(value) >= tensors
    )


def _chosen(
    path: Path,
    loaded: Mapping[Any, Any],
    found: tuple[str | None, Mapping[Any, Any]] | None,
    weights_key: str,
) -> Weights:
    """Return what ``weights_key`` names: in the whole file, else in its weights' usual entry."""
    wanted = weights_key.rstrip(".")
    place = _place(loaded, wanted)
    if place is None and found is not None and found[0] is not None:
        place = _place(found[1], wanted)
        wanted = f"{found[0]}.{wanted}"
    if place is None:
        raise UnknownName.among(f"entry in {path}", weights_key, _places(loaded, found))
    inside = _entry(place)
    if inside is None:
        raise InputError(f"{path}: entry {weights_key!r} holds no weights")
    key, state = inside
    return Weights(_tensors(state), wanted if key is None else f"{wanted}.{key}")


def _place(loaded: Mapping[Any, Any], wanted: str) -> Mapping[Any, Any] | None:
    """Return the entry of this name, or the tensors whose names begin with it."""
    if _is_state(loaded):
        prefix = f"{wanted}."
        inside = {
            str(key).removeprefix(prefix): value
            for key, value in loaded.items()
            if str(key).startswith(prefix)
        }
        return inside or None
    for key, value in loaded.items():
        if isinstance(value, Mapping) and wanted == key:
            return value
        if isinstance(value, Mapping) and wanted.startswith(f"{key}."):
            place = _place(value, wanted.removeprefix(f"{key}."))
            if place is not None:
                return place
    return None


def _places(
    loaded: Mapping[Any, Any], found: tuple[str | None, Mapping[Any, Any]] | None
) -> set[str]:
    """Return what --weights-key could name: entries, and the first parts of the tensors' names."""
    entries = set() if _is_state(loaded) else {str(key) for key in loaded}
    state = {} if found is None else found[1]
    return entries | {str(key).partition(".")[0] for key in state if "." in str(key)}


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
