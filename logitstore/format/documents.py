"""Write frozen pydantic models as canonical JSON, and read them whole or refuse them.

A document is measured before it is parsed, and refused at its first error: a list of a million
errors would take more memory than the document.  It knows names, keys and digests; what the
documents say is in ``cards`` and ``commits``.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from logitstore.errors import Damaged, InputError

MAX_DOCUMENT_BYTES = 4 << 20
"""Bytes of the largest JSON document, but for a commit: 100,000 names of classes fit in."""

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

Key = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*$")
]


class _FirstError(Exception):
    """Ends a validation at its first error: ``field`` and what is wrong with it."""

    def __init__(self, field: str, what: str) -> None:
        super().__init__(f"field {field or '(document)'}: {what}")

    @classmethod
    def of(cls, error: ValidationError, above: str | None = None) -> _FirstError:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        places = [*([above] if above else []), *map(str, first["loc"])]
        return cls(".".join(places), first["msg"])


def _or_stop(value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    try:
        return handler(value)
    except ValidationError as error:
        raise _FirstError.of(error, info.field_name) from None


OrStop = WrapValidator(_or_stop)
"""Marks a member: if it is wrong, ``Document.parse`` ends at it."""

T = TypeVar("T")
Tuple = Annotated[tuple[T, ...], Field(fail_fast=True)]
"""A list of members, which is refused at the first wrong one."""

ByText = dict[str, Annotated[T, OrStop]]
"""An object whose members' names the document chooses; refused at the first wrong one."""


def check_size(where: str, data: bytes, most_bytes: int = MAX_DOCUMENT_BYTES) -> None:
    """Refuse a document that is larger than any of its kind, before it is parsed."""
    if len(data) > most_bytes:
        raise Damaged(f"{where}: a document of {len(data)} bytes; it has at most {most_bytes}")


def parse_json(where: str, data: bytes) -> Any:
    """Return what a JSON document holds; Damaged if it is too large, too deep or no JSON."""
    check_size(where, data)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{where}: not usable JSON ({type(error).__name__})") from None


def check_name(what: str, name: str) -> str:
    """Return ``name`` if it may name a store or a snapshot, else raise InputError."""
    if not re.fullmatch(NAME_PATTERN[1:-1], name):
        raise InputError(
            f"{what} name {name!r} is not usable: letters, digits, '.', '_' and '-', at most 64, "
            "starting with a letter or digit"
        )
    return name


def canonical(document: object) -> bytes:
    """Return canonical JSON: sorted keys, no spaces, UTF-8, one final newline."""
    text = json.dumps(
        document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return (text + "\n").encode()


class Document(BaseModel):
    """Refuses unknown fields, and cannot be changed."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    most_bytes: ClassVar[int] = MAX_DOCUMENT_BYTES

    @model_validator(mode="before")
    @classmethod
    def _drop_all_but_one_unknown_field(cls, value: Any) -> Any:
        """Leave pydantic one unknown field to refuse: it would list a million of them."""
        if isinstance(value, dict) and len(value) > len(cls.model_fields):
            known = {field: value[field] for field in cls.model_fields if field in value}
            unknown = next(field for field in value if field not in cls.model_fields)
            return {**known, unknown: None}
        return value

    @classmethod
    def parse(cls, where: str, data: bytes | dict[str, Any]) -> Self:
        """Parse JSON bytes or a decoded object; Damaged names ``where`` and the first bad field."""
        try:
            if isinstance(data, bytes):
                check_size(where, data, cls.most_bytes)
                return cls.model_validate_json(data)
            return cls.model_validate(data)
        except ValidationError as error:
            raise Damaged(f"{where}: {_FirstError.of(error)}") from None
        except _FirstError as error:
            raise Damaged(f"{where}: {error}") from None

    def to_bytes(self) -> bytes:
        """Return this document as canonical JSON."""
        return canonical(self.model_dump(mode="json"))


def first_difference(old: BaseModel, new: BaseModel) -> tuple[str, Any, Any] | None:
    """Return the dotted name and both values of the first field that differs, or None."""
    return _difference("", old.model_dump(mode="json"), new.model_dump(mode="json"))


def _difference(path: str, old: Any, new: Any) -> tuple[str, Any, Any] | None:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            difference = _difference(f"{path}.{key}".lstrip("."), old.get(key), new.get(key))
            if difference:
                return difference
        return None
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for position, values in enumerate(zip(old, new, strict=True)):
            difference = _difference(f"{path}[{position}]", *values)
            if difference:
                return difference
        return None
    return None if old == new else (path, old, new)
