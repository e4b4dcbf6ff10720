"""A recipe: an experiment of a paper as data and a plain list of ``logitstore`` commands.

This file says what a recipe may hold and refuses one that contradicts itself.  The recipes are in
``recipes/``, ``scaled_recipe`` spells their commands out and ``reproduce`` runs them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from logitstore.errors import InputError, UnknownName

FIGURES = ("test.top1", "test_best.top1", "best.val_accuracy", "test.nll", "test.ece10")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The data, networks and schedules of a recipe at one scale, in the command line's words.

    ``$ROOT`` stands for the folder of the data, ``$OUT`` for the recipe's own and ``$SEED`` for a
    seed.  ``cost`` and ``notes`` are for people, ``needs`` are files below ``$ROOT``.  A teacher of
    no epochs is a checkpoint with the options of its build.
    """

    cost: str
    seeds: int
    needs: tuple[str, ...]
    train: str
    val: str = ""
    test: str
    student: str
    epochs: int
    batch: int
    optimise: str
    normalise: str
    views: str = "--view-spec eval"
    augment: str = ""
    workers: str = ""
    teacher: str = ""
    teacher_data: str = ""
    teacher_epochs: int = 0
    notes: str = ""

    def training(self, epochs: int, optimise: str) -> str:
        """Return the options of a run: its schedule, its batches and what it is measured on."""
        return (
            f"--epochs {epochs} --batch-size {self.batch} {optimise} {self.normalise} "
            f"{self.workers} --val {self.val} --test {self.test}"
        )

    @property
    def learn(self) -> str:
        """Return the command of a student without method and folder."""
        training = self.training(self.epochs, self.optimise)
        return f"train --data {self.train} --student {self.student} {training} --seed $SEED"

    @property
    def taught(self) -> str:
        """Return ``learn`` with the store that ``teacher_steps`` make."""
        return f"{self.learn} --store $OUT/teacher.zarr --snapshot teacher"

    def train_teacher(
        self, network: str, name: str, *, seed: int = 1000, optimise: str | None = None
    ) -> str:
        """Return the command that trains a teacher in ``$OUT/NAME``."""
        training = self.training(self.teacher_epochs, optimise or self.optimise)
        return (
            f"train --data {self.teacher_data} --student {network} --method ce {self.augment} "
            f"{training} --seed {seed} --out $OUT/{name}"
        )

    def build(self, teacher: str, store: str = "teacher", snapshot: str = "teacher") -> str:
        """Return the command that stores a teacher's logits on the students' images."""
        return (
            f"build --teacher {teacher} --data {self.train} {self.views} {self.workers} "
            f"--out $OUT/{store}.zarr --snapshot {snapshot}"
        )

    @property
    def teacher_steps(self) -> tuple[str, ...]:
        """Return the commands that train one teacher, if need be, and store its logits."""
        if not self.teacher_epochs:
            return (self.build(self.teacher),)
        return self.train_teacher(self.teacher, "teacher"), self.build("$OUT/teacher")


@dataclass(frozen=True)
class Effect:
    """A finding of the paper, as a comparison of two rows that is paired by seed."""

    says: str
    row: str
    over: str
    figure: str = FIGURES[0]
    better: Literal["higher", "lower"] = "higher"


@dataclass(frozen=True)
class Scale:
    """The commands of a recipe at one scale, and the rows of its table.

    A step is a command without the word ``logitstore``.  It is run once for each seed if it has
    ``$SEED`` in it, and ``> FILE`` at its end keeps the JSON that it prints.  ``rows`` are labels
    with a run's folder, or a kept file, below ``$OUT``.
    """

    settings: Settings
    steps: tuple[str, ...]
    rows: Mapping[str, str]
    effects: tuple[Effect, ...]

    def has_seeds(self, label: str) -> bool:
        """Say whether a row is one run of each seed; UnknownName if there is no such row."""
        if label not in self.rows:
            raise UnknownName.among("row", label, self.rows)
        return "$SEED" in self.rows[label]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole recipe; its ``scales`` are "small" and "paper".

    ``figures`` are dotted paths into result.json; gains over ``baseline`` are in the first.
    ``published`` is the paper's own table, header first; ``source`` says where it was read.
    Raises InputError or UnknownName for a row or a figure that is not there.
    """

    title: str
    paper: str
    claim: str
    notes: str = ""
    scales: Mapping[str, Scale]
    figures: tuple[str, ...] = FIGURES
    baseline: str | None = None
    source: str
    published: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        for scale in self.scales.values():
            if self.baseline is not None:
                scale.has_seeds(self.baseline)
            for effect in scale.effects:
                self._check(scale, effect)

    @property
    def all_notes(self) -> str:
        """Return the recipe's notes and those of its settings, as one paragraph."""
        settings = (scale.settings.notes for scale in self.scales.values())
        return " ".join(filter(None, (self.notes, *settings)))

    def _check(self, scale: Scale, effect: Effect) -> None:
        if effect.figure not in self.figures:
            raise InputError(f"effect {effect.says!r}: no figure {effect.figure!r} in the table")
        if scale.has_seeds(effect.row) != scale.has_seeds(effect.over):
            raise InputError(f"effect {effect.says!r} compares a row of seeds with a single run")
