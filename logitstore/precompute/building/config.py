"""The settings of a build, checked when they are made; no file is opened here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from logitstore.errors import InputError
from logitstore.format.cards import Precision
from logitstore.format.choice import EncodingRequest
from logitstore.values import Count, WholeNumber, check_values


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
    views: Count = 1
    first_view: WholeNumber = 0
    mix: str | None = None
    seed: int = 0
    encoding: str | None = None
    max_kl: float | None = None
    at_temperature: float | None = None
    batch_size: Count = 256
    workers: WholeNumber | None = None
    device: str | None = None
    precision: Precision = "fp32"
    weights_key: str | None = None
    shard_rows: Annotated[int, Field(ge=1, le=16_384)] | None = None
    fresh: bool = False

    def __post_init__(self) -> None:
        check_values(self)
        if self.shard_rows is not None and self.shard_rows.bit_count() != 1:
            raise InputError(f"shard_rows must be a power of two, not {self.shard_rows}")
        _ = self.request

    @property
    def request(self) -> EncodingRequest:
        """What is requested of the encoding; InputError if it contradicts itself."""
        return EncodingRequest(
            text=self.encoding, max_kl=self.max_kl, at_temperature=self.at_temperature
        )
