"""What tests of the service share: its paths, and what they expect of every error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROWS = "/v1/stores/c10/snapshots/teacher/rows"
OBJECTS = "/v1/stores/c10/snapshots/teacher/objects"
BINARY = {"content-type": "application/octet-stream"}


def write_private(path: Path, text: str) -> Path:
    path.touch(0o600)
    path.write_text(text)
    return path


def problem(answer: tuple[int, dict[str, str], bytes]) -> dict[str, Any]:
    """Return the problem document of an answer, which must be one and must name its request."""
    status, headers, body = answer
    assert headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = json.loads(body)
    assert document["status"] == status
    assert document["request_id"] == headers["x-request-id"]
    return document
