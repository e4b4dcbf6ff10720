"""Start servers and commands as processes, and read their memory and time from /proc."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from threading import Event, Thread

from logitstore.cli.background_server import BackgroundServer, free_port
from tests.bench.harness import NotRun, program
from tests.bench.workplace import Workplace

MIB = 1 << 20


def family(pid: int) -> list[int]:
    """Return a process and its living descendants; NotRun on a machine without /proc."""
    if not Path("/proc/self/task").is_dir():
        raise NotRun("there is no /proc to read memory and processor time from")
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [c for task in tasks for c in (task / "children").read_text().split()]
    except OSError:  # it has just ended
        children = []
    return [pid, *(descendant for child in children for descendant in family(int(child)))]


def cpu_seconds(pids: Sequence[int]) -> float:
    """Return the seconds of processor time, user and system, that processes have used."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def memory(pids: Sequence[int], entry: str = "RssAnon") -> float:
    """Return the sum of an entry of /proc/PID/status in MiB; processes that ended count 0."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith(f"{entry}:"))
    return total / 1024


class Watch:
    """Records the peaks of RssAnon and VmRSS of a process and its descendants, every 10 ms.

    RssAnon leaves out what is mapped from files, which the kernel may drop at any time.
    """

    def __init__(self, pid: int) -> None:
        self.pid, self.anonymous, self.resident = pid, 0.0, 0.0
        self._stopped = Event()
        self._thread = Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stopped.wait(0.01):
            pids = family(self.pid)
            self.anonymous = max(self.anonymous, memory(pids))
            self.resident = max(self.resident, memory(pids, "VmRSS"))


def pinned(command: Sequence[str], place: int) -> list[str]:
    """Bind a command to one processor: servers to the first (0), clients to the last (-1)."""
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    return [program("taskset"), "-c", str(cpus[place]), *command] if cpus[1:] else list(command)


def with_cache(folder: Path) -> dict[str, str]:
    """Return the environment with a cache folder of its own."""
    return {**os.environ, "LOGITSTORE_CACHE": str(folder / "cache")}


def start(command: Sequence[str], url: str, ready: str, folder: Path) -> BackgroundServer:
    """Start a server, with a cache of its own, and wait until ``ready`` answers."""
    with (folder / "log").open("wb") as log:
        return BackgroundServer(command, url, ready=ready, log=log, environment=with_cache(folder))


def serve(place: Workplace, store: Path, *, pin: bool = False) -> BackgroundServer:
    """Start ``logitstore serve`` of one store, with a cache folder of its own."""
    folder, port = place.new_folder("serve"), free_port()
    command = [sys.executable, "-m", "logitstore", "serve", str(store), "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    return start(pinned(command, 0) if pin else command, url, "/readyz", folder)


def nginx(place: Workplace, files: Path) -> BackgroundServer:
    """Start nginx with one worker and a distribution's usual settings, serving a folder."""
    folder, port = place.new_folder("nginx"), free_port()
    user = "user root;" if os.geteuid() == 0 else ""  # else it may not read the folder
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = " ".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    (folder / "nginx.conf").write_text(
        f"""{user} worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/errors;
        events {{ worker_connections 256; }}
        http {{
          access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000000; {temporary}
          default_type application/octet-stream;
          server {{ listen 127.0.0.1:{port}; root {files}; }}
        }}
        """
    )
    url = f"http://127.0.0.1:{port}"
    command = pinned([program("nginx"), "-c", str(folder / "nginx.conf")], 0)
    return start(command, url, f"/{next(files.iterdir()).name}", folder)
