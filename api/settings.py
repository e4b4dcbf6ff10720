"""The settings of a server; impossible ones are refused when they are made, before any bind.

Also checks what they point to: the token file, the cache's limit, and that there is a store.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from logitstore.api.guard.clients import parse_networks
from logitstore.api.guard.limits import Limits
from logitstore.api.guard.token_file import check_token_file
from logitstore.api.served.catalog import find_stores
from logitstore.cache.cache import Cache
from logitstore.errors import InputError
from logitstore.reading.scan import Scan


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The stores that a server serves, where and to whom; InputError if that is unsafe."""

    root: Path
    """A store, or a folder of stores."""
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    """Server processes."""
    token_file: Path | None = None
    """The accepted tokens; ``guard.token_file`` describes the file."""
    insecure_no_auth: bool = False
    """Serve an address that others can reach, without tokens."""
    trusted_proxies: tuple[str, ...] = ()
    """Networks of proxies whose ``X-Forwarded-For`` names the client."""
    access_log: bool = False
    """Log every request, not only those answered with an error."""
    cache: str | Path | None = None
    """The folder of decoded copies; None means ``Cache.default``."""
    warm: bool = False
    """Make all copies before the server says that it is ready."""
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise InputError(f"port {self.port} is outside 0..65535")
        if self.workers < 1:
            raise InputError(f"{self.workers} workers cannot serve; at least 1")
        if self.token_file is not None and self.insecure_no_auth:
            raise InputError("--token-file and --insecure-no-auth contradict each other: drop one")
        if not self.loopback and self.token_file is None and not self.insecure_no_auth:
            raise InputError(
                f"{self.host} can be reached from other machines and no tokens are set: give "
                "--token-file FILE, or --insecure-no-auth to let everybody read the stores"
            )
        if self.token_file is not None:
            check_token_file(self.token_file)
        parse_networks(self.trusted_proxies)
        Cache.default(self.cache)
        if not find_stores(Scan(self.root)):
            raise InputError(
                f"{self.root} is neither a logit store nor a folder with one; `logitstore build` "
                "makes one"
            )

    @property
    def loopback(self) -> bool:
        """Say whether only this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
