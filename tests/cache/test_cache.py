"""Decoded copies: whole or absent whatever dies when, shared, checked, and never in the way."""

import errno
import fcntl
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitstore.cache import cache as cache_module
from logitstore.cache.cache import Cache
from logitstore.cache.copy import Copy
from logitstore.cache.folder import CacheFolder, digest_of
from logitstore.cache.mapped import MappedCopy
from logitstore.cache.prepare import prepare_reading
from logitstore.cache.readers import CopyReader
from logitstore.errors import CacheFull, Damaged, InputError, NoCache, Unfinished
from logitstore.progress import Silent
from logitstore.reading.opening import open_store
from logitstore.reading.snapshot import Snapshot

ROOT = Path(__file__).parents[2]
SAMPLES, CLASSES, VIEWS = 300, 40, 2
COPY_BYTES = VIEWS * SAMPLES * (2 * CLASSES + 8)


@pytest.fixture(scope="module")
def store(tiny_store: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three snapshots of 2 x 300 x 40; a decoded copy of one takes COPY_BYTES."""
    path = tmp_path_factory.mktemp("cache") / "s.zarr"
    names = ("teacher", "second", "third")
    return tiny_store(path, names, samples=SAMPLES, classes=CLASSES, views=VIEWS)


@pytest.fixture
def teacher(store: Path) -> Snapshot:
    return open_store(store).snapshots["teacher"]


def mapped(cache: Cache, snapshot: Snapshot) -> MappedCopy:
    copy = cache.copy_of(snapshot, in_memory=False)
    assert isinstance(copy, MappedCopy)
    return copy


def check_rows(copy: Copy, snapshot: Snapshot) -> None:
    for shard in snapshot.grid.shards():
        view, start, stop = shard
        for name, rows in snapshot.read_shard(shard).items():
            assert copy.arrays[name][view, start:stop].tobytes() == rows.tobytes()


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_copy_holds_every_row_and_cannot_be_written(
    teacher: Snapshot, tmp_path: Path, in_memory: bool
) -> None:
    copy = Cache(tmp_path / "c").copy_of(teacher, in_memory=in_memory)
    check_rows(copy, teacher)
    assert copy.bytes == COPY_BYTES
    assert (copy.path is None) == in_memory == (not (tmp_path / "c").exists())
    assert copy.made
    assert copy.seconds > 0
    for name, array in copy.arrays.items():
        assert array.shape == teacher.layouts[name].shape
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0, 0] = 1


def test_small_snapshots_go_to_memory_unasked(teacher: Snapshot, tmp_path: Path) -> None:
    assert Cache(tmp_path / "c").copy_of(teacher).path is None
    assert not (tmp_path / "c").exists()


def test_rows_are_taken_in_order_with_repetitions_and_into_given_arrays(
    teacher: Snapshot, tmp_path: Path
) -> None:
    copy = mapped(Cache(tmp_path), teacher)
    wanted = np.array([299, 0, 7, 0])
    taken = copy.take(wanted, 1)
    out = {name: np.empty_like(array) for name, array in taken.items()}
    copy.take(wanted, 1, out)
    for name, array in copy.arrays.items():
        assert taken[name].tobytes() == array[1][wanted].tobytes() == out[name].tobytes()


def test_a_copy_is_made_once_and_then_found(store: Path, tmp_path: Path) -> None:
    cache, snapshots = Cache(tmp_path), open_store(store).snapshots
    first = mapped(cache, snapshots["teacher"])
    again = mapped(cache, open_store(store).snapshots["teacher"])
    other = mapped(cache, snapshots["second"])
    assert (first.made, again.made, other.made) == (True, False, True)
    assert first.path == again.path != other.path
    assert [entry.in_use for entry in cache.entries()] == [True, True]
    check_rows(again, snapshots["teacher"])
    check_rows(other, snapshots["second"])
    del again
    assert cache.clear()[0] == []  # the one who made it uses it, too


def test_a_copy_made_between_looking_and_locking_is_used(
    teacher: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, others = cache_module._identity, list[Copy | None]()

    def late(folder: Path) -> Any:
        found = real(folder)
        if not others:
            others.append(None)
            others.append(mapped(Cache(tmp_path), teacher))
        return found

    monkeypatch.setattr(cache_module, "_identity", late)
    assert not mapped(Cache(tmp_path), teacher).made
    assert others[1].made


def test_a_lock_whose_file_was_removed_meanwhile_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The maker before removes it; who still waits with the old file must not feel alone."""
    folder, digest, done = CacheFolder(tmp_path, 0), "0" * 64, list[int]()

    def late(descriptor: int, kind: int, real: Callable[[int, int], None] = fcntl.flock) -> None:
        if not done:
            done.append(kind)
            with folder.maker(digest) as other:
                assert other is None
        real(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", late)
    with folder.maker(digest) as other:
        assert other is not None
    with folder.maker(digest) as other:
        assert other is None


def test_a_disk_that_writes_in_small_pieces_gets_it_all(
    teacher: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hesitant(descriptor: int, data: memoryview, offset: int, real: Any = os.pwrite) -> int:
        return int(real(descriptor, data[:100], offset))

    monkeypatch.setattr(os, "pwrite", hesitant)
    check_rows(mapped(Cache(tmp_path), teacher), teacher)


def test_all_is_on_the_disk_before_the_copy_gets_its_name(
    teacher: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut may take whatever was not synced before."""
    done: list[tuple[str, str]] = []

    def sync(descriptor: int, real: Callable[[int], None] = os.fsync) -> None:
        done.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        real(descriptor)

    def rename(source: Path, target: Path, real: Callable[..., None] = os.rename) -> None:
        real(source, target)
        done.append(("rename", source.name))

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "rename", rename)
    mapped(Cache(tmp_path), teacher)
    draft = next(name for kind, name in done if kind == "rename")
    at = done.index(("rename", draft))
    files = {("sync", name) for name in ("codes.bin", "scalars.bin", "index.json", draft)}
    assert files == set(done[:at])
    assert done[at - 1] == ("sync", draft)
    assert done[at + 1 :] == [("sync", tmp_path.name)]


def flip(path: Path, place: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "first bit of the codes": lambda p: flip(p / "codes.bin", 0.0),
    "a bit of the codes": lambda p: flip(p / "codes.bin", 0.61),
    "last bit of the codes": lambda p: flip(p / "codes.bin", 1.0),
    "a bit of the scalars": lambda p: flip(p / "scalars.bin", 0.5),
    "cut short": lambda p: os.truncate(p / "codes.bin", COPY_BYTES // 3),
    "empty": lambda p: os.truncate(p / "scalars.bin", 0),
    "too long": lambda p: os.truncate(p / "scalars.bin", COPY_BYTES),
    "file missing": lambda p: os.unlink(p / "codes.bin"),
    "index missing": lambda p: os.unlink(p / "index.json"),
    "index empty": lambda p: os.truncate(p / "index.json", 0),
    "index of another root": lambda p: (p / "index.json").write_text(
        (p / "index.json").read_text().replace('"root":"', '"root":"0000')[:-5]
    ),
    "a checksum too few": lambda p: drop_checksum(p / "index.json"),
    "a file in its place": lambda p: (p.rename(p.with_name("x")), p.write_text("?")),
}


def drop_checksum(path: Path) -> None:
    index = json.loads(path.read_text())
    index["arrays"]["codes"]["seals"].pop()
    path.write_text(json.dumps(index))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_copy_is_noticed_and_made_again(
    teacher: Snapshot, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    cache = Cache(tmp_path)
    path = mapped(cache, teacher).path
    assert path is not None
    DAMAGES[damage](path)
    copy = mapped(cache, teacher)
    assert copy.made
    assert "the copy of teacher is made again" in caplog.text
    check_rows(copy, teacher)
    assert not mapped(cache, teacher).made


def test_a_copy_damaged_while_in_use_is_made_anew_beside_it(
    teacher: Snapshot, tmp_path: Path
) -> None:
    cache = Cache(tmp_path)
    old = mapped(cache, teacher)
    assert old.path is not None
    with open(old.path / "codes.bin", "r+b") as file:
        file.write(b"\xff")
    new = mapped(cache, teacher)
    assert new.made
    check_rows(new, teacher)
    assert old.arrays["codes"].reshape(-1).view(np.uint8)[0] == 0xFF  # its own file, still mapped


def test_who_waits_says_for_whom_and_goes_on_when_that_one_ends(
    teacher: Snapshot, tmp_path: Path
) -> None:
    class Heard(Silent):
        def __init__(self) -> None:
            self.waiting, self.lines = threading.Event(), list[str]()

        def message(self, text: str) -> None:
            self.lines.append(text)
            self.waiting.set()

    heard, copies = Heard(), list[Copy]()
    make = threading.Thread(
        target=lambda: copies.append(Cache(tmp_path).copy_of(teacher, heard, in_memory=False))
    )
    with CacheFolder(tmp_path, 0).maker(digest_of(teacher.root)) as other:
        assert other is None
        make.start()
        assert heard.waiting.wait(20)
        time.sleep(0.1)
        assert not copies
    make.join(20)
    check_rows(copies[0], teacher)
    assert len(heard.lines) == 1
    assert f"waiting for process {os.getpid()} on " in heard.lines[0]


def test_the_least_recently_used_copy_goes_first_and_one_in_use_never(
    store: Path, tmp_path: Path
) -> None:
    snapshots = open_store(store).snapshots
    room_for_two = Cache(tmp_path, 2 * COPY_BYTES + COPY_BYTES // 2)

    def use(name: str, when: float) -> None:
        path = mapped(room_for_two, snapshots[name]).path
        assert path is not None
        os.utime(path / "index.json", (when, when))

    def there() -> list[str]:
        return [entry.snapshot for entry in room_for_two.entries()]

    use("teacher", 1000)
    use("second", 2000)
    mapped(room_for_two, snapshots["teacher"])
    assert there() == ["second", "teacher"]
    use("third", 2e10)
    assert there() == ["teacher", "third"]
    held = mapped(room_for_two, snapshots["teacher"])
    assert held.path is not None
    os.utime(held.path / "index.json", (1, 1))
    use("second", 3e10)
    assert sorted(there()) == ["second", "teacher"]
    also_held = mapped(room_for_two, snapshots["second"])
    with pytest.raises(NoCache, match=r"in use \(.*teacher.*\)"):
        mapped(room_for_two, snapshots["third"])
    assert sorted(there()) == ["second", "teacher"]
    del also_held


def test_a_limit_below_one_copy_is_refused_and_costs_no_other_copy(
    store: Path, tmp_path: Path
) -> None:
    snapshots = open_store(store).snapshots
    mapped(Cache(tmp_path), snapshots["second"])
    with pytest.raises(NoCache, match=r"LOGITSTORE_CACHE_BYTES.*--cache.*--read") as caught:
        mapped(Cache(tmp_path, COPY_BYTES - 1), snapshots["teacher"])
    assert str(tmp_path) in str(caught.value)
    assert isinstance(caught.value, InputError)
    assert [entry.snapshot for entry in Cache(tmp_path).entries()] == ["second"]


def test_clearing_keeps_what_is_in_use_here_or_in_another_process(
    store: Path, tmp_path: Path
) -> None:
    cache, snapshots = Cache(tmp_path / "c"), open_store(store).snapshots
    assert cache.clear() == ([], [])
    assert not cache.folder.exists()
    for name in snapshots:
        mapped(cache, snapshots[name])
    code = (
        "import sys\nfrom pathlib import Path\nfrom logitstore.cache.cache import Cache\n"
        "from logitstore.reading.opening import open_store\n"
        "kept = Cache(Path(sys.argv[1])).copy_of("
        "open_store(sys.argv[2]).snapshots['second'], in_memory=False)\n"
        "print(kept.made, flush=True)\nsys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(cache.folder), str(store)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    assert other.stdin is not None
    assert other.stdout is not None
    assert other.stdout.readline() == b"False\n"
    here = mapped(cache, snapshots["third"])
    removed, kept = cache.clear()
    assert [entry.snapshot for entry in removed] == ["teacher"]
    assert sorted(entry.snapshot for entry in kept) == ["second", "third"]
    assert all(entry.in_use for entry in kept)
    other.send_signal(signal.SIGKILL)
    other.communicate()
    del here
    removed, kept = cache.clear()
    assert len(removed) == 2
    assert kept == []
    assert os.listdir(cache.folder) == ["lock"]


def test_a_worker_process_maps_the_same_files_or_reads_the_store(
    teacher: Snapshot, tmp_path: Path
) -> None:
    cache = Cache(tmp_path)
    copy = mapped(cache, teacher)
    reader = CopyReader(teacher, copy)
    sent = pickle.dumps(reader)
    assert len(sent) < 200_000
    twin = pickle.loads(sent)
    assert isinstance(twin.copy, MappedCopy)
    assert twin.copy.path == copy.path
    expected = teacher.logits([5, 3], view=1)
    assert (twin.rows([5, 3], view=1).logits() == expected).all()
    del twin, copy
    reader.close()
    cache.clear()
    without = pickle.loads(sent)
    assert without.copy is None
    assert (without.rows([5, 3], view=1).logits() == expected).all()


def test_a_copy_in_memory_travels_to_a_worker(teacher: Snapshot, tmp_path: Path) -> None:
    expected = teacher.logits([5, 3], view=1)
    reader = prepare_reading(teacher, "materialise", Cache(tmp_path))
    twin = pickle.loads(pickle.dumps(reader))
    assert [type(copy) for copy in twin.copies] == [Copy]
    assert (twin.logits([5, 3], view=1) == expected).all()


def test_a_copy_without_an_index_goes_when_the_cache_is_cleared_or_space_is_needed(
    store: Path, tmp_path: Path
) -> None:
    """As something that removes old files leaves it."""
    snapshots, cache = open_store(store).snapshots, Cache(tmp_path, COPY_BYTES * 3 // 2)
    path = mapped(cache, snapshots["teacher"]).path
    assert path is not None
    (path / "index.json").unlink()
    path = mapped(cache, snapshots["second"]).path
    assert path is not None
    assert sorted(os.listdir(tmp_path)) == sorted([path.name, "lock"])
    (path / "index.json").unlink()
    removed, kept = cache.clear()
    assert ([entry.bytes for entry in removed], kept) == ([COPY_BYTES], [])
    assert os.listdir(tmp_path) == ["lock"]


def test_a_damaged_store_makes_no_copy(tiny_store: Callable[..., Path], tmp_path: Path) -> None:
    path = tiny_store(tmp_path / "s.zarr")
    flip(path / "snapshots/teacher/codes/c/0/2/0", 0.5)
    snapshot = open_store(path).snapshots["teacher"]
    for in_memory in (True, False):
        with pytest.raises(Damaged, match=r"codes/c/0/2/0 \(view 0, samples 64..95\)"):
            Cache(tmp_path / "c").copy_of(snapshot, in_memory=in_memory)
    assert os.listdir(tmp_path / "c") == ["lock"]


def test_an_interrupted_copy_leaves_nothing(teacher: Snapshot, tmp_path: Path) -> None:
    class Interrupting(Silent):
        def advance(self, count: int) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Cache(tmp_path).copy_of(teacher, Interrupting(), in_memory=False)
    assert os.listdir(tmp_path) == ["lock"]
    assert mapped(Cache(tmp_path), teacher).made


def fail_in_child(work: Callable[[], object]) -> str:
    """The class and text of the error that ``work`` raises in a forked process."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            said = repr(work())
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as answer:
        said = answer.read().decode()
    os.waitpid(pid, 0)
    return said


@pytest.mark.parametrize("allocates", [True, False])
def test_a_file_system_that_takes_no_more_gives_one_clear_error_and_keeps_nothing(
    teacher: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allocates: bool
) -> None:
    """Before any work; on a file system that does not say so it is the writing that fails."""

    class NotBegun(Silent):
        def start(self, task: str, total: int, unit: str) -> None:
            assert not allocates

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (COPY_BYTES // 2, COPY_BYTES // 2))
        Cache(tmp_path).copy_of(teacher, NotBegun(), in_memory=False)

    if not allocates:
        monkeypatch.setattr(os, "ftruncate", lambda *_: None)
    said = fail_in_child(work)
    assert said.startswith(f"CacheFull: {tmp_path}: no space: a decoded copy of 'teacher' takes")
    assert "--cache" in said
    assert os.listdir(tmp_path) == ["lock"]


@pytest.fixture
def small_disk(tmp_path: Path) -> object:
    """A file system of 2 MiB; only root may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_told_with_figures_after_idle_copies_were_removed(
    tiny_store: Callable[..., Path], tmp_path: Path, small_disk: Path
) -> None:
    store = tiny_store(
        tmp_path / "s.zarr", ("a", "b", "c"), samples=4000, rows_per_shard=1024
    )  # 112,000 bytes each
    big = open_store(
        tiny_store(tmp_path / "big.zarr", samples=40000, rows_per_shard=8192)
    ).snapshots["teacher"]
    cache, small = Cache(small_disk / "c"), open_store(store).snapshots
    mapped(cache, small["a"])
    (small_disk / "other").write_bytes(bytes((2 << 20) - (300 << 10) - (1 << 20)))
    mapped(cache, small["b"])
    mapped(cache, small["c"])
    assert [entry.snapshot for entry in cache.entries()] == ["b", "c"]
    with pytest.raises(CacheFull, match=r"takes 1\.1 MiB, .* can be had there") as caught:
        mapped(cache, big)
    assert isinstance(caught.value, Unfinished)
    assert caught.value.exit_code == 3
    assert [entry.snapshot for entry in cache.entries()] == ["b", "c"]


@pytest.mark.skipif(os.getuid() != 0, reason="becoming another user needs root")
def test_without_rights_a_copy_is_neither_used_nor_made(store: Path, tmp_path: Path) -> None:
    snapshots = open_store(store).snapshots
    known, unknown = snapshots["teacher"], snapshots["second"]
    made = mapped(Cache(tmp_path), known)
    for folder in [*tmp_path.parents, tmp_path]:
        if folder.stat().st_mode & 0o055 != 0o055:
            folder.chmod(folder.stat().st_mode | 0o055)

    def refused(snapshot: Snapshot) -> None:
        os.setuid(65534)
        mapped(Cache(tmp_path), snapshot)

    assert made.made
    for snapshot in (known, unknown):
        said = fail_in_child(lambda snapshot=snapshot: refused(snapshot))
        assert said.startswith(f"NoCache: {tmp_path}: this folder cannot hold decoded copies: Per")
        assert "--cache" in said


def test_a_folder_in_a_file_and_one_without_locks_are_refused_with_the_reason(
    teacher: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NoCache, match=r"file/c: this folder cannot hold.*Not a directory"):
        mapped(Cache(tmp_path / "file/c"), teacher)

    def lockless(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", lockless)
    with pytest.raises(NoCache, match=r"no file locks.*--cache or LOGITSTORE_CACHE"):
        mapped(Cache(tmp_path / "c"), teacher)


def test_folder_and_limit_come_from_the_argument_or_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, teacher: Snapshot
) -> None:
    monkeypatch.delenv("LOGITSTORE_CACHE", raising=False)
    monkeypatch.delenv("LOGITSTORE_CACHE_BYTES", raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    assert Cache.default() == Cache(Path("/home/someone/.cache/logitstore"), 64 << 30)
    monkeypatch.setenv("LOGITSTORE_CACHE", str(tmp_path / "env"))
    monkeypatch.setenv("LOGITSTORE_CACHE_BYTES", "1.5 GiB")
    assert Cache.default() == Cache(tmp_path / "env", 3 << 29)
    assert Cache.default(tmp_path) == Cache(tmp_path, 3 << 29)
    monkeypatch.setenv("LOGITSTORE_CACHE_BYTES", "plenty")
    with pytest.raises(InputError, match="LOGITSTORE_CACHE_BYTES 'plenty'"):
        Cache.default()
    with pytest.raises(NoCache, match="no home folder"):
        mapped(Cache(Path("~nobody-of-that-name/c")), teacher)
