"""Request headers by name, as HTTP says to read them.

Names are in lower case, as ASGI servers hand them on.  Knows no header in particular.
"""

from __future__ import annotations

from collections.abc import Iterable

Headers = list[tuple[bytes, bytes]]
"""Names and values of a message, in the order in which they stand in it."""


def by_name(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Return the value of each header; values of a repeated one are joined (RFC 9110, 5.2).

    A joined value is none that a single header may have, so a second header is never overlooked.
    """
    values: dict[bytes, bytes] = {}
    for name, value in headers:
        values[name] = values[name] + b", " + value if name in values else value
    return values
