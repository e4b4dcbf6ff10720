"""Something that answers in place of a server, to see what clients make of it."""

from __future__ import annotations

import socket
import threading


class Impostor:
    """What answers in place of a server on a free loopback port, one connection after another."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            with client:
                self.answer(client)

    def answer(self, client: socket.socket) -> None:
        raise NotImplementedError

    def close(self) -> None:
        if self.thread.is_alive():
            self.listener.shutdown(socket.SHUT_RDWR)
            self.thread.join()
            self.listener.close()
