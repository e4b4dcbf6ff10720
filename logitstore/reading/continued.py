"""Read several snapshots as one, where each continues the views of the one before.

A committed snapshot never grows; a later build puts further views of the same teacher beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from itertools import pairwise

from numpy.typing import ArrayLike

from logitstore.errors import InputError, MismatchError
from logitstore.format.cards import CombinedCard, SnapshotMeta
from logitstore.format.documents import first_difference
from logitstore.format.encodings.base import Logits
from logitstore.format.encodings.rows import Rows
from logitstore.reading.snapshot import Snapshot


class Continued:
    """Reads the views of all ``parts``, in order; ``meta`` and ``rows`` are those of a Snapshot.

    ``root`` is the sha256 of the parts' roots.  MismatchError names what differs between parts that
    are not the same teacher on the same sequence of views.
    """

    def __init__(self, parts: Sequence[Snapshot]) -> None:
        if len(parts) < 2:
            raise InputError("views are continued by a second snapshot: name two or more")
        for before, after in pairwise(parts):
            _refuse_break(before, after)
        self.parts = tuple(parts)
        self.name = "+".join(part.name for part in parts)
        self.root = sha256("\n".join(part.root for part in parts).encode()).hexdigest()
        self.store_meta = parts[0].store_meta
        self.meta = _joined(parts)

    def __repr__(self) -> str:
        return f"<Continued {self.name}: {self.meta.views} views>"

    def rows(self, indices: ArrayLike, view: int = 0) -> Rows:
        """Return encoded rows, as ``Snapshot.rows``; ``view`` counts through all parts."""
        part, view = self.part(view)
        return part.rows(indices, view)

    def part(self, view: int) -> tuple[Snapshot, int]:
        """Return the part that holds a view, and the view's number in it."""
        within = view
        for part in self.parts:
            if within < part.meta.views:
                return part, within
            within -= part.meta.views
        raise InputError(f"{self.name}: view {view} is outside 0..{self.meta.views - 1}")

    def logits(self, indices: ArrayLike, view: int = 0) -> Logits:
        """Return the decoded logits, as ``Snapshot.logits``: float32 (len(indices), C)."""
        return self.rows(indices, view).logits()

    def close(self) -> None:
        """Let go of the parts' decoded shards."""
        for part in self.parts:
            part.close()


def _refuse_break(before: Snapshot, after: Snapshot) -> None:
    first, second = before.meta, after.meta
    if first.view is None or second.view is None:
        raise MismatchError(f"{before.name}+{after.name}: imported logits have no views to go on")
    expected = first.view.first_view + first.views
    same = {"canaries": (), "first_view": 0}
    pairs = (
        (first.teacher, second.teacher, "build both with one teacher"),
        (first.encoding, second.encoding, "build or transcode both with one --encoding"),
        (
            first.view.model_copy(update=same),
            second.view.model_copy(update=same),
            "build both with one --view-spec, --size, --mix and --seed",
        ),
    )
    for card, next_card, remedy in pairs:
        assert card is not None  # a snapshot with views has a teacher
        assert next_card is not None
        difference = first_difference(card, next_card)
        if difference:
            field, of_first, of_second = difference
            raise MismatchError(
                f"{after.name} does not continue {before.name}: {field} is {of_first!r} there and "
                f"{of_second!r} here: {remedy}"
            )
    if _combination(first) != _combination(second):
        raise MismatchError(
            f"{after.name} does not continue {before.name}: their teacher was combined with other "
            "specialists, or one of them with none: combine both by one plan"
        )
    if second.view.first_view != expected:
        raise MismatchError(
            f"{after.name} does not continue {before.name}: it begins with view "
            f"{second.view.first_view}, view {expected} comes next"
        )


def _combination(meta: SnapshotMeta) -> CombinedCard | None:
    """Return how the rows were combined, without the roots, which differ between the parts."""
    card = meta.combined
    if card is None:
        return None
    names = tuple(one.model_copy(update={"root": ""}) for one in card.specialists)
    return card.model_copy(update={"generalist": "", "specialists": names})


def _joined(parts: Sequence[Snapshot]) -> SnapshotMeta:
    """Return the metadata of all parts as one: their views and canaries together."""
    meta = parts[0].meta
    cards = [part.meta.view for part in parts]
    canaries = tuple(canary for card in cards if card for canary in card.canaries)
    assert meta.view is not None
    return meta.model_copy(
        update={
            "name": "+".join(part.name for part in parts),
            "views": sum(part.meta.views for part in parts),
            "view": meta.view.model_copy(update={"canaries": canaries}),
        }
    )
