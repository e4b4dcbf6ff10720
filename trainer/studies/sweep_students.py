"""List the students of a sweep: one for each teacher, method and seed, and where each run lies.

Nothing is opened or trained here but the settings of a run that was begun before.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logitstore.errors import InputError, UnknownName
from logitstore.trainer.config.settings import TrainConfig, refuse_missing
from logitstore.trainer.config.teacher_spec import parse_teachers, servers_of, split_teachers
from logitstore.trainer.methods.table import METHODS, find_method, hyper_parameter_types

if TYPE_CHECKING:
    from logitstore.reading.store import LogitStore

ALL = "all"

_PATTERN = "*?["
"""Characters that make a name of a snapshot a pattern."""

_LONGEST = 100
"""Characters of a folder's name that a teacher may take."""


@dataclass(frozen=True, kw_only=True)
class Student:
    """A run of a sweep; ``snapshot`` is its teacher, None for a method without one."""

    method: str
    snapshot: str | None
    config: TrainConfig


def check_settings(settings: Mapping[str, Any], methods: Sequence[str]) -> None:
    """Refuse settings that no store can make right, before any is opened.

    Raises InputError or UnknownName.
    """
    if settings.get("store") is None:
        raise InputError("a sweep compares a store's snapshots as teachers: give --store STORE")
    refuse_missing({**settings, "out": ""})
    _refuse_unused(settings, methods)
    for method in methods:
        config = TrainConfig(**_settings_of(settings, method), method=method, out="").resolved()
        if config.val is None:
            raise InputError(
                "students are compared on validation data: give --val DATA, or --val split:0.1"
            )


def chosen_teachers(store: LogitStore, text: str) -> list[str]:
    """Return the teachers of a comma list, each once, in natural order.

    UnknownName for a snapshot that the store does not have.
    """
    from logitstore.precompute.networks.teachers import natural_order

    snapshots = list(store.snapshots)
    names: list[str] = []
    for piece in split_teachers(text):
        if piece == ALL:
            names += snapshots
        elif "(" not in piece and any(mark in piece for mark in _PATTERN):
            matching = [name for name in snapshots if fnmatchcase(name, piece)]
            if not matching:
                raise UnknownName.among(f"snapshot in {store.url} like", piece, snapshots)
            names += matching
        elif "@" in piece.rpartition("::")[2]:
            raise InputError(
                f"--snapshot {text!r}: {piece!r} is a stage of a schedule, and commas stand "
                "between the teachers of different students here: train a schedule with "
                "`logitstore train`"
            )
        else:
            parse_teachers(piece)
            names.append(piece)
    if not names:
        raise InputError(f"{store.url} has no committed snapshot to teach: build one first")
    return sorted(dict.fromkeys(names), key=lambda name: natural_order(Path(name)))


def students_of(
    settings: Mapping[str, Any],
    out: Path,
    names: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
) -> Iterator[Student]:
    """Yield all students, seed by seed: after the first seed there is a whole table.

    ``names`` are the teachers.  InputError for two of them that would share a folder.
    """
    folders = {name: _folder(name) for name in names}
    for folder, count in Counter(folders.values()).items():
        if count > 1:
            both = " and ".join(repr(name) for name in names if folders[name] == folder)
            raise InputError(
                f"--snapshot: {both} would share the folder {folder}: sweep them apart"
            )
    for seed in seeds:
        for method in methods:
            shared = {**_settings_of(settings, method), "method": method, "seed": seed}
            if not find_method(method).needs_teacher:
                run = out / f"{method}-seed{seed}"
                config = TrainConfig(**shared, out=str(run), snapshot=_views_from(run, names))
                yield Student(method=method, snapshot=None, config=config)
                continue
            for name in names:
                run = out / f"{method}-{folders[name]}-seed{seed}"
                config = TrainConfig(**shared, out=str(run), snapshot=name)
                yield Student(method=method, snapshot=name, config=config)


def _settings_of(settings: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Return the shared settings without the hyper-parameters of other methods."""
    fields = find_method(method).__dataclass_fields__
    others = hyper_parameter_types().keys() - fields.keys()
    taken = {*others, "out", "method", "snapshot", "seed"}
    return {key: value for key, value in settings.items() if key not in taken}


def _refuse_unused(settings: Mapping[str, Any], methods: Sequence[str]) -> None:
    """Refuse a hyper-parameter that no method of the sweep has."""
    chosen = [find_method(method) for method in methods]
    for name in hyper_parameter_types():
        if settings.get(name) is not None and not any(
            name in kind.__dataclass_fields__ for kind in chosen
        ):
            others = [other for other, kind in METHODS.items() if name in kind.__dataclass_fields__]
            raise InputError(
                f"no method of this sweep ({', '.join(methods)}) has {name}: drop "
                f"--{name.replace('_', '-')}, or add {' or '.join(others)} to --methods"
            )


def _folder(name: str) -> str:
    """Return a teacher's text as a part of a folder's name."""
    folder = re.sub(r"[^A-Za-z0-9._+-]+", "_", name).strip("_")
    if len(folder) <= _LONGEST:
        return folder
    return f"{folder[: _LONGEST - 9]}-{sha256(name.encode()).hexdigest()[:8]}"


def _views_from(run: Path, names: Sequence[str]) -> str:
    """Return the snapshot of which a student without a teacher sees the views.

    It is the first one, or that with which the run began: a later call may name other snapshots.
    """
    from logitstore.trainer.run.result import CONFIG

    config = run / CONFIG
    before = TrainConfig.from_toml(config).snapshot if config.is_file() else None
    if before is None or (before not in names and servers_of("", before)):
        return names[0]  # no server is asked that only a file names
    return before
