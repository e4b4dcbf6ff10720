"""Requests for rows: both forms, what is refused, and the arrays and checksums of an answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from logitstore import open_store
from logitstore.format.encodings.table import encoding, parse_encoding
from logitstore.format.wire import CRC_HEADER, ROOT_HEADER, crc32c, pack_indices, unpack
from tests.support.service import BINARY, ROWS, problem


def test_both_forms_of_a_rows_request_give_the_readers_rows(server: Any, root: Path) -> None:
    snapshot = open_store(root / "c10.zarr").snapshots["teacher"]
    indices = [99, 0, 31, 32, 99]
    text = json.dumps({"view": 1, "indices": indices}).encode()
    answers = [
        server.get(ROWS, {"content-type": "application/json"}, "POST", text),
        server.get(f"{ROWS}?view=1", BINARY, "POST", pack_indices(np.array(indices))),
    ]
    for status, headers, body in answers:
        assert status == 200
        assert headers[CRC_HEADER] == crc32c(body)
        assert headers[ROOT_HEADER] == snapshot.root
        rows = unpack(body, encoding("float16", 10), count=5)
        np.testing.assert_array_equal(rows.logits(), snapshot.logits(indices, view=1))
    assert answers[0][2] == answers[1][2]


def test_the_protocols_example_gives_the_readers_logits(server: Any, root: Path) -> None:
    page = (Path(__file__).parents[2] / "api/HTTP.md").read_text()
    first, proof = (part.split("```")[0] for part in page.split("```python\n")[1:])
    snapshot = open_store(root / "c10.zarr").snapshots["teacher"]
    digests = zarr.open_array(root / "c10.zarr/snapshots/teacher/row_digests", mode="r")[:]
    names: dict[str, Any] = {"digests": digests}
    first = first.replace("localhost:8000", f"localhost:{server.port}")
    exec(first.replace("resnet56", "teacher"), names)
    np.testing.assert_array_equal(names["logits"], snapshot.logits([3, 1, 4]))
    exec(proof, names)
    names["arrays"]["codes"][1] *= -1
    with pytest.raises(AssertionError):
        exec(proof, names)


@pytest.mark.parametrize(
    ("query", "kind", "body", "status"),
    [
        ("", "application/json", b'{"view":0,"indices":[100]}', 422),
        ("", "application/json", b'{"view":0,"indices":[-1]}', 422),
        ("", "application/json", b'{"view":2,"indices":[1]}', 422),
        ("", "application/json", b'{"view":-1,"indices":[1]}', 422),
        ("", "application/json", b'{"indices":[1.5]}', 422),
        ("", "application/json", b'{"indices":["1"]}', 422),
        ("", "application/json", b'{"indices":[true]}', 422),
        ("", "application/json", b'{"indices":[99999999999999999999999]}', 422),
        ("", "application/json", b'{"indices":[1],"more":1}', 422),
        ("", "application/json", b"[" * 5000, 422),
        ("", "application/json", b"\xff\xfe", 422),
        ("", "application/json", b"", 422),
        ("", "application/octet-stream", b"\0\0\0", 422),
        ("?view=2", "application/octet-stream", b"\0\0\0\0", 422),
        ("?view=x", "application/octet-stream", b"\0\0\0\0", 422),
        ("?view=%C2%B2", "application/octet-stream", b"\0\0\0\0", 422),
        ("?view=1&view=0", "application/octet-stream", b"\0\0\0\0", 422),
        ("?veiw=1", "application/octet-stream", b"\0\0\0\0", 422),
        ("?view=1", "application/json", b'{"indices":[1]}', 422),
        ("?view=0", "application/json", b'{"view":0,"indices":[1]}', 422),
        ("", "text/plain", b"1", 415),
    ],
)
def test_a_bad_rows_request_is_explained(
    server: Any, query: str, kind: str, body: bytes, status: int
) -> None:
    answer = server.get(ROWS + query, {"content-type": kind}, "POST", body)
    assert answer[0] == status
    assert problem(answer)["detail"]


@pytest.mark.parametrize(
    ("form", "arrays"),
    [
        ("float32", {"codes": ("F32", 10)}),
        ("float16", {"codes": ("F16", 10), "scalars": ("F32", 2)}),
        ("uint8:64", {"codes": ("U8", 10), "scalars": ("F32", 2)}),
        ("topk:3", {"codes": ("F16", 4), "indices": ("U16", 4), "scalars": ("F32", 2)}),
    ],
)
def test_the_arrays_of_an_answer_are_those_that_the_protocol_names(
    serve: Callable[..., Any],
    tiny_store: Any,
    tmp_path: Path,
    form: str,
    arrays: dict[str, tuple[str, int]],
) -> None:
    server = serve(tiny_store(tmp_path / "c10.zarr", form=form))
    body = server.get(ROWS, BINARY, "POST", pack_indices(np.array([5, 2, 5])))[2]
    length = int.from_bytes(body[:8], "little")
    header = json.loads(body[8 : 8 + length])
    assert {n: (a["dtype"], a["shape"]) for n, a in header.items()} == {
        name: (kind, [3, width]) for name, (kind, width) in arrays.items()
    }
    sizes = {"F32": 4, "F16": 2, "U16": 2, "U8": 1}
    per_row = sum(sizes[kind] * width for kind, width in arrays.values())
    assert len(body) == 8 + length + 3 * per_row
    none = server.get(ROWS, BINARY, "POST", b"")
    assert none[0] == 200
    assert len(unpack(none[2], parse_encoding(form, 10), count=0).arrays["codes"]) == 0


def test_the_bytes_of_all_arrays_limit_a_request(
    serve: Callable[..., Any], tiny_store: Any, tmp_path: Path
) -> None:
    """5,000 classes of float16 are 10,000 bytes of codes a row, and 8 of scalars."""
    server = serve(tiny_store(tmp_path / "c10.zarr", samples=2, classes=5000, form="float16"))
    most = (16 << 20) // (2 * 5000 + 8)
    for count, status in ((most, 200), (most + 1, 422)):
        body = pack_indices(np.zeros(count, np.int64))
        assert server.get(ROWS, BINARY, "POST", body)[0] == status
