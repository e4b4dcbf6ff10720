"""The settings of a build, checked when they are made; no file is opened here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from logitstore.errors import InputError
from logitstore.format.cards import Precision
from logitstore.format.choice import EncodingRequest


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """The settings of ``logitstore build``; None means the default.

    ``teachers`` are checkpoints, folders, globs or training runs; ``arch`` is one spec for all or
    one for each of them, and may be left out for runs of ours.  ``views`` views are made, from
    number ``first_view`` on of the sequence that view spec, size, mix and seed define; ``size``
    None is the preset's own.  ``encoding``, ``max_kl`` (nats) and ``at_temperature`` are an
    ``EncodingRequest``'s.  ``shard_rows`` makes shards smaller than the format's default (a
    power of two), so that an interruption loses less of a slow teacher's work.
    """

    teachers: Sequence[str]
    data: str
    out: str
    arch: Sequence[str] = ()
    snapshots: Sequence[str] = ()
    normalize: str | None = None
    view_spec: str = "eval"
    size: int | None = None
    views: int = 1
    first_view: int = 0
    mix: str | None = None
    seed: int = 0
    encoding: str | None = None
    max_kl: float | None = None
    at_temperature: float | None = None
    batch_size: int = 256
    workers: int | None = None
    device: str | None = None
    precision: Precision = "fp32"
    weights_key: str | None = None
    shard_rows: int | None = None
    fresh: bool = False

    def __post_init__(self) -> None:
        rows = self.shard_rows
        for name, value in (("batch size", self.batch_size), ("views", self.views)):
            if value < 1:
                raise InputError(f"{name} must be at least 1, not {value}")
        if self.workers is not None and self.workers < 0:
            raise InputError(f"workers must not be negative, not {self.workers}")
        if rows is not None and (rows < 1 or rows > 16_384 or rows & (rows - 1)):
            raise InputError(f"shard rows must be a power of two up to 16384, not {rows}")
        if self.first_view < 0:
            raise InputError(f"first view must not be negative, not {self.first_view}")
        _ = self.request

    @property
    def request(self) -> EncodingRequest:
        """What is requested of the encoding; InputError if it contradicts itself."""
        return EncodingRequest(
            text=self.encoding, max_kl=self.max_kl, at_temperature=self.at_temperature
        )
