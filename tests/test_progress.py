"""Progress as lines: the amounts that are done, with bytes as sizes."""

import io

import pytest

from logitstore.progress import Lines


@pytest.mark.parametrize(
    ("total", "unit", "line"),
    [
        (1536, "bytes", "verify: 1.5 KiB of 1.5 KiB, "),
        (300 * 2**20, "bytes", "verify: 300.0 MiB of 300.0 MiB, "),
        (1200, "rows", "verify: 1,200 of 1,200 rows, "),
    ],
)
def test_a_line_names_what_is_done_of_what(total: int, unit: str, line: str) -> None:
    stream = io.StringIO()
    progress = Lines(stream)
    progress.start("verify", total, unit)
    progress.advance(total)
    assert stream.getvalue().startswith(line)
    assert stream.getvalue().endswith("/s, ETA 0 s\n")
