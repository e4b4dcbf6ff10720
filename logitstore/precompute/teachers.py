"""Teacher checkpoints: find them, read them without running any code of theirs, load them.

``torch.load`` is always ``weights_only=True`` and there is no fallback: a checkpoint that needs
pickle can run anything.  ``torch.export`` archives (``.pt2``) are refused for the same reason:
their loader unpickles constants and evaluates shape expressions.
"""

from __future__ import annotations

import glob
import json
import pickle
import re
import tomllib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from logitstore.errors import InputError, NotFound, UnknownName
from logitstore.precompute.classes import Classes, ClassMap, map_for, renumbered
from logitstore.precompute.datasets import ImageDataset
from logitstore.schema import check_name

SUFFIXES = (".pth", ".pt", ".th", ".bin", ".ckpt", ".tar", ".safetensors")
WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "net",
    "network",
    "weights",
    "params",
)
EMA_WRAPPERS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema")
_HARMLESS = "num_batches_tracked"
_LISTED = 5


@dataclass(frozen=True)
class TeacherSource:
    """A checkpoint file and the name of its snapshot.

    ``arch`` and ``normalize`` are known when it belongs to a training run of ours; ``classes`` and
    ``class_map`` when that run was trained on data whose classes it maps to its own.
    """

    path: Path
    name: str
    arch: str | None = None
    normalize: str | None = None
    classes: Classes | None = None
    class_map: ClassMap | None = None

    def numbered(self, dataset: ImageDataset) -> ImageDataset:
        """The dataset with its classes numbered as the run's; as it is if the run maps none."""
        if self.classes is None:
            return dataset
        return renumbered(dataset, self.classes, map_for(dataset, self.class_map))


def find_teachers(
    places: Sequence[str], names: Sequence[str] = (), archs: Sequence[str] = ()
) -> list[TeacherSource]:
    """Resolve files, folders, globs and training runs to checkpoints, in natural order.

    ``names`` renames the snapshots, one for each checkpoint, or picks those of that name; the
    default name is the file's stem.  ``archs`` is one architecture for all places or one for each.
    Raises NotFound, InputError.
    """
    if len(archs) not in (0, 1, len(places)):
        raise InputError(
            f"{len(archs)} --arch for {len(places)} --teacher: give one, or one for each"
        )
    found: list[TeacherSource] = []
    for number, place in enumerate(places):
        arch = archs[number % len(archs)] if archs else None
        found += [replace(source, arch=arch or source.arch) for source in _expand(place)]
    if names:
        found = _renamed(found, names)
    taken: dict[str, Path] = {}
    for source in found:
        check_name("snapshot", source.name)
        if source.name in taken:
            raise InputError(
                f"{taken[source.name]} and {source.path} would both be snapshot {source.name!r}: "
                "name them with --snapshot, once for each checkpoint"
            )
        taken[source.name] = source.path
    return found


def _renamed(found: list[TeacherSource], names: Sequence[str]) -> list[TeacherSource]:
    by_name = {source.name: source for source in found}
    if all(name in by_name for name in names):
        return [by_name[name] for name in names]
    if len(names) != len(found):
        raise InputError(
            f"{len(names)} --snapshot names for {len(found)} checkpoints "
            f"({', '.join(source.name for source in found[:10])}): give one for each, or their "
            "own names"
        )
    return [replace(source, name=name) for source, name in zip(found, names, strict=True)]


def _expand(place: str) -> list[TeacherSource]:
    path = Path(place)
    if path.is_dir():
        return _of_run(path) if (path / "config.toml").is_file() else _of_folder(path)
    if path.is_file():
        return [_source(path)]
    matches = [Path(match) for match in glob.glob(place, recursive=True)]
    files = [match for match in matches if match.is_file()]
    if not files:
        raise NotFound(f"{place}: there is no such checkpoint, folder or training run")
    return [_source(match) for match in sorted(files, key=natural_order)]


def _of_folder(folder: Path) -> list[TeacherSource]:
    files = [path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file()]
    if not files:
        raise NotFound(
            f"{folder}: no checkpoints here ({', '.join('*' + end for end in SUFFIXES)})"
        )
    return [_source(path) for path in sorted(files, key=natural_order)]


def _of_run(run: Path) -> list[TeacherSource]:
    """A training run's epoch snapshots, or its final weights if it kept none."""
    files = sorted((run / "snapshots").glob("*.safetensors"), key=natural_order)
    final = run / "model.safetensors"
    if not files and not final.is_file():
        raise NotFound(
            f"{run}: this training run has no weights yet; finish it with the same command"
        )
    if files:
        return [_in_run(run, path, path.stem) for path in files]
    return [_in_run(run, final, run.resolve().name)]


def _in_run(run: Path, path: Path, name: str) -> TeacherSource:
    """A checkpoint of a run, with what the run's files say of its network."""
    with (run / "config.toml").open("rb") as file:
        config = tomllib.load(file)
    found = TeacherSource(path, name, config.get("student"), config.get("normalize"))
    try:
        inputs = json.loads((run / "inputs.json").read_bytes())
    except (OSError, ValueError):  # a checkpoint beside a config.toml; no run of ours maps classes
        return found
    if inputs.get("class_map") is None:
        return found
    names = inputs["class_names"]
    classes = Classes(
        owner=str(run), count=inputs["classes"], names=None if names is None else tuple(names)
    )
    return replace(found, classes=classes, class_map=inputs["class_map"])


def _source(path: Path) -> TeacherSource:
    """A checkpoint; one that lies in a training run of ours knows its architecture."""
    for run in (path.parent, path.parent.parent):
        if path.suffix == ".safetensors" and (run / "config.toml").is_file():
            return _in_run(run, path, path.stem)
    return TeacherSource(path, path.name.removesuffix(path.suffix))


def natural_order(path: Path) -> list[Any]:
    """Sort key that puts epoch-9 before epoch-10."""
    return [
        (int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(path))
    ]


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
    for key in (*WRAPPERS, *EMA_WRAPPERS):
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
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+) was not", str(error))
        if wanted is None:
            raise InputError(f"{path}: not a readable checkpoint (no pickle of tensors)") from None
        raise InputError(
            f"{path}: this checkpoint needs pickle, which can run any code, and is not loaded (it "
            f"asks for {wanted[1]}); where you trust it, load it yourself and save "
            "model.state_dict()"
        ) from None
    except PermissionError as error:
        raise InputError(f"{path}: may not be read ({error.strerror})") from None
    except Exception as error:  # a damaged file makes these parsers raise anything
        raise InputError(f"{path}: not a readable checkpoint ({_first_line(error)})") from None
    if not isinstance(loaded, Mapping):
        raise InputError(f"{path}: holds a {type(loaded).__name__}, expected a dict of tensors")
    return loaded


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
    wanted = model.state_dict()
    state = unwrapped(state, set(wanted))
    missing = [key for key in wanted if key not in state and not key.endswith(_HARMLESS)]
    unexpected = [key for key in state if key not in wanted]
    misshaped = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
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
    model.load_state_dict({**wanted, **state})


def unwrapped(state: Mapping[str, Tensor], wanted: set[str]) -> dict[str, Tensor]:
    """Strip the prefix under which most of the model's keys stand."""
    state = {key.replace("_orig_mod.", ""): value for key, value in state.items()}
    state.pop("n_averaged", None)  # torch.optim.swa_utils.AveragedModel
    if not wanted or wanted & state.keys():
        return state
    probe = min(wanted)
    prefixes = {key.removesuffix(probe) for key in state if key.endswith(f".{probe}")}
    best = max(prefixes, key=lambda prefix: _fits(state, prefix, wanted), default="")
    inside = {key.removeprefix(best): value for key, value in state.items() if key.startswith(best)}
    return inside if best else state


def _fits(state: Mapping[str, Tensor], prefix: str, wanted: set[str]) -> int:
    return sum(key.startswith(prefix) and key.removeprefix(prefix) in wanted for key in state)
