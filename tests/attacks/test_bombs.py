"""Small files that would take gigabytes, or wait for ever, are refused; memory is measured.

Only commands and public names are used here.
"""

import json
import os
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner, Result

from logitstore.cli import app
from logitstore.precompute.views import Views

MIB, GIB = 1 << 20, 1 << 30
TEST = "digits?train=false&samples=0:60"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@dataclass
class Memory:
    """The bytes that the process needed more than before, at most."""

    bytes: int = 0


@contextmanager
def measured() -> Iterator[Memory]:
    def kilobytes(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name))

    memory = Memory()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = kilobytes("VmRSS")
    yield memory
    memory.bytes = 1024 * (kilobytes("VmHWM") - before)


@pytest.fixture(scope="module", autouse=True)
def _imported() -> None:
    """What commands import is no part of what a file takes."""
    run("train", "--data", "digits", "--student", "mlp", "--epochs", 1, "--out", "/dev/null/x")


def write_bomb(path: Path, entries: dict[str, tuple[bytes, int]]) -> None:
    """Write a zip archive whose entries unpack to some bytes and then so many MiB of zeros."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    unit = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    body, directory = bytearray(), bytearray()
    for name, (head, count) in entries.items():
        first = zlib.compressobj(9, zlib.DEFLATED, -15)
        packed = first.compress(head) + first.flush(zlib.Z_FULL_FLUSH) + unit * count
        packed += zlib.compressobj(9, zlib.DEFLATED, -15).flush()
        crc = 0 if count else zlib.crc32(head)
        facts = (20, 0, 8, 0, 0, crc, len(packed), len(head) + count * MIB, len(name), 0)
        place = len(body)
        body += b"PK\3\4" + struct.pack("<HHHHHIIIHH", *facts) + name.encode() + packed
        directory += b"PK\1\2" + struct.pack("<H", 20) + struct.pack("<HHHHHIIIHH", *facts)
        directory += struct.pack("<HHHII", 0, 0, 0, 0, place) + name.encode()
    count = len(entries)
    end = struct.pack("<HHHHIIH", 0, 0, count, count, len(directory), len(body), 0)
    path.write_bytes(bytes(body + directory) + b"PK\5\6" + end)


def test_a_deflated_checkpoint_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(8)}, tmp_path / "small.pth")
    with zipfile.ZipFile(tmp_path / "small.pth") as archive:
        entries = {name: (archive.read(name), 0) for name in archive.namelist()}
    for name, (data, _) in entries.items():
        if name.endswith("data.pkl"):  # where the sizes are pickled: 2²⁸ floats instead of 8
            entries[name] = (data.replace(b"K\x08", b"J" + (1 << 28).to_bytes(4, "little")), 0)
        if name.endswith("data/0"):
            entries[name] = (b"", 1024)
    write_bomb(tmp_path / "bomb.pth", entries)
    assert (tmp_path / "bomb.pth").stat().st_size < 2 * MIB
    with measured() as memory:
        result = run(
            *("build", "--teacher", tmp_path / "bomb.pth", "--arch", "mlp", "--data", TEST),
            *("--out", tmp_path / "x.zarr"),
        )
    assert result.exit_code == 2, result.output
    assert "compressed" in result.stderr
    assert memory.bytes < 100 * MIB


def write_npz(path: Path, **arrays: tuple[tuple[int, ...], str]) -> None:
    """Write deflated arrays of zeros, by name with shape and type."""
    entries = {}
    for name, (shape, kind) in arrays.items():
        text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
        text = text.ljust(117) + "\n"
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        head = b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text.encode()
        entries[f"{name}.npy"] = (head + bytes(size % MIB), size // MIB)
    write_bomb(path, entries)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (((1 << 18, 32, 32), "<f4"), ((1 << 18,), "<i8")),
        (((1 << 20, 32, 32), "|u1"), ((1 << 20,), "<i8")),
        (((10, 8, 8), "|u1"), ((1 << 27,), "<i8")),
    ],
)
def test_an_npz_bomb_is_refused_before_it_is_unpacked(
    x: tuple[tuple[int, ...], str], y: tuple[tuple[int, ...], str], tmp_path: Path
) -> None:
    write_npz(tmp_path / "bomb.npz", x=x, y=y)
    with measured() as memory:
        result = run(
            *("train", "--data", f"npz:{tmp_path}/bomb.npz", "--student", "mlp", "--epochs", 1),
            *("--out", tmp_path / "run"),
        )
    assert result.exit_code == 2, result.output
    assert "would unpack to" in result.stderr
    assert memory.bytes < 100 * MIB


def test_imported_logits_that_are_a_bomb_are_refused(tmp_path: Path) -> None:
    write_npz(tmp_path / "bomb.npz", logits=((1 << 20, 256), "<f4"))
    np.save(tmp_path / "y.npy", np.zeros(10, np.int64))
    with measured() as memory:
        result = run(
            *("import", tmp_path / "bomb.npz", "--labels", tmp_path / "y.npy", "--snapshot", "t"),
            *("--out", tmp_path / "x.zarr"),
        )
    assert result.exit_code == 2, result.output
    assert memory.bytes < 100 * MIB


def test_an_npz_of_ordinary_images_may_be_compressed(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (40, 8, 8), np.uint8)
    np.savez_compressed(tmp_path / "d.npz", x=images, y=np.arange(40) % 4)
    result = run(
        *("train", "--data", f"npz:{tmp_path}/d.npz", "--student", "mlp?hidden=4"),
        *("--epochs", 1, "--out", tmp_path / "run", "--device", "cpu"),
    )
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    "spec",
    [
        [{"name": "Pad", "padding": 1024}] * 40,
        [{"name": "RandomCrop", "size": 4096, "padding": 1024, "pad_if_needed": True}] * 9
        + [{"name": "Pad", "padding": 1024}] * 5,
        [{"name": "Pad", "padding": [1024, 0]}] * 2 + [{"name": "Resize", "size": 4096}],
        [{"name": "Grayscale"}] * 5000,
    ],
)
def test_a_view_of_too_many_pixels_is_refused_before_they_are_made(
    spec: list[dict[str, object]], tmp_path: Path
) -> None:
    (tmp_path / "view.json").write_text(json.dumps(spec))
    with measured() as memory:
        result = run(
            *("train", "--data", TEST, "--augment", tmp_path / "view.json", "--epochs", 1),
            *("--student", "mlp?hidden=4", "--limit", 2, "--out", tmp_path / "run"),
            *("--device", "cpu"),
        )
    assert result.exit_code == 2, result.output
    assert "at most" in result.stderr
    assert memory.bytes < GIB


SIDE = st.integers(1, 4096)
BORDER = st.integers(0, 1024)
STEPS = st.one_of(
    st.builds(lambda size: {"name": "Resize", "size": size}, SIDE | st.tuples(SIDE, SIDE)),
    st.builds(lambda size: {"name": "CenterCrop", "size": size}, SIDE | st.tuples(SIDE, SIDE)),
    st.builds(
        lambda padding: {"name": "Pad", "padding": padding},
        BORDER | st.tuples(BORDER, BORDER) | st.tuples(BORDER, BORDER, BORDER, BORDER),
    ),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(STEPS, max_size=6), st.integers(1, 40), st.integers(1, 40))
def test_no_view_of_a_small_image_takes_a_gigabyte(
    spec: list[dict[str, object]], width: int, height: int
) -> None:
    with measured() as memory:
        try:
            view = Views(spec)(Image.new("L", (width, height)), sample=0, view=0)
        except ValueError as error:
            refused = str(error)
        else:
            refused = "at most" if view.numel() > 89_478_485 else ""
    assert not refused or "at most" in refused
    assert memory.bytes < GIB


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of three images each, and something outside."""
    root = tmp_path / "images"
    for name in ("a", "b"):
        (root / name / "deeper").mkdir(parents=True)
        for number in range(3):
            image = Image.fromarray(np.full((8, 8, 3), 40 * number, np.uint8))
            image.save(root / name / ("deeper" if number == 2 else ".") / f"{number}.png")
    outside = tmp_path / "outside"
    outside.mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(outside / "secret.png")
    return root


def train_on(folder: Path, options: str = "", out: str = "run") -> Result:
    return run(
        *("train", "--data", f"imagefolder:{folder}{options}", "--student", "mlp?hidden=4"),
        *("--epochs", 1, "--out", folder.parent / out, "--device", "cpu", "--workers", 0),
    )


def fifo(root: Path) -> None:
    os.mkfifo(root / "a/9.png")


def bound_socket(root: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(root / "a/9.png"))


def device(root: Path) -> None:
    (root / "a/9.png").symlink_to("/dev/zero")


def cycle(root: Path) -> None:
    (root / "a/deeper/up").symlink_to("..")


def cycle_of_the_root(root: Path) -> None:
    (root / "a/deeper/up").symlink_to("../..")


def cycles_between(root: Path) -> None:
    (root / "a/other").symlink_to("../b")
    (root / "b/other").symlink_to("../a")


def many_ways(root: Path) -> None:
    """2¹⁶ paths to one folder."""
    for number in range(16):
        (root / f"a/way{number}").mkdir()
    for number in range(15):
        for name in ("left", "right"):
            (root / f"a/way{number}" / name).symlink_to(f"../way{number + 1}")


def image_outside(root: Path) -> None:
    (root / "a/9.png").symlink_to("../../outside/secret.png")


def folder_outside(root: Path) -> None:
    (root / "a/far").symlink_to("../../outside")


def class_outside(root: Path) -> None:
    (root / "c").symlink_to("../outside")


def itself(root: Path) -> None:
    (root / "a/9.png").symlink_to("9.png")


def postscript(root: Path) -> None:
    (root / "a/9.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    )


def huge(root: Path) -> None:
    """Some 200 kB of a bitmap of 178 million pixels."""
    Image.new("1", (13_000, 13_000)).save(root / "a/9.png")


FAULTS: dict[Callable[[Path], None], str] = {
    fifo: "not a plain file",
    bound_socket: "not a plain file",
    device: "link leads out of the folder",
    cycle: "was read",
    cycle_of_the_root: "was read",
    many_ways: "was read",
    image_outside: "link leads out of the folder",
    folder_outside: "link leads out of the folder",
    class_outside: "link leads out of the folder",
    itself: "levels of symbolic links",
    postscript: "not one of JPEG",
    huge: "are decoded",
}


@pytest.mark.timeout(20)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_in_a_folder_of_images_is_named(
    fault: Callable[[Path], None], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    fault(folder)
    with measured() as memory:
        result = train_on(folder)
    assert result.exit_code == 2, result.output
    assert FAULTS[fault] in result.stderr, result.stderr
    assert memory.bytes < 100 * MIB


def test_links_are_followed_inside_the_folder_and_out_of_it_where_a_user_asks(
    folder: Path,
) -> None:
    (folder / "a/9.png").symlink_to("0.png")
    assert train_on(folder).exit_code == 0
    (folder / "b/8.png").symlink_to("../../outside/secret.png")
    assert train_on(folder, out="second").exit_code == 2
    assert train_on(folder, "?links=true", out="third").exit_code == 0
    shown = json.loads((folder.parent / "third/inputs.json").read_text())["data"]
    assert (shown["name"], shown["length"]) == ("imagefolder:images", 8)
