"""``python -m tests.bench``: run the benchmarks of ``registry`` and report them.

Progress goes to stderr, one line per benchmark, and the table to stdout.  The JSON file is written
again after each benchmark, so that a run that is stopped keeps its figures.  The exit code is 1 if
a benchmark failed, or if most turns miss what is promised by more than a fifth.  The variable
LOGITSTORE_BENCH_DATA may name a folder of real data: ``*.npy`` logits (N, C) for the curve of bytes
and KL, ``*.npz`` with images ``x`` and labels ``y`` for a build.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from tests.bench import report
from tests.bench.harness import Benchmark, NotRun, Outcome, take_turns
from tests.bench.registry import benchmarks
from tests.bench.workplace import FULL, QUICK, Workplace

DATA = "LOGITSTORE_BENCH_DATA"


def main() -> int:
    options = _options()
    data = Path(os.environ[DATA]) if os.environ.get(DATA) else None
    sizes = QUICK if options.quick else FULL
    if options.rows:
        sizes = replace(sizes, rows=options.rows)
    chosen = _chosen(benchmarks(data), options.only)
    outcomes: list[Outcome] = []
    spent: dict[str, float] = {}
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="logitstore-bench-") as folder:
        place = Workplace(Path(folder), sizes, data)
        for number, benchmark in enumerate(chosen, 1):
            since = time.perf_counter()
            outcomes.append(run(benchmark, place))
            now = time.perf_counter()
            spent[benchmark.name] = now - since
            where = f"[{now - begun:5.0f} s] {number}/{len(chosen)} {benchmark.name}"
            print(f"{where}: {_result(outcomes[-1])}", file=sys.stderr, flush=True)
            report.write(options.json, report.document(outcomes, spent, options.quick))
    print("\n".join(report.lines(outcomes)))
    return int(any(outcome.state == "failed" or outcome.broken for outcome in outcomes))


def run(benchmark: Benchmark, place: Workplace) -> Outcome:
    """Set a benchmark up and let its sides take turns; a failure is part of the outcome."""
    module, _, function = benchmark.sides.rpartition(".")
    try:
        make = getattr(import_module(f"tests.bench.{module}"), function)
        with make(place, *benchmark.arguments) as sides:
            turns = take_turns(sides)
    except NotRun as reason:
        return Outcome(benchmark=benchmark, state="not run", reason=str(reason))
    except Exception as error:  # one that breaks must not take the others' figures along
        traceback.print_exc()
        broken = f"{type(error).__name__}: {error}".partition("\n")[0]
        return Outcome(benchmark=benchmark, state="failed", reason=broken)
    return Outcome(benchmark=benchmark, state="run", turns=turns, facts=sides.facts)


def _result(outcome: Outcome) -> str:
    if outcome.ratio is None:
        return f"{outcome.state}: {outcome.reason}"
    met = {True: "met", False: "missed", None: "no target"}[outcome.met]
    met = "BROKEN" if outcome.broken else met
    return f"{outcome.ratio:.3f} ({outcome.benchmark.reach or 'for comparison'}: {met})"


def _chosen(known: Sequence[Benchmark], only: Sequence[str]) -> list[Benchmark]:
    """Return the benchmarks of these names or families (``NAME-…``); all if none is named."""
    for name in only:
        if not any(_is(benchmark, name) for benchmark in known):
            listed = ", ".join(benchmark.name for benchmark in known)
            sys.exit(f"error: there is no benchmark {name!r}; known: {listed}")
    return [b for b in known if not only or any(_is(b, name) for name in only)]


def _is(benchmark: Benchmark, name: str) -> bool:
    return benchmark.name == name or benchmark.name.startswith(f"{name}-")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller sizes, fewer repeats")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="names or families")
    parser.add_argument("--rows", type=int, help="rows of the synthetic logits")
    parser.add_argument(
        "--json", type=Path, default=Path("bench-results/bench.json"), metavar="FILE"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
