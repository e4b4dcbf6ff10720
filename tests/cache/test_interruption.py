"""Processes that race for a decoded copy, or die while they make it, at any call or moment."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Each script forks its children; the parent starts no threads.
PREAMBLE = """
import os, random, shutil, signal, sys, time, traceback, zlib
from pathlib import Path
import numpy as np
from logitstore.cache.cache import Cache
from logitstore.reading.opening import open_store

top, store = Path(sys.argv[1]), sys.argv[2]

def snapshot(name="teacher"):
    return open_store(store).snapshots[name]

def child(work):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid

def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def check(folder, most=10**9):
    '''The copy is right; besides it an ended process leaves its lock's file at most.'''
    found = snapshot()
    copy = Cache(folder, most).copy_of(found, in_memory=False)
    for shard in found.grid.shards():
        view, start, stop = shard
        for name, rows in found.read_shard(shard).items():
            assert (copy.arrays[name][view, start:stop] == rows).all(), (name, view, start)
    name = copy.path.name
    assert {name, "lock"} <= set(os.listdir(folder)) <= {name, "lock", name + ".lock"}
    del copy
    Cache(folder).clear()
    assert os.listdir(folder) == ["lock"], os.listdir(folder)
"""


def run(script: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PREAMBLE + script, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


RACE = """
def race(folder, gate, answers):
    os.close(gate[1])
    os.read(gate[0], 1)  # all begin when the parent lets go
    copy = Cache(folder).copy_of(snapshot(), in_memory=False)
    inode = os.stat(copy.path / "codes.bin").st_ino
    os.write(answers, f"{copy.made} {inode} {zlib.crc32(copy.arrays['codes'])}\\n".encode())

for number in range(25):
    folder, gate, answers = top / str(number), os.pipe(), os.pipe()
    children = [child(lambda: race(folder, gate, answers[1])) for _ in range(6)]
    os.close(gate[1])
    assert [ended(pid) for pid in children] == [0] * 6
    made, inodes, checksums = zip(*map(str.split, os.read(answers[0], 9999).decode().splitlines()))
    assert sorted(made) == ["False"] * 5 + ["True"], made
    assert len(set(inodes)) == len(set(checksums)) == 1
check(top / "0")
"""


def test_of_racing_processes_one_makes_the_copy_and_all_share_it(
    tiny_store: Callable[..., Path], tmp_path: Path
) -> None:
    run(RACE, tmp_path / "c", tiny_store(tmp_path / "s.zarr"))


KILLED_EVERYWHERE = """
import fcntl, threading

def prepare():
    '''An idle copy that must go, and a damaged one of the snapshot itself.'''
    Cache(top / "before").copy_of(snapshot("second"), in_memory=False)
    copy = Cache(top / "before").copy_of(snapshot(), in_memory=False)
    with open(copy.path / "codes.bin", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"!")

assert ended(child(prepare)) == 0
MOST = 2 * int(sys.argv[3]) - 1
CALLS = ("open", "mkdir", "pwrite", "ftruncate", "fsync", "rename", "unlink",
         "rmdir", "utime")

def die_at(point, torn):
    left, lock = [point], threading.Lock()

    def mortal(call, tear=None):
        def counted(*arguments, **options):
            with lock:
                left[0] -= 1
                if left[0] == 0:
                    if tear:
                        tear(*arguments)
                    os._exit(9)
            return call(*arguments, **options)
        return counted

    half = lambda fd, data, offset: write(fd, bytes(data)[: len(data) // 2], offset)
    write = os.pwrite
    if torn:
        os.pwrite = mortal(os.pwrite, half)
        return
    for name in CALLS:
        setattr(os, name, mortal(getattr(os, name)))
    fcntl.flock = mortal(fcntl.flock)

def work(folder, point, torn):
    found = snapshot()
    die_at(point, torn)
    Cache(folder, MOST).copy_of(found, in_memory=False)

points = 0
for torn in (False, True):
    point = 1
    while True:
        folder = top / f"{torn}-{point}"
        shutil.copytree(top / "before", folder)
        code = ended(child(lambda: work(folder, point, torn)))
        assert code in (0, 9), (point, code)
        assert ended(child(lambda: check(folder, MOST))) == 0, point
        if code == 0:
            break
        points, point = points + 1, point + 1
        shutil.rmtree(folder)
print(points)
"""


def test_killed_at_every_call_the_next_one_makes_it_whole_and_leaves_nothing_else(
    tiny_store: Callable[..., Path], tmp_path: Path
) -> None:
    path, names = tmp_path / "s.zarr", ("teacher", "second")
    store = tiny_store(path, names, samples=200, views=2, classes=5, rows_per_shard=128)
    points = int(run(KILLED_EVERYWHERE, tmp_path, store, 2 * 200 * (2 * 5 + 8)))
    assert points > 50  # 4 shards of 2 arrays and the index are written in 9 calls, twice


KILLED_AT_RANDOM = """
draw = random.Random(int(sys.argv[3]))

def work():
    Cache(top).copy_of(snapshot(), in_memory=False)

def seconds():
    shutil.rmtree(top, ignore_errors=True)
    begun = time.monotonic()
    assert ended(child(work)) == 0
    return time.monotonic() - begun

whole = min(seconds() for _ in range(5))
killed = 0
for _ in range(40):
    shutil.rmtree(top)
    pid = child(work)
    time.sleep(draw.uniform(0, 1.2 * whole))
    os.kill(pid, signal.SIGKILL)
    killed += ended(pid) == -signal.SIGKILL
    assert ended(child(lambda: check(top))) == 0
print(killed)
"""


def test_killed_at_random_moments_the_next_one_makes_it_whole(
    tiny_store: Callable[..., Path], tmp_path: Path
) -> None:
    store = tiny_store(tmp_path / "s.zarr", samples=300, classes=40, views=2)
    assert int(run(KILLED_AT_RANDOM, tmp_path / "c", store, 4)) > 8
