"""The run directory has one owner: runs/ depends on nothing that fills it, and it alone spells the names in it."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import marble_sweep
from marble_sweep.runs import layout
from marble_sweep.runs.status import RunStatus

PACKAGE = Path(marble_sweep.__file__).parent
BELOW = (
    "marble_sweep.renamed_keys",
    "marble_sweep.runs",
    "marble_sweep.config",
    "marble_sweep.renamed_keys",
    "marble_sweep.checks",
    "marble_sweep.terminal",
    "marble_sweep.safe_yaml",
)
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


def spelled(words: set[str], modules: list[Path]) -> set[str]:
    """Where modules spell one of these words, as a whole text or as a part of a path."""
    assert len(modules) > 70
    return {
        f"{path.relative_to(PACKAGE)}: {text}"
        for path in modules
        for text in literals(path)
        if words & {text, *text.split("/")}
    }


def test_no_other_module_spells_the_names_of_its_files() -> None:
    # The cache of data/ is a folder of its own, with files of its own.
    others = [path for path in PACKAGE.rglob("*.py") if path.parent.name != "data" and path.name != "layout.py"]
    assert not spelled(NAMES, others)


def test_no_other_module_spells_a_status() -> None:
    # A search has words of its own for how its trials, its sizes and it itself ended, some of them the same.
    own_words = {"runs/status.py", "report/frontier.py", "data/cache.py", "hydra_app/search.py"}
    modules = [path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).as_posix() not in own_words]
    assert not spelled({*RunStatus}, [path for path in modules if path.parent.name != "searches"])


def test_no_other_module_reads_a_csv_file() -> None:
    """Readers elsewhere would miss the old names of columns, and fail on damaged files."""
    readers = {"read_csv", "read_table", "DictReader", "reader", "loadtxt", "genfromtxt"}
    uses = {
        f"{path.relative_to(PACKAGE)}: {node.attr}"
        for path in PACKAGE.rglob("*.py")
        for node in parsed(path)
        if isinstance(node, ast.Attribute) and node.attr in readers
    }
    assert uses == {"runs/steps.py: read_csv"}


def test_the_names_are_those_of_directories_on_disk() -> None:
    """Users' runs have these, and other programs read them."""
    assert set(layout.FILES) == {
        *("config.yaml", "metadata.json", "metrics.csv", "evals.csv", "verdict.json", "run.log", "tokenizer.json"),
        *("checkpoints.safetensors", "model.safetensors", "state.safetensors", "unigram.safetensors"),
        *("window_losses.csv", "windows.csv"),
    }
    assert (layout.LOCK, layout.STARTED, layout.LAST_PLOT) == (".lock", ".started", "plots/hidden.png")
    assert (layout.SUMMARY, layout.PAGE, layout.SEARCH) == ("summary.csv", "compare.html", "search.json")
    assert (layout.JOURNAL, layout.FRONTIER) == ("study.log", "frontier.png")


def test_the_statuses_are_those_of_metadata_on_disk() -> None:
    words = ("started", "running", "interrupted", "failed", "finished", "diverged", "certified", "pruned", "too_slow")
    assert json.loads(json.dumps([*RunStatus])) == [*words, "damaged"]
