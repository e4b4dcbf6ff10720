"""Find the checkpoints of a build: files, folders, globs and training runs of ours.

A run's files tell its architecture, its normalisation and its class map; no weights are read here.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from logitstore.errors import InputError, NotFound
from logitstore.format.documents import Document, check_name
from logitstore.precompute.data.classes import Classes, ClassMap, map_for, renumbered
from logitstore.precompute.data.images import ImageDataset
from logitstore.precompute.networks.factory import refuse_untyped
from logitstore.storage.plain_files import MOST_JSON_BYTES, read_plain, read_toml

SUFFIXES = (".pth", ".pt", ".th", ".bin", ".ckpt", ".tar", ".safetensors")
"""Endings of the files in a folder that are taken for checkpoints."""


class _RunInputs(Document, extra="ignore"):
    """The classes that a run's ``inputs.json`` names."""

    classes: int = 0
    class_names: tuple[str, ...] | None = None
    class_map: dict[str, str | int] | None = None


@dataclass(frozen=True)
class TeacherSource:
    """A checkpoint file and the name of its snapshot.

    ``arch`` and ``normalize`` are known when it belongs to a training run of ours; ``classes`` and
    ``class_map`` when that run was trained on data whose classes it maps to its own.  ``untyped``
    is the file that ``arch`` stands in, None if a user typed it or trusts that file.
    """

    path: Path
    name: str
    arch: str | None = None
    normalize: str | None = None
    classes: Classes | None = None
    class_map: ClassMap | None = None
    untyped: Path | None = None

    def architecture(self, flag: str = "--arch") -> str:
        """Return the network's spec; ``flag`` is the option that names it.

        InputError if nothing names it, or if a file names one that could run code.
        """
        if self.arch is None:
            raise InputError(
                f"{self.path}: say which network this is with {flag} (torchvision:NAME, "
                "path/to/file.py:factory, resnet56, …)"
            )
        if self.untyped is not None:
            refuse_untyped(self.arch, self.untyped, f"the network with {flag}")
        return self.arch

    def numbered(self, dataset: ImageDataset) -> ImageDataset:
        """Return the dataset with its classes numbered as the run's, if the run maps classes."""
        if self.classes is None:
            return dataset
        return renumbered(dataset, self.classes, map_for(dataset, self.class_map))


def find_teachers(
    places: Sequence[str],
    names: Sequence[str] = (),
    archs: Sequence[str] = (),
    *,
    trust_run: bool = False,
) -> list[TeacherSource]:
    """Resolve files, folders, globs and training runs to checkpoints, in natural order.

    ``names`` renames the snapshots, one for each checkpoint, or picks those of that name; the
    default name is the file's stem.  ``archs`` is one architecture for all places or one for each.
    ``trust_run``: a run's file may name a network as a user may.
    Raises NotFound, InputError.
    """
    if len(archs) not in (0, 1, len(places)):
        raise InputError(
            f"{len(archs)} --arch for {len(places)} --teacher: give one, or one for each"
        )
    sources: list[TeacherSource] = []
    for number, place in enumerate(places):
        for source in _expand(place):
            if archs:
                source = replace(source, arch=archs[number % len(archs)], untyped=None)
            sources.append(replace(source, untyped=None) if trust_run else source)
    if names:
        sources = _renamed(sources, names)
    paths: dict[str, Path] = {}
    for source in sources:
        check_name("snapshot", source.name)
        if source.name in paths:
            raise InputError(
                f"{paths[source.name]} and {source.path} would both be snapshot {source.name!r}: "
                "name them with --snapshot, once for each checkpoint"
            )
        paths[source.name] = source.path
    return sources


def _renamed(sources: list[TeacherSource], names: Sequence[str]) -> list[TeacherSource]:
    by_name = {source.name: source for source in sources}
    if all(name in by_name for name in names):
        return [by_name[name] for name in names]
    if len(names) != len(sources):
        raise InputError(
            f"{len(names)} --snapshot names for {len(sources)} checkpoints "
            f"({', '.join(source.name for source in sources[:10])}): give one for each, or their "
            "own names"
        )
    return [replace(source, name=name) for source, name in zip(sources, names, strict=True)]


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
    """Return a training run's epoch snapshots, or its final weights if it kept none."""
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
    """Return a checkpoint of a run with what the run's files say of its network."""
    file = run / "config.toml"
    config = read_toml(file)
    student, normalize = (_text(file, config, key) for key in ("student", "normalize"))
    source = TeacherSource(path, name, student, normalize, untyped=file)
    if not (run / "inputs.json").is_file():
        return source  # a checkpoint beside a config.toml; no run of ours maps classes
    inputs = _RunInputs.parse(
        str(run / "inputs.json"), read_plain(run / "inputs.json", MOST_JSON_BYTES)
    )
    if inputs.class_map is None:
        return source
    classes = Classes(owner=str(run), count=inputs.classes, names=inputs.class_names)
    return replace(source, classes=classes, class_map=inputs.class_map)


def _text(file: Path, config: dict[str, Any], key: str) -> str | None:
    value = config.get(key)
    if value is not None and not isinstance(value, str):
        raise InputError(f"{file}: {key} is {value!r}, expected text")
    return value


def _source(path: Path) -> TeacherSource:
    """Return a checkpoint; if it lies in a training run of ours, its architecture is known."""
    for run in (path.parent, path.parent.parent):
        if path.suffix == ".safetensors" and (run / "config.toml").is_file():
            return _in_run(run, path, path.stem)
    return TeacherSource(path, path.name.removesuffix(path.suffix))


def natural_order(path: Path) -> list[Any]:
    """Return the sort key that puts epoch-9 before epoch-10."""
    return [
        (int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(path))
    ]
