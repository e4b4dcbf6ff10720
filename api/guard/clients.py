"""Tell by address and token who sends a request, and count what each holds of a scarce thing.

Behind a proxy every request comes from the proxy's address.  ``X-Forwarded-For`` is believed only
if the proxy is one that the operator named.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from threading import RLock
from typing import NamedTuple

from logitstore.api.guard.headers import Headers, by_name
from logitstore.errors import InputError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

ADDRESS_SHARE, TOKEN_SHARE = 1 / 2, 3 / 4
"""Share of all that one address, and one token, may hold at once."""


class Client(NamedTuple):
    """An address, IPv6 by its /64, and the digest of a token, empty where none is wanted."""

    address: str
    token: bytes


def parse_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Return networks such as 10.0.0.0/8, or single addresses; InputError if one is neither."""
    networks = []
    for text in texts:
        try:
            networks.append(ipaddress.ip_network(text))
        except ValueError as error:
            raise InputError(f"--trusted-proxy {text!r}: {error}; write 10.0.0.0/8") from None
    return tuple(networks)


class Addresses:
    """Finds the address of a client; ``trusted`` are the networks of proxies."""

    def __init__(self, trusted: tuple[Network, ...] = ()) -> None:
        self._trusted = trusted
        self._address = lru_cache(maxsize=1024)(self._find)

    def of(self, peer: str, headers: Headers) -> str:
        """Return the address that a request comes from, seen by the outermost trusted proxy."""
        forwarded = by_name(headers).get(b"x-forwarded-for", b"") if self._trusted else b""
        return self._address(peer, forwarded)

    def _find(self, peer: str, forwarded: bytes) -> str:
        hops = forwarded.decode("latin-1").split(",")
        address = _parse(peer)
        while address is not None and any(address in network for network in self._trusted):
            before = _parse(hops.pop()) if hops else None
            if before is None:
                break
            address = before
        if isinstance(address, ipaddress.IPv6Address):
            return str(ipaddress.ip_network((address, 64), strict=False))
        return str(address or peer)


def _parse(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text.strip()[:64])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


class Shares:
    """Counts what clients hold of ``total``, so that none of them holds it all.

    Who holds nothing may take more than a share, and more than all if nobody holds anything: one
    request is always possible.  Thread-safe.
    """

    def __init__(self, total: int) -> None:
        self.total, self.held = total, 0
        self._lock = RLock()
        self._by_key: Counter[str | bytes] = Counter()

    def take(self, client: Client | None, amount: int = 1) -> bool:
        """Take ``amount``, or return False if too much is held; None is nobody in particular."""
        with self._lock:
            if self.held and self.held + amount > self.total:
                return False
            for key, share in _shares(client):
                if self._by_key[key] and self._by_key[key] + amount > self.total * share:
                    return False
            self._add(client, amount)
            return True

    def give_back(self, client: Client | None, amount: int = 1) -> None:
        """Give back what the client took."""
        with self._lock:
            self._add(client, -amount)
            for key, _ in _shares(client):
                if not self._by_key[key]:
                    del self._by_key[key]

    def _add(self, client: Client | None, amount: int) -> None:
        self.held += amount
        for key, _ in _shares(client):
            self._by_key[key] += amount


def _shares(client: Client | None) -> list[tuple[str | bytes, float]]:
    """Return what identifies a client, and the share that each may hold."""
    if client is None:
        return []
    token = [(client.token, TOKEN_SHARE)] if client.token else []
    return [(client.address, ADDRESS_SHARE), *token]
