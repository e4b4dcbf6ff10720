"""The rooms and arrows: who may import whom, and what stays out of memory."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("logitstore", "trainer", "api")
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
}


def module_level_imports(path: Path) -> set[str]:
    """Modules that importing this file imports: nothing inside functions or TYPE_CHECKING."""
    found: set[str] = set()
    pending: list[ast.AST] = list(ast.parse(path.read_text()).body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{name.name}" for name in node.names}
            known = {module for module in inside if module in FILES}
            found |= known or {node.module}
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.ClassDef):
            pending += ast.iter_child_nodes(node)
    return found


def modules() -> dict[str, set[str]]:
    """Our modules by dotted name, with the modules of ours that each imports at module level."""
    return {
        name: {other for other in module_level_imports(path) if other in FILES and other != name}
        for name, path in FILES.items()
    }


def test_arrows_point_down_only() -> None:
    allowed = {
        "logitstore": {"logitstore"},
        "trainer": {"logitstore", "trainer"},
        "api": {"logitstore", "api"},
    }
    for name, imported in modules().items():
        for other in imported:
            assert other.split(".")[0] in allowed[name.split(".")[0]], f"{name} imports {other}"
            if name.startswith("api"):
                assert not other.startswith("logitstore.precompute"), f"{name} imports {other}"


def test_no_module_imports_itself_through_others() -> None:
    graph = modules()

    def reach(name: str) -> set[str]:
        seen: set[str] = set()
        pending = list(graph[name])
        while pending:
            other = pending.pop()
            if other not in seen:
                seen.add(other)
                pending += graph[other]
        return seen

    assert [name for name in graph if name in reach(name)] == []


def test_only_the_command_line_imports_the_trainer_and_the_service_inside_bodies() -> None:
    for path in (ROOT / "logitstore").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                upward = node.module.split(".")[0] in ("trainer", "api")
                assert not upward or "cli" in path.parts, f"{path} imports {node.module}"


@pytest.mark.parametrize(
    ("imported", "absent"),
    [
        ("logitstore", ("torch", "numpy", "zarr", "pydantic", "typer")),
        ("logitstore.cli", ("torch", "numpy", "zarr", "pydantic", "rich", "asyncio")),
        ("logitstore.reading.opening", ("torch", "zarr", "typer", "urllib3")),
        ("logitstore.api.app", ("torch", "logitstore.precompute", "logitstore.trainer")),
    ],
)
def test_importing_stays_light(imported: str, absent: tuple[str, ...]) -> None:
    code = f"import sys, {imported}; print([name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_nothing_unpickles_what_a_stranger_wrote() -> None:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.Call):
                    continue
                called = ast.unparse(node.func)
                keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
                if called == "torch.load":
                    assert keywords.get("weights_only") == "True", path
                if called == "np.load":
                    assert keywords.get("allow_pickle") == "False", path
                assert called not in ("pickle.load", "pickle.loads", "torch.export.load"), path
