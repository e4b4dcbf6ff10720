"""Compare the server under load with nginx and with its own slower path; and measure its memory.

Both sides serve the same bytes, which are compared first.  Ours answers POST requests with 64
different bodies, nginx GET.  With two processors, the servers use one and the client (``load``) the
other.  The facts tell how busy each was, 1.0 being never idle; the one near 1 limits the figure.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copyfile
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from logitstore.cli.background_server import BackgroundServer
from logitstore.format import wire
from tests.bench.harness import Side, Sides
from tests.bench.materialise import reader_of
from tests.bench.processes import Watch, cpu_seconds, family, memory, nginx, pinned, serve
from tests.bench.workplace import BATCH, Workplace, make_store, shuffled_batches

BODIES = 64
ALLOWED_MIB = 256.0
_SNAPSHOT = "/v1/stores/synthetic/snapshots/teacher"


@contextmanager
def objects(place: Workplace) -> Iterator[Sides]:
    """Compare downloads of one shard of codes."""
    store, key = place.once(make_store), "snapshots/teacher/codes/c/0/0/0"
    files = place.new_folder("static")
    copyfile(store / key, files / "shard")
    with serve(place, store, pin=True) as server, nginx(place, files) as other:
        ours, theirs = f"{server.url}{_SNAPSHOT}/objects/{key}", f"{other.url}/shard"
        assert _get(ours) == _get(theirs)
        facts: dict[str, Any] = {"bytes": (files / "shard").stat().st_size}
        yield _loaded(place, (server, [ours]), (other, [theirs]), facts)


@contextmanager
def rows(place: Workplace) -> Iterator[Sides]:
    """Compare batches of rows; nginx serves a file as long as the answer."""
    store, folder = place.once(make_store), place.new_folder("bodies")
    files = place.new_folder("static")
    batches, bodies = write_bodies(place, folder)
    with serve(place, store, pin=True) as server:
        url = f"{server.url}{_SNAPSHOT}/rows?view=0"
        answer = _post_until_there(url, batches[0].astype("<u4").tobytes())
        assert answer == wire.pack(place.once(reader_of).rows(batches[0]))
        (files / "answer").write_bytes(answer)
        with nginx(place, files) as other:
            theirs = f"{other.url}/answer"
            assert _get(theirs) == answer
            facts: dict[str, Any] = {"bytes": len(answer)}
            yield _loaded(place, (server, [url, *bodies]), (other, [theirs]), facts)


@contextmanager
def fast_rows(place: Workplace) -> Iterator[Sides]:
    """Compare the processor time of one server per answer, by ``FastRows`` and by ASGI.

    ``FastRows`` leaves a Content-Type with a parameter to the ASGI endpoint.
    """
    store, folder = place.once(make_store), place.new_folder("bodies")
    batches, bodies = write_bodies(place, folder)
    with serve(place, store, pin=True) as server:
        url = f"{server.url}{_SNAPSHOT}/rows?view=0"
        answer = _post_until_there(url, batches[0].astype("<u4").tobytes())
        fast, slow = [url, *bodies], [url, *bodies, "--type", f"{wire.INDICES_TYPE}; by=asgi"]
        facts: dict[str, Any] = {"bytes": len(answer)}
        yield _loaded(place, (server, fast), (server, slow), facts, "cpu per answer")


@contextmanager
def memory_under_load(place: Workplace) -> Iterator[Sides]:
    """Compare a new server's peak memory, with rows and objects at once, with its idle memory."""
    store, folder = place.once(make_store), place.new_folder("bodies")
    batches, bodies = write_bodies(place, folder)
    facts: dict[str, Any] = {"measured": "RssAnon of all its processes"}

    def ours() -> float:
        with serve(place, store) as server:
            idle = memory(family(server.process.pid))
            with Watch(server.process.pid) as watch:
                url = f"{server.url}{_SNAPSHOT}/rows?view=0"
                _post_until_there(url, batches[0].astype("<u4").tobytes())
                key = "snapshots/teacher/codes/c/0/0/0"
                loads = [
                    _start(place, [url, *bodies]),
                    _start(place, [f"{server.url}{_SNAPSHOT}/objects/{key}"]),
                ]
                for load in loads:
                    _finished(load)
            facts["idle MiB"], facts["peak MiB"] = idle, watch.anonymous
            facts["peak with maps MiB"] = watch.resident
        return watch.anonymous - idle

    yield Sides(
        ours=ours,
        theirs=lambda: ALLOWED_MIB,
        repeats=place.sizes.few_repeats,
        facts=facts,
        warm=False,
    )


def write_bodies(place: Workplace, folder: Path) -> tuple[NDArray[np.int64], list[str]]:
    """Write requests for rows into ``folder``; return their indices and the client's options."""
    batches = shuffled_batches(place, BODIES)
    (folder / "bodies").write_bytes(batches.astype("<u4").tobytes())
    return batches, ["--bodies", str(folder / "bodies"), "--length", str(4 * BATCH)]


def _loaded(
    place: Workplace,
    ours: tuple[BackgroundServer, list[str]],
    theirs: tuple[BackgroundServer, list[str]],
    facts: dict[str, Any],
    figure: Literal["rate", "cpu per answer"] = "rate",
) -> Sides:
    return Sides(
        ours=_load(place, *ours, facts, "ours", figure),
        theirs=_load(place, *theirs, facts, "theirs", figure),
        repeats=place.sizes.repeats,
        facts=facts,
    )


def _load(
    place: Workplace,
    server: BackgroundServer,
    target: list[str],
    facts: dict[str, Any],
    key: str,
    figure: str,
) -> Side:
    """Measure answers per second, or the server's processor time for each, in microseconds.

    Both are added to ``facts``, with the share of a processor that server and client used.
    """

    def side() -> float:
        client = _start(place, target)
        processes = family(server.process.pid)
        before = cpu_seconds(processes)
        figures = _finished(client)
        spent = cpu_seconds(processes) - before
        facts[f"cpu {key}"] = round(spent / figures["seconds"], 2)
        facts[f"cpu of client, {key}"] = round(figures["cpu"], 2)
        figures["cpu per answer"] = 1e6 * spent / figures["answers"]
        facts[f"cpu us per answer, {key}"] = round(figures["cpu per answer"])
        facts[f"rate, {key}"] = round(figures["rate"])
        return figures[figure]

    return side


def _start(place: Workplace, target: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.bench.load", *target]
    command += ["--seconds", str(place.sizes.load_seconds)]
    return subprocess.Popen(pinned(command, -1), stdout=subprocess.PIPE, text=True)


def _finished(client: subprocess.Popen[str]) -> dict[str, float]:
    output, _ = client.communicate()
    if client.returncode:
        raise RuntimeError("the client found an error: see above")
    figures: dict[str, float] = json.loads(output)
    return figures


def _get(request: str | urllib.request.Request) -> bytes:
    with urllib.request.urlopen(request, timeout=60) as answer:
        body: bytes = answer.read()
        return body


def _post_until_there(url: str, body: bytes) -> bytes:
    """Return the answer; wait while the server says 503, until its decoded copy is ready."""
    request = urllib.request.Request(
        url, data=body, headers={"Content-Type": "application/octet-stream"}
    )
    for _ in range(240):
        try:
            return _get(request)
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise RuntimeError(f"{url}: {json.load(error)}") from None
            time.sleep(0.25)
    raise RuntimeError(f"{url}: still 503 after a minute")
