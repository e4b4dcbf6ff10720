"""Keep a run's files, each written whole or not at all, and say whether the run may go on.

config.toml                 the resolved TrainConfig
rows.json                   whether all rows of the teacher were proven so far
inputs.json                 what its specs turned out to be: digests, root, classes, device
metrics.jsonl               one line per finished epoch; the same scalars as TensorBoard events
checkpoints/last.safetensors
snapshots/epoch-0005.safetensors, best.safetensors, model.safetensors, result.json
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from logitstore.errors import Damaged, InputError, MismatchError, NotFound
from logitstore.format.documents import canonical, first_difference
from logitstore.storage import open_storage
from logitstore.storage.durable import os_errors_as_ours
from logitstore.storage.local import is_temporary
from logitstore.storage.plain_files import read_plain
from logitstore.trainer.config.settings import EXECUTION, TrainConfig, settings
from logitstore.trainer.run.result import (
    CONFIG,
    INPUTS,
    LAST,
    LOCK,
    METRICS,
    MODEL,
    RESULT,
    ROWS,
    Inputs,
    Line,
    Result,
)

PROVEN = "proven"
"""What ``teacher_rows`` of a run's result is if no server was believed."""

_MOST_BYTES = 256 << 20
"""Bytes of the longest of a run's records, such as the lines of a hundred thousand epochs."""

_LINE = {"epoch", "images_per_second"}
"""Figures that each epoch's line has."""

_ONE_RUN_EACH = "use another --out, or give the same arguments"


class RunFolder:
    """The files of one run, new, interrupted or finished."""

    def __init__(self, out: str) -> None:
        self.path = Path(out)
        self._storage = open_storage(out)

    def finished(self, config: TrainConfig) -> Result | None:
        """Return the result if this very run is finished; write nothing.

        MismatchError if another run is here, InputError if something else is.
        """
        with os_errors_as_ours(str(self.path), CONFIG):
            begun = (self.path / CONFIG).is_file()
        if not begun:
            keys = self._storage.keys()
            other = next((key for key in keys if key != LOCK and not is_temporary(key)), None)
            if other is not None:
                raise InputError(
                    f"{self.path}: not empty and not a training run (there is {other}, and no "
                    f"{CONFIG}): use another --out"
                )
            return None
        self._refuse_other(config)
        try:
            document = _json(self.path / RESULT, self._read(RESULT))
        except NotFound:
            return None
        known = {field.name for field in fields(Result)} - {"run"}
        document = {key: value for key, value in document.items() if key in known}
        try:
            TypeAdapter(Result).validate_python({**document, "run": self.path})
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise _not_whole(self.path / RESULT, f"{place}: {first['msg']}") from None
        lists = {key: tuple(value) for key, value in document.items() if isinstance(value, list)}
        return Result(run=self.path, **{**document, **lists})

    def _read(self, key: str) -> bytes:
        return read_plain(self.path / key, _MOST_BYTES)

    def inputs(self) -> Inputs | None:
        """Return what the run was begun with, None if it has not begun."""
        try:
            return Inputs.parse(f"{self.path}/{INPUTS}", self._read(INPUTS))
        except NotFound:
            return None

    def store(self) -> str | None:
        """Return the store that the run was begun with; another place may hold another root."""
        return TrainConfig.from_toml(self.path / CONFIG).store

    def begin(self, config: TrainConfig, inputs: Inputs) -> None:
        """Write down what the run is; MismatchError if another one was begun here."""
        if self.finished(config) is None and not (self.path / CONFIG).is_file():
            self.put(CONFIG, config.to_toml().encode())
        recorded = self.inputs()
        if recorded is None:
            self.put(INPUTS, inputs.to_bytes())
            return
        difference = first_difference(recorded, inputs)
        if difference:
            field, before, now = difference
            raise MismatchError(
                f"{self.path} was begun with {field} {before!r}, which is {now!r} now: "
                "bring the former back, or use another --out"
            )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes out of this run; the lock ends with its process, however it ends."""
        with os_errors_as_ours(str(self.path), LOCK):
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except FileNotFoundError as error:  # in /proc, where nothing can be made
                raise InputError(f"{self.path}: no folder can be made there: {error}") from error
            file = open(self.path / LOCK, "w")  # noqa: SIM115  # closed below
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"{self.path}: another process is training in this folder: wait for it, or use "
                    "another --out"
                ) from None
            self._storage.sweep(emptied="checkpoints/")
            yield

    def put(self, key: str, data: bytes) -> None:
        """Write a file of the run, whole or not at all; Unfinished when the disk is full."""
        self._storage.put(key, data)

    def checkpoint(self) -> Path | None:
        """Return the path of the last checkpoint, None if there is none yet."""
        return self.path / LAST if (self.path / LAST).is_file() else None

    def history(self, epochs: int | None = None) -> list[Line]:
        """Return the metrics of the first ``epochs`` epochs (None: of all), one line each.

        A line is written before its epoch's checkpoint, so an interruption may leave one too many.
        """
        try:
            lines = self._read(METRICS).decode(errors="replace").splitlines()[:epochs]
        except NotFound:
            lines = []
        if epochs is not None and len(lines) < epochs:
            raise Damaged(
                f"{self.path}: {METRICS} has {len(lines)} lines, the checkpoint is after epoch "
                f"{epochs}: bring the file back, or use another --out"
            )
        history = [_json(self.path / METRICS, line) for line in lines]
        for line in history:
            if not line.keys() >= _LINE or not all(map(_is_number, line.values())):
                raise _not_whole(self.path / METRICS, "a line holds no epoch's figures")
        return history

    def put_history(self, lines: list[Line]) -> None:
        """Write the metrics of all epochs so far."""
        self.put(METRICS, "".join(json.dumps(line) + "\n" for line in lines).encode())

    def put_result(self, result: Result) -> None:
        document = asdict(result)
        del document["run"]
        self.put(RESULT, (json.dumps(document, indent=2) + "\n").encode())

    def note_rows(self, *, proven: bool) -> None:
        """Note whether the teacher's rows are proven from here on: a run's are if all were.

        Of steps that no note is of, which an earlier version took, nothing is known.
        """
        before = self.checkpoint() is None or self.teacher_rows() == PROVEN
        self.put(ROWS, canonical({"proven": before and proven}))

    def teacher_rows(self) -> str | None:
        """Return "proven" or "not proven", or None without a note."""
        try:
            note = _json(self.path / ROWS, self._read(ROWS))
        except NotFound:
            return None
        return PROVEN if note.get("proven") is True else "not proven"

    def _refuse_other(self, config: TrainConfig) -> None:
        recorded = TrainConfig.from_toml(self.path / CONFIG)
        for name in settings():
            before, now = getattr(recorded, name), getattr(config, name)
            if name not in EXECUTION and before != now:
                raise MismatchError(
                    f"{self.path} is a run with {name} = {before!r}, asked for is {now!r}: "
                    f"{_ONE_RUN_EACH}"
                )
        if (recorded.store is None) != (config.store is None):
            raise MismatchError(
                f"{self.path} is a run {'without' if recorded.store is None else 'with'} a store, "
                f"asked for is one {'without' if config.store is None else 'with'}: {_ONE_RUN_EACH}"
            )


def _json(path: Path, text: str | bytes) -> dict[str, Any]:
    """Read a JSON object; Damaged if it is none."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _not_whole(path, str(error)) from None
    if not isinstance(document, dict):
        raise _not_whole(path, f"a {type(document).__name__}, no object")
    return document


def _not_whole(path: Path, what: str) -> Damaged:
    return Damaged(f"{path}: not whole ({what}): bring it back, or train again in another folder")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | None)


def weights_file(path: Path) -> Path:
    """Return a run's last weights, or the path itself if it is no folder; NotFound without any."""
    if not path.is_dir():
        return path
    if not (path / CONFIG).is_file():
        raise NotFound(f"{path}: no training run is here (no {CONFIG})")
    if not (path / MODEL).is_file():
        raise NotFound(
            f"{path}: this run is not finished: finish it with the same command, or give its "
            "best.safetensors or one of its snapshots/*.safetensors"
        )
    return path / MODEL


def run_of(path: Path) -> Path | None:
    """Return the run that a weights file lies in, None if it lies in none."""
    for run in (path.parent, path.parent.parent):
        if (run / CONFIG).is_file() and (run / INPUTS).is_file():
            return run
    return None
