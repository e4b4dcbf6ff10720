"""One student for each snapshot, method and seed: which epoch of the teacher teaches best?

Everything is checked before the first student is trained.  Each is an ordinary run in a folder of
its own, so that the same call goes on where an interrupted one stopped, and repeats nothing.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path
from typing import Any

from logitstore.errors import InputError, UnknownName
from logitstore.precompute.networks.teachers import natural_order
from logitstore.progress import Progress, Silent
from logitstore.reading.ensemble import Ensemble, Teacher, leaves
from logitstore.reading.opening import open_store
from logitstore.reading.store import LogitStore
from logitstore.storage.durable import write_file
from logitstore.trainer.config.settings import TrainConfig
from logitstore.trainer.config.teacher_spec import parse_teachers, split_teachers
from logitstore.trainer.data.bind import open_source
from logitstore.trainer.data.requirements import open_suitable_teachers, refuse_mixed_views
from logitstore.trainer.data.source import Source
from logitstore.trainer.methods.table import METHODS, find_method, hyper_parameter_types
from logitstore.trainer.run.folder import RunFolder
from logitstore.trainer.run.result import CONFIG
from logitstore.trainer.run.train import train
from logitstore.trainer.studies.sweep_table import BASELINE, Finding, Row, find_best, row_of

ALL = "all"


SUMMARY = "sweep.json"


_PATTERN = "*?["


_LONGEST = 100


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One student; ``snapshot`` is who teaches it, None: nobody."""

    method: str
    snapshot: str | None
    config: TrainConfig


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Finished students.  ``rows`` are in the order of methods, then of snapshots."""

    out: Path
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]
    findings: tuple[Finding, ...]

    def summary(self) -> dict[str, Any]:
        """Everything as JSON can hold it: what OUT/sweep.json is."""
        return {**asdict(self), "out": str(self.out)}


def sweep(
    settings: Mapping[str, Any],
    out: str | Path,
    *,
    snapshots: str = ALL,
    methods: Sequence[str] = ("kd",),
    seeds: Sequence[int] = (0, 1, 2),
    baseline: bool = True,
    token: str | None = None,
    progress: Progress | None = None,
) -> Sweep:
    """Train one student for each snapshot, method and seed, and say which snapshot teaches best.

    ``settings`` are ``TrainConfig``'s fields that all students share; a hyper-parameter goes to the
    methods that have it.  ``snapshots`` is a comma list of names, patterns and ensembles, or "all".
    A method without a teacher trains one student for each seed; with ``baseline`` ``ce`` is one.
    OUT/METHOD-SNAPSHOT-seedN are the runs.

    Raises InputError, UnknownName or MismatchError before any training, and what ``train`` raises.

    >>> sweep(dict(data="digits?train=true", val="digits?train=false", store="digits.zarr",
    ...            student="mlp"), "runs/sweep").findings[0].best           # doctest: +SKIP
    'epoch-0005'
    """
    progress = progress or Silent()
    if settings.get("store") is None:
        raise InputError("a sweep compares a store's snapshots as teachers: give --store STORE")
    store = open_store(settings["store"], token)
    names = chosen_teachers(store, snapshots)
    chosen = dict.fromkeys([*([BASELINE] if baseline else []), *methods])
    cells = list(_cells(settings, Path(out), names, list(chosen), list(dict.fromkeys(seeds))))
    teachers = _check(store, cells, token, progress)
    results = []
    for number, cell in enumerate(cells, 1):
        progress.message(f"student {number} of {len(cells)}: {cell.config.out}")
        results.append(train(cell.config, token=token, progress=progress))
    groups: dict[tuple[str, str | None], dict[int, Any]] = {}
    for cell, result in zip(cells, results, strict=True):
        groups.setdefault((cell.method, cell.snapshot), {})[cell.config.seed] = result
    base = groups.get((BASELINE, None))
    rows = tuple(
        row_of(method, name, None if name is None else _top1(teachers[method, name]), runs, base)
        for (method, name), runs in groups.items()
    )
    found = Sweep(
        out=Path(out),
        seeds=tuple(dict.fromkeys(seeds)),
        rows=rows,
        findings=tuple(find_best(rows, names)),
    )
    document = json.dumps(found.summary(), indent=2, default=str) + "\n"
    write_file(Path(out) / SUMMARY, document.encode())
    return found


def chosen_teachers(store: LogitStore, text: str) -> list[str]:
    """The teachers of a comma list, each once, in natural order; UnknownName for an absent one."""
    known = list(store.snapshots)
    found: list[str] = []
    for piece in split_teachers(text):
        if piece == ALL:
            found += known
        elif "(" not in piece and any(mark in piece for mark in _PATTERN):
            matching = [name for name in known if fnmatchcase(name, piece)]
            if not matching:
                raise UnknownName.among(f"snapshot in {store.url} like", piece, known)
            found += matching
        elif "@" in piece.rpartition("::")[2]:
            raise InputError(
                f"--snapshot {text!r}: {piece!r} is a stage of a schedule, and commas stand "
                "between the teachers of different students here: train a schedule with "
                "`logitstore train`"
            )
        else:
            parse_teachers(piece)
            found.append(piece)
    if not found:
        raise InputError(f"{store.url} has no committed snapshot to teach: build one first")
    return sorted(dict.fromkeys(found), key=lambda name: natural_order(Path(name)))


def _cells(
    settings: Mapping[str, Any],
    out: Path,
    names: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
) -> Iterator[Cell]:
    """All students, seed by seed: after the first seed there is a whole table."""
    _refuse_strange(settings, methods)
    folders = {name: _folder(name) for name in names}
    for folder, count in Counter(folders.values()).items():
        if count > 1:
            both = " and ".join(repr(name) for name in names if folders[name] == folder)
            raise InputError(
                f"--snapshot: {both} would share the folder {folder}: sweep them apart"
            )
    for seed in seeds:
        for method in methods:
            given = {**_settings_of(settings, method), "method": method, "seed": seed}
            if not find_method(method).needs_teacher:
                where = out / f"{method}-seed{seed}"
                config = TrainConfig(**given, out=str(where), snapshot=_shown_by(where, names))
                yield Cell(method=method, snapshot=None, config=config)
                continue
            for name in names:
                where = out / f"{method}-{folders[name]}-seed{seed}"
                config = TrainConfig(**given, out=str(where), snapshot=name)
                yield Cell(method=method, snapshot=name, config=config)


def _settings_of(settings: Mapping[str, Any], method: str) -> dict[str, Any]:
    """The shared settings without the hyper-parameters that are other methods'."""
    own = find_method(method).__dataclass_fields__
    others = hyper_parameter_types().keys() - own.keys()
    taken = {*others, "out", "method", "snapshot", "seed"}
    return {key: value for key, value in settings.items() if key not in taken}


def _refuse_strange(settings: Mapping[str, Any], methods: Iterable[str]) -> None:
    """InputError for a hyper-parameter that no method of the sweep has."""
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
    """A teacher's text as a part of a folder's name, of at most 100 characters."""
    folder = re.sub(r"[^A-Za-z0-9._+-]+", "_", name).strip("_")
    if len(folder) <= _LONGEST:
        return folder
    return f"{folder[: _LONGEST - 9]}-{sha256(name.encode()).hexdigest()[:8]}"


def _shown_by(folder: Path, names: Sequence[str]) -> str:
    """Whose views a student without a teacher sees: the first one's, or those it began with.

    A later call may name other snapshots, or the store have grown; what was trained serves on.
    """
    begun = folder / CONFIG
    kept = TrainConfig.from_toml(begun).snapshot if begun.is_file() else None
    return kept or names[0]


def _check(
    store: LogitStore, cells: Sequence[Cell], token: str | None, progress: Progress
) -> dict[tuple[str, str], Teacher]:
    """Refuse what could not be trained, before anything is; the opened teachers."""
    teachers: dict[tuple[str, str], Teacher] = {}
    shown: dict[bytes, Source] = {}
    for cell in cells:
        config = cell.config.resolved()
        if config.val is None:
            raise InputError(
                "students are compared on validation data: give --val DATA, or --val split:0.1"
            )
        assert config.snapshot is not None
        if (cell.method, config.snapshot) in teachers:
            continue
        teacher = open_suitable_teachers(store, config, token).first
        teachers[cell.method, config.snapshot] = teacher
        views = b"" if teacher.meta.view is None else teacher.meta.view.to_bytes()
        if views not in shown:
            shown[views] = open_source(config, token)[0]
        refuse_mixed_views(config, shown[views])
    for cell in cells:
        RunFolder(cell.config.out).finished(cell.config.resolved())
    if len(shown) > 1:
        progress.message(
            "note: these snapshots hold answers to different views: their students differ by the "
            "images they are shown, too"
        )
    return teachers


def _top1(teacher: Teacher) -> float | None:
    """A teacher's accuracy on the store's labels; of an ensemble nobody measured it."""
    parts = leaves(teacher)
    if isinstance(teacher, Ensemble) or any(part.meta.top1 is None for part in parts):
        return None
    correct = sum(part.meta.views * (part.meta.top1 or 0.0) for part in parts)
    return correct / sum(part.meta.views for part in parts)
