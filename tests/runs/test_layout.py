"""The run directory has one owner: runs/ depends on nothing that fills it, and it alone spells the names in it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import marble_sweep
from marble_sweep.runs import layout

PACKAGE = Path(marble_sweep.__file__).parent
BELOW = ("marble_sweep.runs", "marble_sweep.config", "marble_sweep.checks", "marble_sweep.terminal")
NAMES = {value for name, value in vars(layout).items() if name.isupper() and isinstance(value, str)}


def parsed(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def imports(path: Path) -> Iterator[str]:
    """The modules of the package that a file imports, wherever in it."""
    for node in parsed(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("marble_sweep"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("marble_sweep"):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def literals(path: Path) -> Iterator[str]:
    """The texts in a file that may be names; those with spaces are for people. An f-string's fields are {}."""
    pieces = set()
    for node in parsed(path):  # an f-string comes before its pieces
        if isinstance(node, ast.JoinedStr):
            pieces |= set(node.values)
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in pieces:
            text = node.value
        else:
            continue
        if not re.search(r"\s", text):
            yield text


def test_the_run_directory_depends_on_nothing_that_fills_it() -> None:
    upward = {
        f"{path.name} imports {name}"
        for path in (PACKAGE / "runs").glob("*.py")
        for name in imports(path)
        if not name.startswith(BELOW)
    }
    assert not upward


def test_no_other_module_spells_the_names_of_its_files() -> None:
    # The cache of data/ is a folder of its own, with files of its own.
    modules = [path for path in PACKAGE.rglob("*.py") if path.parent.name != "data" and path.name != "layout.py"]
    assert len(modules) > 80
    spelled = {
        f"{path.relative_to(PACKAGE)}: {text}"
        for path in modules
        for text in literals(path)
        if NAMES & {text, *text.split("/")}
    }
    assert not spelled


def test_the_names_are_those_of_directories_on_disk() -> None:
    """Users' runs have these, and other programs read them."""
    assert set(layout.FILES) == {
        *("config.yaml", "metadata.json", "metrics.csv", "evals.csv", "verdict.json", "run.log", "tokenizer.json"),
        *("checkpoints.safetensors", "model.safetensors", "state.safetensors", "unigram.safetensors"),
    }
    assert (layout.LOCK, layout.STARTED, layout.LAST_PLOT) == (".lock", ".started", "plots/hidden.png")
    assert (layout.SUMMARY, layout.PAGE, layout.SEARCH) == ("summary.csv", "compare.html", "search.json")
    assert (layout.JOURNAL, layout.FRONTIER) == ("study.log", "frontier.png")
