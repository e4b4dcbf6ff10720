"""What many tests share: a small committed store, the real server, and torch on one thread.

The first two live for the whole session, so that a module may build one store and one server for
all its tests; nothing here imports torch for those that do without.
"""

from __future__ import annotations

import http.client
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from logitstore.cli.background_server import BackgroundServer, free_port
from logitstore.errors import Unreachable
from logitstore.format.cards import EncodingCard, ImportCard, SnapshotPlan, StoreMeta
from logitstore.format.encodings.table import parse_encoding
from logitstore.format.grid import shard_rows
from logitstore.format.samples import Samples
from logitstore.storage import open_storage
from logitstore.writing.target import Target, open_writer

SERVER = """
import logging, sys
from pathlib import Path
from logitstore.api.server.process import serve
from logitstore.api.guard.limits import Limits
from logitstore.api.settings import Settings
logging.basicConfig(level="INFO")
serve(Settings({settings}))
print("torch" in sys.modules, flush=True)
"""


def logits_of(seed: int, samples: int, classes: int, views: int = 1) -> NDArray[np.float32]:
    """The logits that ``tiny_store`` writes: float32 (V, N, C), normal times 3."""
    drawn = np.random.default_rng(seed).standard_normal((views, samples, classes)) * 3
    return drawn.astype(np.float32)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Threads wait for each other where cores are shared, and add nothing to nets this small."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_store() -> Callable[..., Path]:
    """``tiny_store(path, snapshots=("teacher",), samples=100, classes=10, views=1, …) -> path``.

    Builds a real, committed store with the library's own writer.  Snapshot i holds the logits
    ``logits_of(seed + i, samples, classes, views)``; labels are sample % classes.  Shards hold
    ``rows_per_shard`` rows (32 unless told), so that even a tiny store has several.  Calling it
    again with another snapshot name and the same path lets the store grow.
    """

    def build(
        path: Path,
        snapshots: tuple[str, ...] = ("teacher",),
        *,
        samples: int = 100,
        classes: int = 10,
        views: int = 1,
        seed: int = 0,
        form: str = "float16",
        rows_per_shard: int | None = 32,
        keys: bool = False,
    ) -> Path:
        labels = np.arange(samples, dtype=np.int32) % classes
        named = [f"img/{i:05d}.png" for i in range(samples)] if keys else None
        described = Samples(name="tiny", labels=labels, keys=named)
        meta = StoreMeta(classes=classes, class_names=None, dataset=described.card())
        kind = parse_encoding(form, classes)
        rows = rows_per_shard or shard_rows(kind.widest)
        for number, name in enumerate(snapshots):
            plan = SnapshotPlan(
                name=name,
                views=views,
                samples=samples,
                classes=classes,
                rows_per_shard=rows,
                imported=ImportCard(file="tiny.npy", sha256="0" * 64),
                encoding=EncodingCard.of(kind),
                packages={},
            )
            logits = logits_of(seed + number, samples, classes, views)
            writer = open_writer(Target.read(open_storage(path), meta, described), plan)
            for shard in writer.missing():
                part = slice(shard.start, shard.stop)
                writer.write(shard, logits[shard.view, part], labels[part])
            writer.commit()
        return path

    return build


class Server:
    """``logitstore serve`` as a process of its own on a free loopback port.

    ``url``, ``port`` and ``process``; ``get(path)`` is one plain request; ``kill`` is kill -9;
    ``restart`` starts it again on the same port (with another root if given); ``stop`` is SIGTERM
    and returns the exit status.
    """

    def __init__(self, root: Path, **settings: Any) -> None:
        self.root, self.settings = root, settings
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (``close`` closes it)
        self._cache = tempfile.TemporaryDirectory()
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.restart()

    def restart(self, root: Path | None = None) -> None:
        self.root = root or self.root
        given = {"root": self.root, "port": self.port, **self.settings}
        arguments = ", ".join(
            f"{name}={f'Path({str(value)!r})' if isinstance(value, Path) else repr(value)}"
            for name, value in given.items()
        )
        environment = {
            "LOGITSTORE_CACHE": self._cache.name,
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parent.parent),
        }
        command = [sys.executable, "-W", "error", "-c", SERVER.format(settings=arguments)]
        try:
            self._server = BackgroundServer(
                command, self.url, log=self._log, environment=environment
            )
        except Unreachable as error:
            raise AssertionError(f"{error}: {self.log()}") from error
        self.process = self._server.process

    def get(
        self,
        path: str,
        headers: dict[str, str] | None = None,
        method: str = "GET",
        body: Any = None,
    ) -> tuple[int, dict[str, str], bytes]:
        """(status, headers with lower-case names, body) of one request on a new connection.

        ``path`` is sent as it stands: nothing is quoted or normalised.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.putrequest(method, path, skip_accept_encoding=True)
            for name, value in (headers or {}).items():
                connection.putheader(name, value)
            if body is not None:
                connection.putheader("content-length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            names = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, names, answer.read()
        finally:
            connection.close()

    def kill(self) -> None:
        self._server.kill()

    def stop(self) -> int:
        return self._server.shutdown()

    def close(self) -> None:
        self._log.close()
        self._cache.cleanup()

    def log(self) -> str:
        """All that the server and its predecessors on this port wrote."""
        self._log.seek(0)
        return self._log.read().decode()


@pytest.fixture(scope="session")
def serve() -> Iterator[Callable[..., Server]]:
    """``serve(root, **settings) -> Server``: the real server, answering; killed at the end."""
    started: list[Server] = []

    def start(root: Path, **settings: Any) -> Server:
        server = Server(root, **settings)
        started.append(server)
        return server

    yield start
    for server in started:
        if server.process.poll() is None:
            server.kill()
        server.close()


@pytest.fixture(scope="session")
def bound_store() -> Callable[..., Path]:
    """``bound_store(path, data, logits, name="teacher", view_spec="eval") -> path``: a bound store.

    ``data`` is a dataset spec, ``logits`` float32 (V, N, C), kept exactly.  Unlike ``tiny_store``
    it records the views' fingerprints, so that students may learn from it.  Needs torch.
    """
    from logitstore.precompute.data.sources import open_dataset
    from logitstore.precompute.views import parse_views
    from logitstore.precompute.views.canaries import make_view_card

    def build(
        path: Path,
        data: str,
        logits: NDArray[np.float32],
        name: str = "teacher",
        view_spec: str = "eval",
    ) -> Path:
        dataset = open_dataset(data)
        views, samples, classes = logits.shape
        plan = SnapshotPlan(
            name=name,
            views=views,
            samples=samples,
            classes=classes,
            rows_per_shard=256,
            imported=ImportCard(file="logits.npy", sha256="0" * 64),
            view=make_view_card(dataset, parse_views(view_spec, None), views),
            encoding=EncodingCard(name="float32"),
            packages={},
        )
        meta = StoreMeta(
            classes=classes, class_names=dataset.class_names, dataset=dataset.samples().card()
        )
        writer = open_writer(Target.read(open_storage(path), meta, dataset.samples()), plan)
        for shard in writer.missing():
            part = slice(shard.start, shard.stop)
            writer.write(shard, logits[shard.view, part], dataset.labels[part])
        writer.commit()
        return path

    return build
