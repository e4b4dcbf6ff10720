"""Read runs' folders, and choose the data that their diagrams are drawn on.

Nothing is computed here, and nothing is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from logitstore.errors import Damaged, InputError, MismatchError, NotFound
from logitstore.trainer.config.settings import TrainConfig
from logitstore.trainer.config.specs import split_share
from logitstore.trainer.reporting.style import MOST_RUNS
from logitstore.trainer.run.folder import RunFolder
from logitstore.trainer.run.result import (
    BEST,
    CONFIG,
    INPUTS,
    MODEL,
    Inputs,
    Line,
    Result,
    best_epoch,
)


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The contents of a run's folder; ``number`` decides its colour, ``name`` is unique.

    ``inputs`` is None if the run has not begun, ``result`` unless it is finished.
    """

    number: int
    name: str
    path: Path
    config: TrainConfig
    inputs: Inputs | None
    history: tuple[Line, ...]
    result: Result | None

    @property
    def best_epoch(self) -> int | None:
        """The epoch, from 1, with the best validation accuracy so far."""
        return best_epoch(self.history)

    def weights(self) -> dict[str, Path]:
        """Return the weights of the ``last`` epoch, and of the ``best`` if it is another."""
        if self.result is None:
            return {}
        weights = {"last": self.path / MODEL}
        if self.best_epoch not in (None, self.result.epochs):
            weights["best"] = self.path / BEST
        return weights


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """The samples that all diagrams show: those of ``spec``, which may be split:SHARE.

    ``held_out`` are then the data that they were held out of, and the seed.  ``typed``: a user
    named them, not the runs' files.
    """

    spec: str
    typed: bool = False
    held_out: tuple[str, int] | None = None

    def __str__(self) -> str:
        if self.held_out is None:
            return self.spec
        return f"{self.spec} of {self.held_out[0]} (limit_seed {self.held_out[1]})"


def read_runs(paths: Sequence[str | Path]) -> list[RunRecord]:
    """Read runs, finished or not.

    NotFound for a folder that is no run; InputError for none, too many or the same one twice;
    MismatchError for runs of different classes; Damaged for files that are not whole.
    """
    folders = [Path(path) for path in paths]
    if not 1 <= len(folders) <= MOST_RUNS:
        raise InputError(
            f"{len(folders)} runs: a report tells 1 to {MOST_RUNS} runs apart; give fewer of them"
        )
    places = [folder.resolve() for folder in folders]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise InputError(f"{folders[number]}: this run is given twice: name each run once")
    names = _names(folders)
    records = [_read(number, names[number], folder) for number, folder in enumerate(folders)]
    _refuse_other_classes(records)
    return records


def chosen_data(runs: Sequence[RunRecord], data: str | None) -> ReportData | None:
    """Return ``data``, or else the finished runs' test or validation data; None without any.

    MismatchError if these differ between runs, as they could not be compared.
    """
    if data is not None:
        return ReportData(spec=data, typed=True)
    finished = [(run, _own_data(run.config)) for run in runs if run.result is not None]
    known = [(run, measured) for run, measured in finished if measured is not None]
    for run, measured in known[1:]:
        first, expected = known[0]
        if measured != expected:
            raise MismatchError(
                f"{first.path} was measured on {expected}, {run.path} on {measured}: say with "
                "--data DATA on what all of them are compared, or report them apart"
            )
    return known[0][1] if known else None


def _own_data(config: TrainConfig) -> ReportData | None:
    if config.test is not None:
        return ReportData(spec=config.test)
    if config.val is None:
        return None
    split = split_share(config.val) is not None
    return ReportData(spec=config.val, held_out=(config.data, config.limit_seed) if split else None)


def _read(number: int, name: str, folder: Path) -> RunRecord:
    if not (folder / CONFIG).is_file():
        raise NotFound(f"{folder}: no training run is here (no {CONFIG})")
    config = TrainConfig.from_toml(folder / CONFIG)
    files = RunFolder(str(folder))
    inputs, result = files.inputs(), files.finished(config)
    if result is not None and inputs is None:
        raise Damaged(f"{folder}: a finished run without its {INPUTS}: bring the file back")
    return RunRecord(
        number=number,
        name=name,
        path=folder,
        config=config,
        inputs=inputs,
        history=tuple(files.history()),
        result=result,
    )


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-depth:]) for each in parts]
        if len(set(names)) == len(names):
            break
    return names


def _refuse_other_classes(runs: Sequence[RunRecord]) -> None:
    begun = [run for run in runs if run.inputs is not None]
    for run in begun[1:]:
        first = begun[0]
        assert first.inputs is not None
        assert run.inputs is not None
        ours = (first.inputs.classes, first.inputs.class_names)
        theirs = (run.inputs.classes, run.inputs.class_names)
        if ours != theirs:
            raise MismatchError(
                f"{first.path} has {_classes(*ours)}, {run.path} has {_classes(*theirs)}: runs "
                "side by side have the same classes; report them apart"
            )


def _classes(count: int, names: tuple[str, ...] | None) -> str:
    listed = f" ({', '.join(names[:5])}{', …' if count > 5 else ''})" if names else ""
    return f"{count} classes{listed}"
