"""B12: workers end with their parent, however that ended."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

from tests.attacks.running import served


def test_a_killed_parent_leaves_no_workers(small: Path, tmp_path: Path) -> None:
    with served(small, "--workers", 2, cache=tmp_path / "cache") as server:
        pid = server.process.pid
        time.sleep(1)
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        assert len(children) >= 2
        server.process.kill()
        server.process.wait()
        deadline = time.monotonic() + 15
        try:
            while alive := [child for child in children if os.path.exists(f"/proc/{child}/exe")]:
                assert time.monotonic() < deadline, f"still there: {alive}"
                time.sleep(0.1)
            socket.create_server(("127.0.0.1", server.port)).close()
        finally:
            for child in alive:
                os.kill(int(child), signal.SIGKILL)
