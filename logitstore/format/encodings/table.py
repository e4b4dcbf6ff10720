"""List the encodings by name, and make one from a name, a text or a card.

Losses do not change when a constant is added to all logits of a row, so an encoding may store a row
relative to its maximum; ``scalars`` bring the absolute logits back.  Probabilities are never
stored: in fp16 they lose up to 30 % of the gradient at temperature 20.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING

from logitstore.errors import InputError, UnknownName
from logitstore.format.cards import EncodingCard
from logitstore.format.encodings.base import Encoding
from logitstore.format.encodings.dense import Float16, Float32, Uint8
from logitstore.format.encodings.topk import TopK

ENCODINGS: dict[str, type[Encoding]] = {
    entry.name: entry for entry in (Float32, Float16, Uint8, TopK)
}


def encoding(name: str, classes: int, parameters: Mapping[str, int] | None = None) -> Encoding:
    """Make an encoding for rows of ``classes`` logits.

    UnknownName lists the encodings that this version knows; InputError names a parameter that an
    encoding does not have or cannot take.
    """
    if name not in ENCODINGS:
        raise UnknownName.among("encoding", name, ENCODINGS)
    kind, values = ENCODINGS[name], parameters or {}
    known = kind.defaults()
    for parameter in values:
        if parameter not in known:
            raise UnknownName.among(f"parameter of encoding {name}", parameter, known)
    for parameter, default in known.items():
        if default is MISSING and parameter not in values:
            letter = parameter.upper()
            raise InputError(
                f"encoding {name} needs its {letter}: write {name}:{letter}, like topk:10"
            )
    return kind(classes=classes, **values)


def parse_encoding(text: str, classes: int) -> Encoding:
    """Make an encoding from ``float16``, ``uint8:LEVELS`` or ``topk:K``."""
    name, colon, value = text.partition(":")
    if not colon:
        return encoding(name, classes)
    known = list(ENCODINGS[name].defaults()) if name in ENCODINGS else [name]
    if not known:
        raise InputError(f"encoding {name} takes no parameter: write {name}, not {text}")
    if not value.isascii() or not value.isdigit():
        raise InputError(f"encoding {text!r}: a whole number follows the colon, like topk:10")
    return encoding(name, classes, {known[0]: int(value)})


def spelled(entry: Encoding) -> str:
    """Write what ``parse_encoding`` reads: the name, and the parameter unless it is the default."""
    defaults = entry.defaults()
    values = [value for name, value in entry.parameters.items() if value != defaults[name]]
    return ":".join([entry.name, *map(str, values)])


def encoding_of(card: EncodingCard, classes: int) -> Encoding:
    """Return the encoding that a card names, for rows of ``classes`` logits."""
    return encoding(card.name, classes, card.parameters)
