"""Read several teachers as one: the mean of their logits, or of their distributions.

The members may lie in several stores, local or served, in several encodings.  They must have seen
the same images of the same samples: a mean over different images would mean nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from hashlib import sha256
from math import isfinite, log
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from logitstore.errors import InputError, MismatchError, UnknownName
from logitstore.format.documents import canonical, first_difference
from logitstore.format.encodings.base import Logits
from logitstore.format.encodings.rows import Rows
from logitstore.format.fidelity import log_softmax
from logitstore.reading.continued import Continued
from logitstore.reading.snapshot import Snapshot

if TYPE_CHECKING:
    from torch import Tensor


Kind = Literal["arithmetic", "geometric"]
"""The mean's operands: distributions (arithmetic) or logits (geometric)."""

KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, kw_only=True)
class Blend:
    """Holds every member's encoded rows of some samples; they are averaged when decoded.

    ``weights`` sum to 1.  ``temperature`` is where the distributions are averaged; None: the logits
    themselves are, which is the geometric mean of the distributions at every temperature.
    """

    members: tuple[Rows, ...]
    weights: tuple[float, ...]
    temperature: float | None

    def __len__(self) -> int:
        return len(self.members[0])

    def part(self, span: slice) -> Blend:
        """Return some of the samples."""
        return replace(self, members=tuple(rows.part(span) for rows in self.members))

    @classmethod
    def joined(cls, parts: Sequence[Blend], order: ArrayLike) -> Blend:
        """Join parts of one ensemble: sample i is number ``order[i]`` of all parts in a row."""
        columns = zip(*(part.members for part in parts), strict=True)
        return replace(parts[0], members=tuple(Rows.joined(column, order) for column in columns))

    def logits(self) -> Logits:
        """Decode and average in NumPy: float32 (N, C); Damaged if these cannot be such rows."""
        mean = self._mean([rows.logits() for rows in self.members], np.logaddexp, log_softmax)
        return np.asarray(mean, np.float32)

    def tensor(self, device: Any = "cpu") -> Tensor:
        """Decode and average on ``device``; only the codes cross the bus.  float32 (N, C).

        On a CPU the last bit of a mean of distributions may depend on the rows beside it: torch
        computes ``logaddexp`` in vectors of several numbers and the rest one by one.
        """
        import torch

        decoded = [rows.tensor(device) for rows in self.members]
        mean: Tensor = self._mean(decoded, torch.logaddexp, lambda logits: logits.log_softmax(1))
        return mean

    def _mean(
        self,
        decoded: Sequence[Any],
        logaddexp: Callable[[Any, Any], Any],
        log_softmax: Callable[[Any], Any],
    ) -> Any:
        """Return the sum of w z (geometric) or T log(sum of w softmax(z/T)) (arithmetic)."""
        weighed = zip(self.weights, decoded, strict=True)
        if self.temperature is None:
            return reduce(lambda total, term: total + term, (w * z for w, z in weighed))
        logs = (log(w) + log_softmax(z / self.temperature) for w, z in weighed)
        return self.temperature * reduce(logaddexp, logs)


class Ensemble:
    """Reads the weighted mean of several teachers; ``meta`` and ``rows`` are as a Snapshot's.

    ``kind``: "geometric" averages logits (exact at every temperature); "arithmetic" averages the
    distributions at ``temperature``, which only it needs, so that its logits stand for their mean
    at that temperature and no other (Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 1, name
    both).  ``weights`` (None: equal) are scaled to sum to 1.

    ``root`` is the sha256 over kind, temperature, weights and the members' roots.  What ``meta``
    says of one teacher and its encoding is said of the first member.  Raises InputError,
    UnknownName, or MismatchError naming the first thing in which a member differs.

    >>> teacher = Ensemble([a, b], kind="arithmetic", temperature=4)      # doctest: +SKIP
    >>> teacher.logits([3, 1, 4]).shape                                   # doctest: +SKIP
    (3, 10)
    """

    def __init__(
        self,
        parts: Sequence[Snapshot | Continued],
        weights: Sequence[float] | None = None,
        kind: Kind = "geometric",
        temperature: float | None = None,
    ) -> None:
        if not parts:
            raise InputError("an ensemble has at least one member: name a snapshot")
        if kind not in KINDS:
            raise UnknownName.among("kind of ensemble", kind, KINDS)
        for other in parts[1:]:
            refuse_other_images(parts[0], other)
        self.parts = tuple(parts)
        self.kind, self.temperature = kind, _temperature(kind, temperature)
        self.weights = _shares([1.0] * len(parts) if weights is None else weights, len(parts))
        self.name = f"{kind} mean of {' and '.join(part.name for part in parts)}"
        self.root = sha256(
            canonical([kind, self.temperature, self.weights, [part.root for part in parts]])
        ).hexdigest()
        self.store_meta = parts[0].store_meta
        self.meta = parts[0].meta.model_copy(update={"name": self.name, "top1": None})

    def __repr__(self) -> str:
        return f"<Ensemble: {self.name}>"

    def rows(self, indices: ArrayLike, view: int = 0) -> Blend:
        """Return the encoded rows of every member, to be averaged."""
        return self.blend(part.rows(indices, view) for part in self.parts)

    def blend(self, members: Iterable[Rows]) -> Blend:
        """Return what averages these rows, one of each member, as this ensemble does."""
        return Blend(members=tuple(members), weights=self.weights, temperature=self.temperature)

    def logits(self, indices: ArrayLike, view: int = 0) -> Logits:
        """Return the mean as float32 (len(indices), C)."""
        return self.rows(indices, view).logits()

    def close(self) -> None:
        """Let go of the members' decoded shards."""
        for part in self.parts:
            part.close()


Teacher = Snapshot | Continued | Ensemble
"""Has logits for every sample and view: ``name``, ``root``, ``meta``, ``rows``, ``logits``."""


def leaves(*teachers: Teacher) -> tuple[Snapshot, ...]:
    """Return the stored snapshots that these teachers are made of, each once."""
    snapshots: dict[Snapshot, None] = {}
    for teacher in teachers:
        inner = (teacher,) if isinstance(teacher, Snapshot) else leaves(*teacher.parts)
        snapshots |= dict.fromkeys(inner)
    return tuple(snapshots)


def refuse_other_images(first: Teacher, other: Teacher) -> None:
    """Raise MismatchError unless both hold logits of the same views, samples and classes."""
    difference = first_difference(first.store_meta, other.store_meta)
    if difference:
        remedy = _REMEDIES[re.split(r"[.\[]", difference[0])[0]]
    elif first.meta.views != other.meta.views:
        difference = ("views", first.meta.views, other.meta.views)
        remedy = "build both with as many --views"
    else:
        difference = _view_difference(first, other)
        remedy = "build both with one --view-spec, --size, --mix, --seed and --first-view"
    if difference:
        field, of_first, of_other = difference
        raise MismatchError(
            f"{_located(other)} cannot teach together with {_located(first)}: {field} is "
            f"{of_first!r} there and {of_other!r} here: {remedy}"
        )


_REMEDIES = {
    "format_version": "build both with one version of logitstore",
    "dataset": "build both from one dataset",
    "classes": "build both from one dataset, with teachers of its classes",
    "class_names": "build both from one dataset, whose classes bear the same names",
}
"""The remedy for stores that differ in a field."""


def _view_difference(first: Teacher, other: Teacher) -> tuple[str, object, object] | None:
    ours, theirs = first.meta.view, other.meta.view
    if ours is None or theirs is None:
        of_first, of_other = ("unknown" if card is None else "recorded" for card in (ours, theirs))
        return None if of_first == of_other else ("view", of_first, of_other)
    plain = {"canaries": ()}  # they differ because of what differs before them
    difference = first_difference(ours.model_copy(update=plain), theirs.model_copy(update=plain))
    difference = difference or first_difference(ours, theirs)
    return None if difference is None else (f"view.{difference[0]}", *difference[1:])


def _located(teacher: Teacher) -> str:
    return f"{teacher.name} of {leaves(teacher)[0].url}"


def _temperature(kind: Kind, temperature: float | None) -> float | None:
    if kind == "geometric":
        return None
    if temperature is None or not (isfinite(temperature) and temperature > 0):
        raise InputError(
            "an arithmetic ensemble averages distributions, which have a temperature above 0, not "
            f"{temperature}: give it, or average logits with kind 'geometric'"
        )
    return float(temperature)


def _shares(weights: Sequence[float], members: int) -> tuple[float, ...]:
    if len(weights) != members:
        raise InputError(f"{len(weights)} weights for {members} members: give one for each")
    for weight in weights:
        if not (isfinite(weight) and weight > 0):
            raise InputError(f"the weight of a member is a number above 0, not {weight}")
    return tuple(weight / sum(weights) for weight in weights)
