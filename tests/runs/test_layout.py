"""The run directory has one owner: who it depends on, and who spells its names."""

import ast
from collections.abc import Iterator
from pathlib import Path

import marble_sweep

PACKAGE = Path(marble_sweep.__file__).parent
BELOW = ("marble_sweep.runs", "marble_sweep.config", "marble_sweep.checks", "marble_sweep.terminal")


def imports(path: Path) -> Iterator[str]:
    """The modules of the package that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("marble_sweep"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("marble_sweep"):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_the_run_directory_depends_on_nothing_that_fills_it() -> None:
    upward = {
        f"{path.name} imports {name}"
        for path in (PACKAGE / "runs").glob("*.py")
        for name in imports(path)
        if not name.startswith(BELOW)
    }
    assert not upward
