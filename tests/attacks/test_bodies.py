"""B9: a body that is wrong in many places costs as little as one that is wrong in one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.attacks.running import Served, problem

ROWS = "/v1/stores/c10/snapshots/teacher/rows"
JSON = {"content-type": "application/json"}
BODIES = {
    "strings": b'{"indices":[' + b'"",' * 349_000 + b'""]}',
    "numbers": b'{"indices":[' + b"1," * 500_000 + b"1]}",
    "lists": b"[" * 1_000_000,
    "objects": b'{"indices":[' + b"{}," * 349_000 + b"{}]}",
    "keys": b"{" + b",".join(b'"%d":1' % key for key in range(90_000)) + b"}",
    "digits": b'{"indices":[' + b"9" * 1_000_000 + b"]}",
    "few strings": b'{"indices":[' + b'"",' * 4000 + b'""]}',
}


@pytest.mark.parametrize("name", BODIES)
def test_a_wrong_body_is_refused_at_its_first_fault(open_server: Served, name: str) -> None:
    assert open_server.ask(ROWS, JSON, b'{"indices":[1]}')[0] == 200
    memory, seconds = open_server.rss(), open_server.processor_seconds()
    with ThreadPoolExecutor(16) as clients:
        asked = [clients.submit(open_server.ask, ROWS, JSON, BODIES[name]) for _ in range(16)]
        answers = [answer.result() for answer in asked]
    assert {answer[0] for answer in answers} == {422}
    assert all(len(problem(answer)["detail"]) < 500 for answer in answers)
    assert open_server.rss() - memory < 100 << 20
    # Processor time, so that others on this machine do not count: a body was 2.3 s.
    assert open_server.processor_seconds() - seconds < 8
