"""Read the grammar of ``--snapshot``, which says who teaches and from which epoch on.

    STAGE[,STAGE@EPOCH]…                  from that epoch on (1 is the first) the next stage teaches
    STAGE   MEMBER                        a snapshot
            mean(MEMBER,MEMBER,…)         the mean of distributions, at the method's temperature
            logits(MEMBER,MEMBER,…)       the mean of logits
    MEMBER  [STORE::]NAME[+NAME…][*WEIGHT]   a+b: the views of b follow those of a

No store is opened here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from typing import TYPE_CHECKING, NamedTuple

from logitstore.errors import InputError
from logitstore.format.documents import NAME_PATTERN
from logitstore.storage import is_url

if TYPE_CHECKING:
    from logitstore.reading.ensemble import Kind

KINDS: dict[str, Kind] = {"mean": "arithmetic", "logits": "geometric"}


@dataclass(frozen=True, kw_only=True)
class Member:
    """One teacher by name; several ``names`` continue each other's views."""

    names: tuple[str, ...]
    store: str | None = None
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Says who teaches in a stage of a schedule, from epoch ``first`` (from 0) on.

    ``kind`` is how an ensemble is averaged, None for a single member.
    """

    members: tuple[Member, ...]
    kind: Kind | None = None
    first: int = 0


class _Piece(NamedTuple):
    """Holds a part of the text of ``--snapshot`` that begins ``at`` a character of it."""

    whole: str
    at: int
    text: str

    def cut(self, start: int, stop: int | None = None) -> _Piece:
        """Return a part of this piece, without the spaces around it."""
        text = self.text[start:stop]
        return _Piece(self.whole, self.at + start + len(text) - len(text.lstrip()), text.strip())

    def wrong(self, says: str) -> InputError:
        here = f"{self.text!r}, " if self.text != self.whole else ""
        return InputError(f"--snapshot {self.whole!r}: {here}character {self.at + 1}: {says}")


def parse_teachers(text: str) -> tuple[Stage, ...]:
    """Return the stages of a text; InputError names the text, the place and the way out."""
    pieces = list(_listed(_Piece(text, 0, text)))
    stages = tuple(_stage(piece, number) for number, piece in enumerate(pieces))
    for (before, now), piece in zip(pairwise(stages), pieces[1:], strict=True):
        if now.first <= before.first:
            raise piece.wrong(
                f"this stage begins in epoch {now.first + 1}, the one before it in epoch "
                f"{before.first + 1}: name the stages in the order of their epochs"
            )
        if (now.kind, now.members) == (before.kind, before.members):
            raise piece.wrong("the stage before it has the same teacher: leave one of them out")
    return stages


def _listed(piece: _Piece) -> Iterator[_Piece]:
    """Yield what stands between the commas that are in no parentheses."""
    depth = start = 0
    for place, character in enumerate(piece.text):
        depth += (character == "(") - (character == ")")
        if depth not in (0, 1):
            raise piece.cut(place).wrong(
                "this parenthesis belongs to no other: an ensemble is mean(A,B) or logits(A,B), "
                "and holds no further ones"
            )
        if character == "," and depth == 0:
            yield piece.cut(start, place)
            start = place + 1
    if depth:
        raise piece.cut(piece.text.rindex("(")).wrong("close this parenthesis")
    yield piece.cut(start)


def _stage(piece: _Piece, number: int) -> Stage:
    # A store's path may hold an '@', what follows it may not.
    at = piece.text.find("@", 1 + max(piece.text.rfind("::"), piece.text.rfind(")")))
    body = piece if at < 0 else piece.cut(0, at)
    first = 0 if at < 0 else _epoch(piece.cut(at + 1))
    if number == 0 and at >= 0:
        raise piece.wrong("the first stage begins with the run: leave its '@' and epoch out")
    if number > 0 and at < 0:
        raise piece.wrong(
            "each stage but the first says from which epoch on it teaches, like NAME@11: add its "
            "epoch, or write mean(A,B) or logits(A,B) for teachers that teach together"
        )
    if "(" not in body.text:
        if "*" in body.text.rpartition("::")[2]:
            raise body.wrong(
                "a weight belongs inside mean(…) or logits(…), a pattern to `logitstore sweep`: "
                "leave the '*' out"
            )
        return Stage(members=(_member(body),), first=first)
    kind, members = _ensemble(body)
    return Stage(members=members, kind=kind, first=first)


def _ensemble(piece: _Piece) -> tuple[Kind, tuple[Member, ...]]:
    name, _, rest = piece.text.partition("(")
    if name.strip() not in KINDS or not rest.endswith(")"):
        raise piece.wrong("an ensemble is mean(A,B), of distributions, or logits(A,B), of logits")
    pieces = list(_listed(piece.cut(len(name) + 1, -1)))
    members = tuple(map(_member, pieces))
    places = [(member.store, member.names) for member in members]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise pieces[number].wrong("named twice in one ensemble: give it a weight, like A*2")
    return KINDS[name.strip()], members


def _member(piece: _Piece) -> Member:
    store, colons, rest = piece.text.rpartition("::")
    if colons and not store:
        raise piece.wrong("a store's path or URL stands before '::', like other.zarr::NAME")
    names, star, weight = rest.partition("*")
    return Member(
        names=_names(piece, names),
        store=store if colons else None,
        weight=_weight(piece, weight) if star else 1.0,
    )


def _names(piece: _Piece, text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split("+"))
    for name in names:
        if not re.fullmatch(NAME_PATTERN[1:-1], name):
            raise piece.wrong(
                f"{name!r} is no snapshot's name (letters, digits, '.', '_' and '-'): write NAME, "
                "a+b for views that continue, mean(A,B*2) or logits(A,B) for ensembles, "
                "A,B@11 for stages"
            )
    return names


def _weight(piece: _Piece, text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = 0.0
    if not (isfinite(weight) and weight > 0):
        raise piece.wrong(f"{text!r} is no weight: a number above 0 follows the '*', like A*2")
    return weight


def _epoch(piece: _Piece) -> int:
    if not (piece.text.isascii() and piece.text.isdigit() and int(piece.text) > 0):
        raise piece.wrong("an epoch follows the '@', a whole number that counts from 1, like A@11")
    return int(piece.text) - 1


def servers_of(store: str, text: str | None) -> list[str]:
    """Return the addresses of servers in a store's location and in a text that says who teaches."""
    stages = [] if text is None else parse_teachers(text)
    members = [member.store for stage in stages for member in stage.members]
    return [place for place in [store, *members] if place is not None and is_url(place)]


def split_teachers(text: str) -> list[str]:
    """Return the pieces of a comma list as they were written.

    InputError if a parenthesis stays open.
    """
    return [piece.text for piece in _listed(_Piece(text, 0, text))]
