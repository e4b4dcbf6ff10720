"""Open the teachers that ``--snapshot`` names, and say which of them teaches in which epoch.

One teacher for the whole run is a schedule of one stage: nothing else distinguishes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from urllib.parse import urlsplit

from logitstore.cache.cache import Cache
from logitstore.cache.prepare import prepare_readings
from logitstore.cache.readers import RowReader, TeacherReader
from logitstore.format.documents import canonical
from logitstore.progress import Progress
from logitstore.reading.ensemble import Ensemble, Teacher, refuse_other_images
from logitstore.reading.opening import NO_TOKEN, chosen_views, open_store
from logitstore.reading.store import LogitStore
from logitstore.trainer.config.teacher_spec import Stage, parse_teachers
from logitstore.trainer.schedules import teacher_at


@dataclass(frozen=True)
class TeachingSchedule:
    """The teachers of a run, each with the first epoch in which it teaches, from 0 on.

    ``readers`` read the teachers' rows; empty: the teachers themselves do.  MismatchError unless
    all teachers saw the same images: these do not depend on the epoch.
    """

    teachers: tuple[Teacher, ...]
    first_epochs: tuple[int, ...] = (0,)
    readers: tuple[TeacherReader, ...] = ()

    def __post_init__(self) -> None:
        for later in self.teachers[1:]:
            refuse_other_images(self.first, later)

    @property
    def first(self) -> Teacher:
        """The teacher of the first epoch."""
        return self.teachers[0]

    def reader(self, epoch: int) -> RowReader:
        """Return what reads the rows of this epoch's teacher; epochs count from 0."""
        readers: Sequence[RowReader] = self.readers or self.teachers
        return teacher_at(epoch, turns=tuple(zip(self.first_epochs, readers, strict=True)))

    @property
    def proven(self) -> bool:
        """Whether all rows are compared with what the teachers' roots cover."""
        return all(reader.proven for reader in self.readers)

    def prepared(
        self, read: str, cache: Cache, progress: Progress, *, only_proven: bool = False
    ) -> TeachingSchedule:
        """Return this schedule with a prepared reader of each teacher, all in one mode."""
        readers = prepare_readings(self.teachers, read, cache, progress, only_proven=only_proven)
        return replace(self, readers=readers)

    def close(self) -> None:
        """Close all readers."""
        for reader in self.readers or self.teachers:
            reader.close()

    @property
    def name(self) -> str:
        """The teachers' names, each but the first with its first epoch, from 1."""
        stages = zip(self.first_epochs, self.teachers, strict=True)
        return ",".join(f"{t.name}@{first + 1}" if first else t.name for first, t in stages)

    @property
    def root(self) -> str:
        """The only teacher's root, or the sha256 over all first epochs and roots."""
        if len(self.teachers) == 1:
            return self.first.root
        roots = [teacher.root for teacher in self.teachers]
        stages = [[first, root] for first, root in zip(self.first_epochs, roots, strict=True)]
        return sha256(canonical(stages)).hexdigest()


def open_schedule(
    store: LogitStore,
    text: str | None,
    *,
    temperature: float | None = None,
    token: str | None = None,
    patience: float = 600.0,
) -> TeachingSchedule:
    """Open the teachers of a text, by the epochs in which they teach; None: the only snapshot.

    mean(…) averages distributions at ``temperature``.  ``token`` is for the server of ``store``; no
    other server gets it, unless ``store`` is a path.  UnknownName lists the snapshots of a store,
    MismatchError a teacher that saw other images than the first one.  Raises InputError too, and
    what opening another store raises.
    """
    if text is None:
        return TeachingSchedule((chosen_views(store, None),))
    stages = parse_teachers(text)
    stores: dict[str | None, LogitStore] = {None: store}
    for location in (member.store for stage in stages for member in stage.members):
        if location not in stores:
            assert location is not None
            allowed = token if _same_server(store.url, location) else NO_TOKEN
            stores[location] = open_store(location, allowed, patience=patience)
    return TeachingSchedule(
        teachers=tuple(_teacher(stage, stores, temperature) for stage in stages),
        first_epochs=tuple(stage.first for stage in stages),
    )


def _teacher(
    stage: Stage, stores: dict[str | None, LogitStore], temperature: float | None
) -> Teacher:
    parts = [chosen_views(stores[member.store], "+".join(member.names)) for member in stage.members]
    if stage.kind is None:
        return parts[0]
    return Ensemble(parts, [member.weight for member in stage.members], stage.kind, temperature)


def _same_server(url: str, other: str) -> bool:
    """Return whether a token for the first may go to the second; a path keeps it to no server."""
    first, second = urlsplit(url), urlsplit(other)
    return not first.netloc or (first.scheme, first.netloc) == (second.scheme, second.netloc)
