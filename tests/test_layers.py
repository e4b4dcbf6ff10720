"""The floors of the house: who may import whom, and what stays out of memory."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"logitstore": "logitstore", "trainer": "logitstore.trainer", "api": "logitstore.api"}
FILES = {
    ".".join((name, *path.relative_to(ROOT / folder).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for folder, name in FOLDERS.items()
    for path in sorted((ROOT / folder).rglob("*.py"))
}

# From the ground up.  A module imports from lower floors and from its own entry; the entries of one
# floor do not know each other.  The longest entry that fits a module's name is its own.
LAYERS = (
    ("errors",),
    ("text", "threads", "specs", "values", "version"),
    ("progress", "options"),
    ("format",),
    ("storage", "figures"),
    ("reading",),
    ("cache", "writing"),
    ("derive", "precompute.processes", "precompute.data"),
    ("precompute.views", "precompute.networks"),
    ("precompute.building",),
    ("trainer.losses", "trainer.metrics", "trainer.schedules"),
    ("trainer.methods",),
    ("trainer.config",),
    ("trainer.data",),
    ("trainer.measure", "trainer.own_loop"),
    ("trainer.run",),
    ("trainer.evaluation", "trainer.studies.seeds", "trainer.studies.recipe"),
    ("trainer.studies.recipes",),
    ("trainer.studies",),
    ("trainer.reporting",),
    ("trainer",),
    ("trainer.examples",),
    ("api.guard",),
    ("api.served",),
    ("api.settings", "api.routes"),
    ("api.server.drain",),
    ("api.app",),
    ("api.server",),
    ("cli",),
)
FLOORS = {f"logitstore.{entry}": floor for floor, entries in enumerate(LAYERS) for entry in entries}


def entry_of(module: str) -> str | None:
    """The entry of LAYERS that a module belongs to."""
    fitting = [name for name in FLOORS if module == name or module.startswith(f"{name}.")]
    return max(fitting, key=len, default=None)


@cache
def parsed(module: str) -> ast.Module:
    """The syntax tree of one of our modules."""
    return ast.parse(FILES[module].read_text())


@cache
def imports(module: str) -> frozenset[str]:
    """Our modules that this one imports anywhere: in functions and for types, too."""
    found = set()
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in FILES else node.module)
    return frozenset(name for name in found if name in FILES and name != module)


def imported_at_once(module: str) -> frozenset[str]:
    """Our modules that importing this one imports: nothing in functions or for types alone."""
    found: set[str] = set()
    pending: list[ast.AST] = list(parsed(module).body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in FILES else node.module)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.ClassDef):
            pending += ast.iter_child_nodes(node)
    return frozenset(name for name in found if name in FILES and name != module)


FACES = ("logitstore", "logitstore.__main__", "logitstore.precompute", "logitstore.api")
"""What stands above all floors: packages that hand on names, and the entry point."""


def test_every_module_has_its_floor() -> None:
    assert [name for name in FILES if entry_of(name) is None] == list(FACES)


def test_imports_point_down() -> None:
    wrong = []
    for module in FILES:
        own = entry_of(module)
        if own is None:
            continue
        for other in imports(module):
            # The names for people's own code stand where the trainer's do; examples use them.
            theirs = "logitstore.trainer" if other == "logitstore" else entry_of(other)
            if theirs != own and (theirs is None or FLOORS[theirs] >= FLOORS[own]):
                wrong.append(f"{module} imports {other}")
    assert wrong == []


def test_the_service_and_the_trainer_do_not_know_each_other() -> None:
    """The service stands on what reads stores: it runs where no torch is."""
    teaching = ("logitstore.precompute", "logitstore.trainer", "logitstore.derive")
    wrong = [
        f"{module} imports {other}"
        for module in FILES
        for other in imports(module)
        if (module.startswith("logitstore.api") and other.startswith(teaching))
        or (module.startswith("logitstore.trainer") and other.startswith("logitstore.api"))
    ]
    assert wrong == []


def test_no_module_imports_itself_through_others() -> None:
    graph = {name: imports(name) for name in FILES}

    def reach(name: str) -> set[str]:
        seen: set[str] = set()
        pending = list(graph[name])
        while pending:
            other = pending.pop()
            if other not in seen:
                seen.add(other)
                pending += graph.get(other, ())
        return seen

    assert [name for name in graph if name in reach(name)] == []


def test_the_command_line_alone_imports_the_trainer_and_the_service_inside_bodies() -> None:
    upper = ("logitstore.trainer", "logitstore.api")
    for module in FILES:
        if module.startswith("logitstore.cli"):
            assert not [name for name in imported_at_once(module) if name.startswith(upper)], module


@pytest.mark.parametrize("module", FILES)
def test_every_module_says_what_it_is_for(module: str) -> None:
    assert ast.get_docstring(parsed(module)), module


@pytest.mark.parametrize(
    ("imported", "absent"),
    [
        ("logitstore", ("torch", "numpy", "zarr", "pydantic", "typer")),
        ("logitstore.cli", ("torch", "numpy", "zarr", "pydantic", "rich", "asyncio")),
        ("logitstore.reading.opening", ("torch", "zarr", "typer", "urllib3")),
        ("logitstore.api.app", ("torch", "logitstore.precompute", "logitstore.trainer")),
        ("logitstore.trainer", ("torch", "numpy", "zarr", "pydantic")),
        ("logitstore.trainer.methods", ("torch", "numpy", "zarr", "scipy")),
        ("logitstore.trainer.studies.reproduce", ("torch", "numpy", "zarr", "scipy", "pydantic")),
        ("logitstore.trainer.config.settings", ("torch", "numpy", "zarr", "scipy")),
    ],
)
def test_importing_stays_light(imported: str, absent: tuple[str, ...]) -> None:
    code = f"import sys, {imported}; print([name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_nothing_unpickles_what_a_stranger_wrote() -> None:
    for module, path in FILES.items():
        for node in ast.walk(parsed(module)):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if called == "torch.load":
                assert keywords.get("weights_only") == "True", path
            if called == "np.load":
                assert keywords.get("allow_pickle") == "False", path
            assert called not in ("pickle.load", "pickle.loads", "torch.export.load"), path
