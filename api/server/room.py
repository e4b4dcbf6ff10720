"""Close connections that wait for their clients, so that others may come in.

The address with the most connections gives them up first, and of those the ones that have waited
longest, so that a client that only connects keeps nobody out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Protocol


class Waiting(Protocol):
    """Says what ``make_room`` needs to know of a connection."""

    since: float

    @property
    def peer(self) -> str: ...

    @property
    def waiting(self) -> bool: ...

    def send_away(self) -> None: ...


def make_room(connections: Iterable[Waiting], newcomer: Waiting, most: int) -> None:
    """Close a few waiting connections if there are more than ``most``, but not the newcomer."""
    everyone = list(connections)
    if len(everyone) <= most:
        return
    by_peer = defaultdict(list)
    for connection in everyone:
        by_peer[connection.peer].append(connection)
    for crowd in sorted(by_peer.values(), key=len, reverse=True):
        idle = [one for one in crowd if one.waiting and one is not newcomer]
        if idle:
            # Several at once, so that not every newcomer has to look at all connections.
            for one in sorted(idle, key=lambda one: one.since)[: max(1, most // 16)]:
                one.send_away()
            return
