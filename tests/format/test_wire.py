"""The wire format: rows survive a round trip, its bytes are pinned, damage never becomes rows."""

from __future__ import annotations

import numpy as np
import pytest

from logitstore.errors import Damaged, InputError
from logitstore.format.encodings.rows import Rows
from logitstore.format.encodings.table import encoding, parse_encoding
from logitstore.format.wire import (
    MAX_INDICES,
    MAX_ROWS_BYTES,
    crc32c,
    pack,
    pack_indices,
    rows_per_request,
    template,
    unpack,
    unpack_indices,
)

FORMS = ["float16", "float32", "topk:3", "uint8"]


def some_rows(form: str, count: int, classes: int = 7) -> Rows:
    logits = np.random.default_rng(0).standard_normal((count, classes)).astype(np.float32)
    entry = parse_encoding(form, classes)
    return Rows(entry, entry.encode(logits, np.zeros(count, np.int32)))


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("form", FORMS)
def test_rows_survive_the_wire_bit_for_bit(form: str, count: int) -> None:
    rows = some_rows(form, count)
    received = unpack(pack(rows), rows.encoding, count=count)
    assert received.encoding == rows.encoding
    assert received.arrays.keys() == rows.arrays.keys()
    for name, array in rows.arrays.items():
        assert received.arrays[name].tobytes() == array.tobytes()


def test_the_bytes_on_the_wire_are_these() -> None:
    """Two float16 rows of two classes: safetensors sorts its arrays by falling item size."""
    rows = Rows(
        encoding("float16", 2),
        {
            "codes": np.array([[0, -1], [-2, 0]], "<f2"),
            "scalars": np.array([[3, 1], [0.5, 2]], "<f4"),
        },
    )
    header = (
        b'{"scalars":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},'
        b'"codes":{"dtype":"F16","shape":[2,2],"data_offsets":[16,24]}}'
    )
    header += b" " * (-len(header) % 8)
    scalars = bytes.fromhex("00004040 0000803f 0000003f 00000040")
    codes = bytes.fromhex("0000 00bc 00c0 0000")
    assert pack(rows) == len(header).to_bytes(8, "little") + header + scalars + codes


@pytest.mark.parametrize("count", [0, 1, 5, 256])
@pytest.mark.parametrize("classes", [4, 7, 10, 1000])
@pytest.mark.parametrize("form", FORMS)
def test_rows_written_into_a_template_are_the_packed_bytes(
    form: str, classes: int, count: int
) -> None:
    """The server writes into the body itself; the safetensors library is the reference."""
    entry = parse_encoding(form, classes)
    rng = np.random.default_rng(count)
    layout = {name: (np.dtype(kind), width) for name, (kind, width) in entry.layout.items()}
    arrays = {
        name: rng.integers(0, 256, (count, width * kind.itemsize), np.uint8).view(kind)
        for name, (kind, width) in layout.items()
    }
    found = template(entry, count)
    body = np.full(found.length, 255, np.uint8)
    for name, place in found.arrays(body).items():
        place[...] = arrays[name]
    assert body.tobytes() == pack(Rows(entry, arrays))


def test_indices_are_little_endian_uint32() -> None:
    indices = np.array([1, 256, 2**32 - 1])
    data = bytes.fromhex("01000000 00010000 ffffffff")
    assert pack_indices(indices) == data
    assert unpack_indices(data).tolist() == indices.tolist()
    with pytest.raises(InputError, match="uint32"):
        pack_indices(np.array([2**32]))
    with pytest.raises(InputError, match="whole number"):
        unpack_indices(data[:-1])


def test_the_checksum_is_the_castagnoli_crc() -> None:
    assert crc32c(b"123456789") == "e3069283"  # RFC 3720's check value


@pytest.mark.parametrize("form", FORMS)
def test_other_rows_than_those_expected_are_damage(form: str) -> None:
    data = pack(some_rows(form, 3))
    wrong = [(form, 7, 2), *((other, 7, 3) for other in FORMS if other != form)]
    if not form.startswith("topk"):  # whose rows have as many numbers whatever the classes are
        wrong.append((form, 8, 3))
    for other, classes, count in wrong:
        with pytest.raises(Damaged, match="expected"):
            unpack(data, parse_encoding(other, classes), count=count)


def test_bytes_cut_anywhere_are_damage() -> None:
    data = pack(some_rows("float16", 3))
    for length in range(len(data)):
        with pytest.raises(Damaged):
            unpack(data[:length], encoding("float16", 7), count=3)


def test_a_flipped_bit_in_the_header_never_changes_what_an_array_is() -> None:
    """Either it is refused, or it is harmless; the body's bits are the checksum's business."""
    rows = some_rows("float16", 3)
    data = pack(rows)
    header = 8 + int.from_bytes(data[:8], "little")
    for bit in range(8 * header):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        assert crc32c(bytes(flipped)) != crc32c(data)
        try:
            received = unpack(bytes(flipped), rows.encoding, count=3)
        except Damaged:
            continue
        assert {n: a.shape for n, a in received.arrays.items()} == {
            n: a.shape for n, a in rows.arrays.items()
        }


def test_a_request_never_asks_for_more_than_its_two_limits() -> None:
    for classes in (2, 1000, 21_843, 1 << 24):
        form = encoding("float16", classes)
        most = rows_per_request(form)
        assert 1 <= most <= MAX_INDICES
        assert most == 1 or most * form.bytes_per_row <= MAX_ROWS_BYTES
