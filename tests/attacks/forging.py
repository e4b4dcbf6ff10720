"""Make stores, change them and commit them again, with commands and plain JSON alone.

Nothing here imports more than the names that people may use, so that every test of these stores can
be run against an older version, too.
"""

from __future__ import annotations

import atexit
import hashlib
import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import zstd
from numpy.typing import NDArray

from tests.support.ports import free_port

MEMORY = """
print(next(line.split()[1] for line in open("/proc/self/status") if "VmHWM" in line))
"""
"""Code that prints the KiB of memory that a process has had at most."""


def command(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command of ``logitstore`` to its end."""
    line = [sys.executable, "-m", "logitstore", *map(str, arguments)]
    everything = {**os.environ, **environment}
    return subprocess.run(line, capture_output=True, text=True, timeout=60, env=everything)


def python(code: str, *arguments: object, **environment: str) -> str:
    """Run Python code as a process of its own, and return what it prints or raises."""
    line = [sys.executable, "-c", code, *map(str, arguments)]
    everything = {**os.environ, **environment}
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, env=everything)
    return done.stdout + done.stderr


def logits_of(samples: int, classes: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((samples, classes)).astype(np.float32)


def make_store(
    path: Path, encoding: str = "float32", samples: int = 100, classes: int = 10
) -> Path:
    """Make a store with one snapshot, ``teacher``, of ``logits_of``."""
    shutil.copytree(_made(encoding, samples, classes), path)
    return path


@cache
def _made(encoding: str, samples: int, classes: int) -> Path:
    """Make the store once, for all tests."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    np.save(folder / "logits.npy", logits_of(samples, classes))
    np.save(folder / "labels.npy", np.arange(samples, dtype=np.int32) % classes)
    done = command(
        *("import", folder / "logits.npy", "--labels", folder / "labels.npy"),
        *("--out", folder / "s", "--snapshot", "teacher", "--encoding", encoding),
    )
    assert done.returncode == 0, done.stderr
    digests = folder / "s/snapshots/teacher/row_digests"
    if digests.exists():  # they are in the way of forging rows
        shutil.rmtree(digests)
        teacher = folder / "s/snapshots/teacher/zarr.json"
        change(teacher, lambda document: attributes(document).pop("row_digests"))
        commit_again(folder / "s")
    return folder / "s"


def canonical(document: Any) -> bytes:
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return (text + "\n").encode()


def sealed(objects: dict[str, Any], name: str = "teacher") -> bytes:
    """Return a commit of these objects with its own digest."""
    rest = {"format_version": 1, "objects": objects, "snapshot": name}
    return canonical({**rest, "sha256": hashlib.sha256(canonical(rest)).hexdigest()})


def commit_again(store: Path) -> None:
    """Commit the bytes that the objects of ``teacher`` have by now, and those that were added."""
    keys = [path.relative_to(store).as_posix() for path in store.rglob("*") if path.is_file()]
    entries = {
        key: {
            "length": (store / key).stat().st_size,
            "sha256": hashlib.sha256((store / key).read_bytes()).hexdigest(),
        }
        for key in keys
        if not key.endswith("commit.json")
    }
    (store / "snapshots/teacher/commit.json").write_bytes(sealed(entries))


def change(path: Path, edit: Callable[[Any], object]) -> None:
    """Change a JSON document in place, and write it as canonical JSON."""
    document = json.loads(path.read_bytes())
    edit(document)
    path.write_bytes(canonical(document))


def attributes(document: Any) -> Any:
    """Return our attributes of a group."""
    return document["attributes"]["logitstore"]


def shard(values: NDArray[Any], rows: int, chunk: int) -> bytes:
    """Write a shard of so many rows; those beyond ``values`` are zeros."""
    whole = np.zeros((rows, *values.shape[1:]), values.dtype)
    whole[: len(values)] = values
    return shard_of([whole[first : first + chunk].tobytes() for first in range(0, rows, chunk)])


def shard_of(chunks: list[bytes]) -> bytes:
    """Write a shard of these inner chunks."""
    content, index = b"", b""
    for data in chunks:
        frame = zstd.compress(data, 3, True)
        frame += google_crc32c.value(frame).to_bytes(4, "little")
        index += len(content).to_bytes(8, "little") + len(frame).to_bytes(8, "little")
        content += frame
    return content + index + google_crc32c.value(index).to_bytes(4, "little")


def replace_rows(store: Path, array: str, values: NDArray[Any]) -> None:
    """Put these values into the first shard of an array, and commit the store again."""
    document = json.loads((store / array / "zarr.json").read_bytes())
    axis = 1 if len(document["shape"]) == 3 else 0
    rows = document["chunk_grid"]["configuration"]["chunk_shape"][axis]
    chunk = document["codecs"][0]["configuration"]["chunk_shape"][axis]
    place = store / array / ("c/0/0/0" if axis else "c/0")
    place.write_bytes(shard(values, rows, chunk))
    commit_again(store)


Answer = tuple[int, dict[str, str], bytes]


class Served:
    """``logitstore serve`` as a process of its own."""

    def __init__(self, root: Path, cache: Path, *options: object, **environment: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = root.parent / f"log-{self.port}"
        line = [sys.executable, "-m", "logitstore", "serve", root, "--port", self.port]
        with open(self._log, "wb") as log:
            self.process = subprocess.Popen(
                [*map(str, line), "--cache", str(cache), *map(str, options)],
                stdout=log,
                stderr=log,
                env={**os.environ, **environment},
            )

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def ask(self, path: str, body: bytes | None = None, kind: str = "application/json") -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            headers = {} if body is None else {"content-type": kind}
            connection.request("GET" if body is None else "POST", path, body, headers)
            answer = connection.getresponse()
            names = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, names, answer.read()
        finally:
            connection.close()

    def rows(self, store: str, indices: list[int], seconds: float = 20) -> Answer:
        """Ask for rows of ``teacher`` until they are decoded, or not."""
        path, body = f"/v1/stores/{store}/snapshots/teacher/rows", {"indices": indices}
        deadline = time.monotonic() + seconds
        while True:
            answer = self.ask(path, json.dumps(body).encode())
            if answer[0] != 503 or b"being decoded" not in answer[2]:
                return answer
            if time.monotonic() > deadline:
                return answer

    def most_memory(self) -> int:
        """MiB of memory that the server has had at most."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) >> 10


@contextmanager
def served(root: Path, cache: Path, *options: object, **environment: str) -> Iterator[Served]:
    """Start the server, wait until it answers, and kill it at the end."""
    for _ in range(3):  # another process may take the free port first
        server = Served(root, cache, *options, **environment)
        if _answers(server):
            break
        server.process.kill()
        server.process.wait()
    else:
        raise AssertionError(f"the server does not start: {server.log()}")
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()


def _answers(server: Served) -> bool:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            return server.ask("/livez")[0] == 200
        except OSError:
            time.sleep(0.05)
    return False
