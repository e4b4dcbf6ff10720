"""The benchmarks run, compare equal work, and say when one cannot run."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.bench.harness import Benchmark, Outcome, Reach, Sides, take_turns
from tests.bench.registry import benchmarks

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """Run a few small benchmarks; return what was printed, and the document."""
    out = tmp_path_factory.mktemp("bench") / "found" / "bench.json"
    command = [sys.executable, "-m", "tests.bench", "--quick", "--rows", "1500", "--json", str(out)]
    command += ["--only", "gather-rows", "gather-pickles", "bytes-real"]
    environment = {"PATH": "", "HOME": str(out.parent)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    document = json.loads(out.read_text())
    assert done.returncode == any(entry["broken"] for entry in document["benchmarks"]), done.stderr
    return done.stdout, document


def test_a_run_gives_every_ratio_with_its_turns_its_target_and_whether_it_is_met(
    bench: tuple[str, dict[str, Any]],
) -> None:
    printed, document = bench
    rows, pickles, _ = document["benchmarks"]
    assert document["quick"]
    assert {"cpus", "processor", "memory"} <= document["machine"].keys()
    assert {"numpy", "zarr", "lmdb", "nginx"} <= document["versions"].keys()
    for entry in (rows, pickles):
        ratios = sorted(turn["ours"] / turn["theirs"] for turn in entry["repeats"])
        assert len(ratios) == 5
        assert entry["ratio"] == ratios[2]
        assert entry["what"] in printed
    assert rows["reach"] == {"sign": ">=", "value": 0.75}
    assert rows["met"] is (rows["ratio"] >= 0.75)
    assert pickles["met"] is None  # it is there for comparison
    assert pickles["facts"]["peer B/row"] >= 1008 > pickles["facts"]["store B/row"]


def test_a_benchmark_that_cannot_run_is_listed_with_the_reason(
    bench: tuple[str, dict[str, Any]],
) -> None:
    printed, document = bench
    real = document["benchmarks"][2]
    assert (real["name"], real["state"], real["ratio"]) == ("bytes-real", "not run", None)
    assert "LOGITSTORE_BENCH_DATA" in real["reason"]
    assert f"not run: {real['reason']}" in printed


def test_an_unknown_name_is_refused_with_those_that_there_are() -> None:
    command = [sys.executable, "-m", "tests.bench", "--only", "gather-punchcards"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "'gather-punchcards'" in done.stderr
    assert "gather-lmdb" in done.stderr


def test_every_benchmark_has_a_name_of_its_own_and_sides() -> None:
    known = benchmarks(None)
    assert len({entry.name for entry in known}) == len(known)
    for entry in known:
        module, _, function = entry.sides.rpartition(".")
        assert callable(getattr(import_module(f"tests.bench.{module}"), function))


def test_sides_take_turns_and_the_ratio_is_the_median_of_ours_over_theirs() -> None:
    calls: list[str] = []
    figures = {"ours": iter([9, 2, 6, 4]), "theirs": iter([9, 2, 2, 2])}

    def side(name: str) -> float:
        calls.append(name[0])
        return next(figures[name])

    turns = take_turns(Sides(ours=lambda: side("ours"), theirs=lambda: side("theirs"), repeats=3))
    assert "".join(calls) == "ottootto"
    entry = Benchmark(
        name="a", what="a", against="b", unit="s", reach=Reach("<=", 1.9), sides="a.b"
    )
    outcome = Outcome(benchmark=entry, state="run", turns=turns)
    assert turns == ((2, 2), (6, 2), (4, 2))
    assert outcome.ratio == 2
    assert outcome.met is False
    assert not outcome.broken


@pytest.mark.parametrize(
    ("reach", "today", "ratios", "broken"),
    [
        (Reach("<=", 1.7), None, (2, 2, 2, 2), False),
        (Reach("<=", 1.5), None, (2, 2, 2, 1), True),
        (Reach("<=", 1.5), None, (2, 2, 9, 1, 1), False),
        (Reach(">=", 3), None, (2,), True),
        (Reach(">=", 3), 2.4, (2,), False),
    ],
)
def test_a_promise_is_broken_if_three_of_four_turns_miss_it_by_more_than_a_fifth(
    reach: Reach, today: float | None, ratios: tuple[float, ...], broken: bool
) -> None:
    entry = Benchmark(
        name="a", what="a", against="b", unit="s", reach=reach, sides="a.b", today=today
    )
    outcome = Outcome(benchmark=entry, state="run", turns=tuple((ratio, 1) for ratio in ratios))
    assert outcome.met is False
    assert outcome.broken is broken
