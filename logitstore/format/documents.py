"""Write frozen pydantic models as canonical JSON, and read them whole or refuse them.

It knows names, keys and digests; what the documents say is in ``cards`` and ``commits``.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from logitstore.errors import Damaged, InputError

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

Key = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*$")
]


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

    @classmethod
    def parse(cls, where: str, data: bytes | dict[str, Any]) -> Self:
        """Parse JSON bytes or a decoded object; Damaged names ``where`` and the first bad field."""
        try:
            if isinstance(data, bytes):
                return cls.model_validate_json(data)
            return cls.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "(document)"
            raise Damaged(f"{where}: field {field}: {first['msg']}") from None

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
