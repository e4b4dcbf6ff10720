"""A build that dies anywhere is finished by the same command, byte for byte."""

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from logitstore.errors import InputError, Unfinished
from logitstore.storage.durable import write_file
from logitstore.storage.local import LocalStorage

ROOT = Path(__file__).parent.parent

# The parent forks one child for each point; it never starts zarr's threads itself.
KILLED_EVERYWHERE = """
import os, sys
from pathlib import Path
import numpy as np
from logitstore import storage
from logitstore.writing.opening import open_writer
from logitstore.writing.target import Target
from logitstore.format.cards import EncodingCard, ImportCard, Samples, SnapshotPlan, StoreMeta

class Mortal(storage.LocalStorage):
    '''Dies at its n-th change: before it, or with half of the bytes in a temporary file.'''
    left, torn = 10**9, False

    def _die(self, key, data):
        self.left -= 1
        if self.left == 0:
            if self.torn:
                path = self.path(key)
                path.parent.mkdir(parents=True, exist_ok=True)
                half = bytes(data)[: len(data) // 2]
                path.with_name(f".{path.name}.{os.getpid()}.tmp").write_bytes(half)
            os._exit(9)

    def put(self, key, data):
        self._die(key, data)
        super().put(key, data)

    def create(self, key, data):
        self._die(key, data)
        return super().create(key, data)

    def delete(self, key):
        self._die(key, b"")
        super().delete(key)

def build(place, left=10**9, torn=False):
    labels = np.arange(70, dtype=np.int32) % 7
    logits = np.random.default_rng(0).normal(size=(70, 7)).astype(np.float32)
    samples = Samples("tiny", labels, [f"k{i}" for i in range(70)])
    plan = SnapshotPlan(name="a", views=1, samples=70, classes=7, rows_per_shard=32,
        imported=ImportCard(file="x", sha256="0" * 64), encoding=EncodingCard(name="float16"),
        packages={})
    mortal = Mortal(Path(place))
    mortal.left, mortal.torn = left, torn
    meta = StoreMeta(classes=7, dataset=samples.card())
    writer = open_writer(Target.read(mortal, meta, samples), plan)
    for shard in writer.missing():
        writer.write(shard, logits[shard.samples], labels[shard.samples])
    writer.commit()

def child(*arguments):
    pid = os.fork()
    if pid == 0:
        build(*arguments)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

top = Path(sys.argv[1])
assert child(top / "whole") == 0
points = 0
for torn in (False, True):
    point = 1
    while child(top / f"{torn}-{point}", point, torn) == 9:
        assert child(top / f"{torn}-{point}") == 0
        points += 1
        point += 1
print(points)
"""


def tree(root: Path) -> dict[str, str]:
    found = {str(p.relative_to(root)): p for p in root.rglob("*")}
    return {
        name: sha256(p.read_bytes()).hexdigest() if p.is_file() else "folder"
        for name, p in found.items()
    }


def test_killed_at_every_write_and_resumed_the_tree_is_byte_identical(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED_EVERYWHERE, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 40
    whole = tree(tmp_path / "whole")
    resumed = [path for path in tmp_path.iterdir() if path.name != "whole"]
    assert len(resumed) > 40
    for path in resumed:
        assert tree(path) == whole, path.name


def test_a_full_disk_is_said_and_the_next_run_goes_on(
    tiny_store: Callable[..., Path], tmp_path: Path
) -> None:
    """The kernel refuses to let files grow, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, hard))
    try:
        with pytest.raises(Unfinished, match="run the same command again") as refused:
            tiny_store(tmp_path / "s", classes=40, rows_per_shard=64)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert refused.value.exit_code == 3
    tiny_store(tmp_path / "s", classes=40, rows_per_shard=64)
    tiny_store(tmp_path / "t", classes=40, rows_per_shard=64)
    assert tree(tmp_path / "s") == tree(tmp_path / "t")


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    write_file(path, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, hard))
    try:
        with pytest.raises(Unfinished, match="no space left while writing file"):
            write_file(path, bytes(1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old"
    write_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert [other.name for other in path.parent.iterdir()] == ["file"]
    with pytest.raises(InputError, match="a file is in the way of below"):
        write_file(path / "below", b"")


def test_create_never_replaces(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    assert storage.create("a/b", b"first")
    assert not storage.create("a/b", b"second")
    assert storage.get("a/b") == b"first"
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["b"]


def test_sweeping_spares_the_temporary_files_of_living_writers(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.put("a/b", b"x")
    living = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for pid in (living.pid, dead.pid, os.getpid()):
        (tmp_path / f"a/.b.{pid}.tmp").write_bytes(b"half")
    storage.sweep(emptied="")
    left = sorted(p.name for p in (tmp_path / "a").iterdir())
    living.communicate(b"\n")
    assert left == [f".b.{living.pid}.tmp", "b"]
