"""Make a dataclass's fields options of the command line: names, types, defaults, help, parsing.

A field ``kd_weight`` is ``--kd-weight 0.9`` or ``--kd-weight=0.9``, one that is true or false is
``--standardize`` or ``--no-standardize``.  The option of a tuple has commas, that of another
sequence is repeated: its texts may hold commas.  Of an option that is given twice the last value
counts, but for a sequence, and for a tuple that ``repeats``.  The text under a field is its help.
Nothing here knows what the fields mean.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import cache
from itertools import pairwise
from typing import Any, Literal, get_args, get_origin, get_type_hints

from logitstore.errors import InputError, UnknownName
from logitstore.text import figure


@dataclass(frozen=True)
class Written:
    """Spells a field on the command line, where its name and type do not.

    The values of a tuple's option that ``repeats`` are joined.
    """

    metavar: str
    name: str | None = None
    repeats: bool = False


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option; ``field`` is the setting that it sets, ``kinds`` are the types it may have.

    ``default`` is None where there is none.
    """

    field: str
    flag: str
    kinds: tuple[Any, ...]
    metavar: str
    default: Any
    help: str
    repeats: bool = False

    @property
    def is_switch(self) -> bool:
        """Return whether it takes no value."""
        return self.kinds == (bool,)

    @property
    def off(self) -> str:
        """Return the flag that turns a switch off."""
        return f"--no-{self.flag[2:]}"

    def record(self) -> tuple[str, str]:
        """Return the option's two columns of ``--help``."""
        name = f"{self.flag} / {self.off}" if self.is_switch else f"{self.flag} {self.metavar}"
        if self.default is None or self.default is False or self.default == ():
            return name, self.help
        return name, f"{self.help}  [default: {figure(self.default)}]".lstrip()


def options_of(kind: type[Any]) -> list[Option]:
    """Return a dataclass's fields as options, in their order."""
    plain, annotated = get_type_hints(kind), get_type_hints(kind, include_extras=True)
    helps = _texts_under_fields(kind)
    return [
        _option(field.name, plain[field.name], annotated[field.name], field.default, helps)
        for field in fields(kind)
    ]


def parse_options(
    arguments: Sequence[str],
    options: Iterable[Option],
    others: Sequence[str] = (),
    positional: str | None = None,
) -> dict[str, Any]:
    """Return the values on a command line, by field and of the field's type.

    ``others`` are the command's own options, for the message about one that nobody knows.  Words
    without an option belong to the field ``positional``, a sequence of texts.  Raises UnknownName
    or InputError.
    """
    flags = {option.flag: option for option in options}
    switches = {option.off: option for option in flags.values() if option.is_switch}
    values: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") and positional is not None:
            values[positional] = (*values.get(positional, ()), word)
            continue
        flag, equals, text = word.partition("=")
        if not flag.startswith("-"):
            raise InputError(f"{flag!r}: unexpected argument; options begin with --")
        option = flags.get(flag) or switches.get(flag)
        if option is None:
            raise UnknownName.among("option", flag, [*others, *flags])
        if option.is_switch:
            if equals:
                raise InputError(f"{flag} takes no value: {option.flag} or {option.off}")
            values[option.field] = flag == option.flag
            continue
        if not equals:
            if not rest or rest[0] in flags:
                raise InputError(f"{flag} needs a value")
            text = rest.pop(0)
        value = _value(option, text)
        earlier = values.get(option.field, ()) if option.repeats else ()
        values[option.field] = (*earlier, *value) if earlier else value
    return values


def _option(name: str, kind: Any, annotated: Any, default: Any, helps: dict[str, str]) -> Option:
    notes = [note for note in get_args(annotated)[1:] if isinstance(note, Written)]
    written = notes[0] if notes else Written("|".join(map(_type_name, _kinds(kind))))
    return Option(
        field=name,
        flag=f"--{(written.name or name).replace('_', '-')}",
        kinds=_kinds(kind),
        metavar=written.metavar,
        default=None if default is MISSING else default,
        help=helps.get(name, ""),
        repeats=written.repeats or get_origin(_kinds(kind)[0]) is Sequence,
    )


def _kinds(kind: Any) -> tuple[Any, ...]:
    """Return the types of a union, without None; of any other type that type alone."""
    if get_origin(kind) in (Literal, tuple, Sequence) or not get_args(kind):
        return (kind,)
    return tuple(part for part in get_args(kind) if part is not type(None))


def _type_name(kind: Any) -> str:
    return "|".join(get_args(kind)) if get_origin(kind) is Literal else f"<{kind.__name__}>"


def _value(option: Option, text: str) -> Any:
    """Return the text as the first of the option's types that can read it."""
    expected = []
    for kind in option.kinds:
        try:
            return _read(kind, text)
        except ValueError as error:
            expected.append(str(error))
    raise InputError(f"{option.flag} {text!r}: expected {' or '.join(expected)}")


def _read(kind: Any, text: str) -> Any:
    """Return the text as a value of a type; ValueError says what was expected."""
    if get_origin(kind) is Literal:
        if text not in get_args(kind):
            raise ValueError(" or ".join(get_args(kind)))
        return text
    if get_origin(kind) is tuple:
        return tuple(_read_item(get_args(kind)[0], part.strip()) for part in text.split(","))
    if get_origin(kind) is Sequence:
        return (text,)
    try:
        return kind(text)
    except ValueError:
        raise ValueError("a whole number" if kind is int else "a number") from None


def _read_item(kind: Any, text: str) -> Any:
    if kind is not int:
        return text
    if not (text.isascii() and text.isdigit()):
        raise ValueError("whole numbers such as 1,5,60")
    return int(text)


def _texts_under_fields(kind: type[Any]) -> dict[str, str]:
    """Return the docstrings that stand under a class's fields, its bases' included."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        texts |= _texts_in_module(base.__module__).get(base.__name__, {})
    return texts


@cache
def _texts_in_module(name: str) -> dict[str, dict[str, str]]:
    """Return the docstrings under the fields of each class of a module, by the class's name."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[name]))
    except (OSError, TypeError):  # built in, or typed at a prompt
        return {}
    return {
        node.name: dict(_texts_of_class(node))
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }


def _texts_of_class(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for statement, below in pairwise(node.body):
        match statement, below:
            case (
                ast.AnnAssign(target=ast.Name(id=field)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                yield field, " ".join(text.split())
