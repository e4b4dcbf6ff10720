"""Train one student for each snapshot, method and seed, and compare the teachers.

Everything is checked before the first student is trained.  Each is an ordinary run in a folder of
its own, so that the same call goes on where an interrupted one stopped, and repeats nothing.
What is heavy is imported inside the bodies: contradicting settings are refused without torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logitstore.progress import Progress, Silent
from logitstore.storage.durable import write_file
from logitstore.trainer.studies.sweep_students import (
    ALL,
    Student,
    check_settings,
    chosen_teachers,
    students_of,
)
from logitstore.trainer.studies.sweep_table import BASELINE, Finding, Row, find_best, row_of

if TYPE_CHECKING:
    from logitstore.reading.ensemble import Teacher
    from logitstore.reading.store import LogitStore
    from logitstore.trainer.data.source import Source

SUMMARY = "sweep.json"


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The table of a sweep; its rows are in the order of methods, then of snapshots."""

    out: Path
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]
    findings: tuple[Finding, ...]

    def summary(self) -> dict[str, Any]:
        """Return everything as JSON can hold it: what OUT/sweep.json is."""
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
    methods = list(dict.fromkeys([*([BASELINE] if baseline else []), *methods]))
    check_settings(settings, methods)
    from logitstore.reading.opening import open_store
    from logitstore.trainer.run.train import train

    store = open_store(settings["store"], token)
    names = chosen_teachers(store, snapshots)
    seeds = tuple(dict.fromkeys(seeds))
    students = list(students_of(settings, Path(out), names, methods, seeds))
    teachers = _check(store, students, token, progress)
    results = []
    for number, student in enumerate(students, 1):
        progress.message(f"student {number} of {len(students)}: {student.config.out}")
        results.append(train(student.config, token=token, progress=progress))
    groups: dict[tuple[str, str | None], dict[int, Any]] = {}
    for student, result in zip(students, results, strict=True):
        runs = groups.setdefault((student.method, student.snapshot), {})
        runs[student.config.seed] = result
    base = groups.get((BASELINE, None))
    rows = tuple(
        row_of(method, name, None if name is None else _top1(teachers[method, name]), runs, base)
        for (method, name), runs in groups.items()
    )
    finished = Sweep(out=Path(out), seeds=seeds, rows=rows, findings=tuple(find_best(rows, names)))
    document = json.dumps(finished.summary(), indent=2, default=str) + "\n"
    write_file(Path(out) / SUMMARY, document.encode())
    return finished


def _check(
    store: LogitStore, students: Sequence[Student], token: str | None, progress: Progress
) -> dict[tuple[str, str], Teacher]:
    """Refuse what cannot be trained, before anything is, and return the opened teachers."""
    from logitstore.trainer.data.bind import open_source
    from logitstore.trainer.data.requirements import open_suitable_teachers, refuse_mixed_views
    from logitstore.trainer.run.folder import RunFolder

    teachers: dict[tuple[str, str], Teacher] = {}
    sources: dict[bytes, Source] = {}
    for student in students:
        config = student.config.resolved()
        assert config.snapshot is not None
        if (student.method, config.snapshot) in teachers:
            continue
        teacher = open_suitable_teachers(store, config, token).first
        teachers[student.method, config.snapshot] = teacher
        views = b"" if teacher.meta.view is None else teacher.meta.view.to_bytes()
        if views not in sources:
            sources[views] = open_source(config, token)[0]
        refuse_mixed_views(config, sources[views])
    for student in students:
        RunFolder(student.config.out).finished(student.config.resolved())
    if len(sources) > 1:
        progress.message(
            "note: these snapshots hold answers to different views: their students differ by the "
            "images they are shown, too"
        )
    return teachers


def _top1(teacher: Teacher) -> float | None:
    """Return a teacher's accuracy on the store's labels, None if it was not measured."""
    from logitstore.reading.ensemble import Ensemble, leaves

    parts = leaves(teacher)
    if isinstance(teacher, Ensemble) or any(part.meta.top1 is None for part in parts):
        return None
    correct = sum(part.meta.views * (part.meta.top1 or 0.0) for part in parts)
    return correct / sum(part.meta.views for part in parts)
