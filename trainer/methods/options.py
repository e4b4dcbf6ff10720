"""Command-line flags of the methods' hyper-parameters, which only ``methods`` knows.

``--kd-weight 0.9``, ``--kd-weight=0.9``, ``--standardize`` and ``--no-standardize``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin

from logitstore.errors import InputError, UnknownName
from logitstore.trainer.methods.table import hyper_parameter_types


def parse_flags(arguments: Sequence[str], others: Sequence[str] = ()) -> dict[str, Any]:
    """Values by name, of the type that the hyper-parameter has.

    ``others`` are the command's own options, for the message about one that nobody knows.  Raises
    UnknownName or InputError.
    """
    types = hyper_parameter_types()
    flags = {f"--{name.replace('_', '-')}": name for name in types}
    given: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        if not flag.startswith("-"):
            raise InputError(f"{flag!r}: unexpected argument; options begin with --")
        on = not flag.startswith("--no-")
        name = flags.get(flag if on else "--" + flag.removeprefix("--no-"))
        if name is None or (not on and types[name] is not bool):
            raise UnknownName.among("option", flag, [*others, *flags])
        if types[name] is bool:
            if equals:
                raise InputError(f"{flag} takes no value: {flag} or --no-{flag[2:]}")
            given[name] = on
            continue
        if not equals:
            if not rest:
                raise InputError(f"{flag} needs a value")
            value = rest.pop(0)
        given[name] = _converted(flag, types[name], value)
    return given


def _converted(flag: str, kind: Any, text: str) -> Any:
    """``text`` as a float, an int or one of a Literal's words; the first type of a union counts."""
    if get_origin(kind) is Literal:
        if text not in get_args(kind):
            raise InputError(f"{flag} {text!r}: expected {' or '.join(get_args(kind))}")
        return text
    wanted = get_args(kind)[0] if get_args(kind) else kind
    try:
        return wanted(text)
    except ValueError:
        said = "a whole number" if wanted is int else "a number"
        raise InputError(f"{flag} {text!r}: expected {said}") from None
