"""Write a run's results: one table for a person, one JSON document for a program."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from logitstore.text import table
from tests.bench.harness import PROGRAMS, Outcome

_PACKAGES = (
    *("logitstore", "numpy", "zarr", "numcodecs", "safetensors", "google-crc32c", "torch"),
    *("torchvision", "pillow", "fastapi", "uvicorn", "uvloop", "httptools", "urllib3"),
    *("lmdb", "h5py", "pyarrow"),
)
_HEADER = ("what", "against", "ratio", "range", "reach", "met", "ours", "theirs", "unit", "also")


def lines(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the table, then what did not run and why, then the curves of bytes and KL."""
    rows = [_row(outcome) for outcome in outcomes if outcome.turns]
    missing = [
        f"{o.benchmark.what} against {o.benchmark.against}: {o.state}: {o.reason}"
        for o in outcomes
        if not o.turns
    ]
    return [*table(_HEADER, rows), *missing, *_curves(outcomes)]


def document(outcomes: Sequence[Outcome], spent: dict[str, float], quick: bool) -> dict[str, Any]:
    """Return all results as JSON, each ratio with all of its repeats."""
    return {
        "quick": quick,
        "machine": _machine(),
        "versions": _versions(),
        "seconds": round(sum(spent.values()), 1),
        "benchmarks": [_entry(outcome, spent) for outcome in outcomes],
    }


def write(path: Path, content: dict[str, Any]) -> None:
    """Write the document as a JSON file; the folder is made if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def _row(outcome: Outcome) -> tuple[str, ...]:
    benchmark = outcome.benchmark
    reach = "" if benchmark.reach is None else str(benchmark.reach)
    met = "BROKEN" if outcome.broken else {True: "yes", False: "no", None: ""}[outcome.met]
    spread = f"{min(outcome.ratios):.3f}-{max(outcome.ratios):.3f}" if outcome.turns[1:] else ""
    ours, theirs = (f"{figure:.4g}" for figure in outcome.medians)
    ratio = f"{outcome.ratio:.3f}"
    facts = ", ".join(f"{key} {_short(v)}" for key, v in outcome.facts.items() if key != "curve")
    places = (benchmark.what, benchmark.against, ratio, spread, reach, met)
    return (*places, ours, theirs, benchmark.unit, facts)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _curves(outcomes: Sequence[Outcome]) -> list[str]:
    printed: list[str] = []
    for outcome in outcomes:
        curve = outcome.facts.get("curve")
        if curve:
            rows = [[_short(value) for value in point.values()] for point in curve]
            printed += ["", outcome.benchmark.what, *table(list(curve[0]), rows)]
    return printed


def _entry(outcome: Outcome, spent: dict[str, float]) -> dict[str, Any]:
    benchmark, reach = outcome.benchmark, outcome.benchmark.reach
    ours, theirs = outcome.medians or (None, None)
    return {
        "name": benchmark.name,
        "what": benchmark.what,
        "against": benchmark.against,
        "unit": benchmark.unit,
        "state": outcome.state,
        "reason": outcome.reason,
        "ratio": outcome.ratio,
        "reach": None if reach is None else {"sign": reach.sign, "value": reach.value},
        "met": outcome.met,
        "broken": outcome.broken,
        "ours": ours,
        "theirs": theirs,
        "repeats": [
            {"ours": turn[0], "theirs": turn[1], "ratio": ratio}
            for turn, ratio in zip(outcome.turns, outcome.ratios, strict=True)
        ],
        "facts": dict(outcome.facts),
        "seconds": round(spent[benchmark.name], 1),
    }


def _machine() -> dict[str, Any]:
    return {
        "system": platform.platform(),
        "processor": _line_of("/proc/cpuinfo", "model name") or platform.processor(),
        "cpus": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory": _line_of("/proc/meminfo", "MemTotal"),
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
    }


def _line_of(path: str, key: str) -> str | None:
    """Return the value of a ``key: value`` line of a file in /proc."""
    if not Path(path).exists():
        return None
    pairs = (line.partition(":") for line in Path(path).read_text().splitlines())
    return next((value.strip() for name, _, value in pairs if name.strip() == key), None)


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {**versions, "nginx": _program_version("nginx")}


def _program_version(name: str) -> str:
    try:
        process = subprocess.run(
            [name, "-v"], env={"PATH": PROGRAMS}, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return "not installed"
    return (process.stdout + process.stderr).partition("\n")[0]
