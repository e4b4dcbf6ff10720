"""Define the types of settings, with their ranges, and check a dataclass's values against them.

The settings of builds, runs and methods are checked alike, with the same messages.
"""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from logitstore.errors import InputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Positive = Annotated[float, Field(gt=0)]
"""A number above 0."""

Weight = Annotated[float, Field(ge=0)]
"""A number from 0 on."""

Share = Annotated[float, Field(ge=0, le=1)]
"""A number from 0 to 1."""

PartlyShare = Annotated[float, Field(gt=0, lt=1)]
"""A number between 0 and 1, neither of them."""

WholeNumber = Annotated[int, Field(ge=0, lt=2**63)]
"""0, 1, 2, …, as far as a seed goes."""

Count = Annotated[int, Field(ge=1)]
"""1, 2, 3, …"""

Precision = Literal["fp32", "bf16", "fp16"]
"""Arithmetic of a forward pass."""

RowDigests = Literal["auto", "yes", "no"]
"""Whether a snapshot gets a digest of each row; auto: if a row has at least 128 bytes."""

_RANGES = {
    "greater_than": "above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "below {lt:g}",
    "less_than_equal": "at most {le:g}",
}


def check_values(settings: DataclassInstance) -> None:
    """Refuse the first field of a dataclass that is not of its type or not in its range.

    Raises InputError, which names the field and its value.
    """
    for name, adapter in _adapters(type(settings)).items():
        value = getattr(settings, name)
        try:
            adapter.validate_python(value)
        except ValidationError as error:
            first = error.errors()[0]
            if first["type"] in _RANGES:
                words = _RANGES[first["type"]].format(**first["ctx"])
                raise InputError(f"{name} must be {words}, not {value}") from None
            raise InputError(f"{name} = {value!r}: {first['msg'].lower()}") from None


@cache
def _adapters(kind: type[DataclassInstance]) -> dict[str, TypeAdapter[Any]]:
    strict = ConfigDict(strict=True, allow_inf_nan=False)
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: TypeAdapter(hints[field.name], config=strict) for field in fields(kind)}
