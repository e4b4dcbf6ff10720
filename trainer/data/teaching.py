"""Who teaches when: the teachers that ``--snapshot`` names, opened and checked against each other.

A plain name and a+b teach exactly as if ``turns`` could say nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from urllib.parse import urlsplit

from logitstore.errors import InputError, MismatchError
from logitstore.format.documents import canonical, first_difference
from logitstore.reading.ensemble import Ensemble, Teacher, leaves, refuse_other_images
from logitstore.reading.opening import chosen_views, open_store
from logitstore.reading.snapshot import Snapshot
from logitstore.reading.store import LogitStore
from logitstore.trainer.config.teacher_spec import TurnSpec, parse_turns
from logitstore.trainer.schedules import teacher_at


@dataclass(frozen=True)
class Teaching:
    """What teaches in each epoch: ``turns`` are (first epoch, teacher), rising from epoch 0.

    MismatchError unless all teachers saw the same images: what is shown does not depend on turns.
    """

    turns: tuple[tuple[int, Teacher], ...]

    def __post_init__(self) -> None:
        for _, later in self.turns[1:]:
            refuse_other_images(self.first, later)

    @classmethod
    def always(cls, teacher: Teacher) -> Teaching:
        """One teacher in every epoch."""
        return cls(((0, teacher),))

    @property
    def first(self) -> Teacher:
        """Who teaches in the first epoch."""
        return self.turns[0][1]

    @property
    def teachers(self) -> tuple[Teacher, ...]:
        """All that teach, in turn."""
        return tuple(teacher for _, teacher in self.turns)

    def at(self, epoch: int) -> Teacher:
        """Who teaches in this epoch, from 0."""
        return teacher_at(epoch, turns=self.turns)

    @property
    def name(self) -> str:
        """The teachers' names, each but the first with its first epoch, from 1."""
        later = [f"{teacher.name}@{first + 1}" for first, teacher in self.turns[1:]]
        return ",".join([self.first.name, *later])

    @property
    def root(self) -> str:
        """The only teacher's root, or the sha256 over the turns' first epochs and roots."""
        if len(self.turns) == 1:
            return self.first.root
        turns = [[first, teacher.root] for first, teacher in self.turns]
        return sha256(canonical(turns)).hexdigest()


def open_teaching(
    store: LogitStore,
    text: str | None,
    *,
    temperature: float | None = None,
    token: str | None = None,
    patience: float = 600.0,
) -> Teaching:
    """The teachers of a text, by the epochs in which they teach; None: the store's only snapshot.

    ``temperature`` is where mean(…) averages.  ``token`` is for the server of ``store``, and never
    sent to another one, unless ``store`` is a path.  UnknownName lists the snapshots there are,
    MismatchError names what does not belong to ``store``'s samples or to the first teacher's
    images; InputError, and what opening another store raises.
    """
    if text is None:
        return Teaching.always(chosen_views(store, None))
    turns = parse_turns(text)
    stores: dict[str | None, LogitStore] = {None: store}
    for location in (member.store for turn in turns for member in turn.members):
        if location not in stores:
            assert location is not None
            theirs = token if _same_server(store.url, location) else None
            stores[location] = open_store(location, theirs, patience=patience)
    opened = Teaching(
        tuple((turn.first, _teacher(turn, stores, temperature)) for turn in turns),
    )
    for leaf in leaves(*opened.teachers):
        _refuse_other_samples(store, leaf)
    return opened


def open_teacher(
    store: LogitStore,
    text: str | None,
    *,
    temperature: float = 1.0,
    token: str | None = None,
    patience: float = 600.0,
) -> Teacher:
    """As ``open_teaching``, of a text without epochs."""
    if text is not None and len(parse_turns(text)) > 1:
        raise InputError(
            f"--snapshot {text!r} is a schedule over the epochs of a training run: name one of its "
            "turns, to be measured against it"
        )
    opened = open_teaching(store, text, temperature=temperature, token=token, patience=patience)
    return opened.first


def _teacher(
    turn: TurnSpec, stores: dict[str | None, LogitStore], temperature: float | None
) -> Teacher:
    parts = [chosen_views(stores[member.store], "+".join(member.names)) for member in turn.members]
    if turn.kind is None:
        return parts[0]
    return Ensemble(parts, [member.weight for member in turn.members], turn.kind, temperature)


def _same_server(url: str, other: str) -> bool:
    """Whether a token for the first may go to the second; a path has no server to be kept to."""
    here, there = urlsplit(url), urlsplit(other)
    return not here.netloc or (here.scheme, here.netloc) == (there.scheme, there.netloc)


def _refuse_other_samples(store: LogitStore, leaf: Snapshot) -> None:
    difference = first_difference(store.meta, leaf.store_meta)
    if difference:
        field, there, here = difference
        raise MismatchError(
            f"{leaf.name} of {leaf.url} does not answer for the samples of {store.url}: {field} is "
            f"{there!r} there and {here!r} here: build both from one dataset"
        )
