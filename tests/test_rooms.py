"""Imports point one way, and only the door knows Hydra. Read from the source files, with nothing imported."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A room imports from its own row and from those above it.
ROWS = (
    ("checks", "commands", "humanize", "passwords", "process", "renamed_keys", "safe_yaml", "terminal"),
    ("groups", "search_config"),
    ("record_config",),
    ("config",),
    ("data", "kernels", "model", "metrics", "runs", "scaling", "uncertainty"),
    ("record",),
    ("early_stopping", "training", "verdict"),
    ("census", "lifecycle", "metadata", "report"),
    ("compare", "run"),
    ("sample", "searches", "sweeps"),
    ("loaded_run",),
    ("hydra_app",),
    ("hydra_plugins",),
    ("api",),
    ("__init__", "__main__", "inspect"),
)
ROW = {room: number for number, rooms in enumerate(ROWS) for room in rooms}

HYDRA = ("hydra", "omegaconf")
# The schema is one of OmegaConf's, put into Hydra's ConfigStore.
KNOW_HYDRA = ("config", "hydra_app", "hydra_plugins")
PRIVATE = "marble_sweep.hydra_app.private"


def read_modules() -> dict[str, ast.Module]:
    """Every module of the packages by its full name."""
    paths = [path for package in ("marble_sweep", "hydra_plugins") for path in sorted((ROOT / package).rglob("*.py"))]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    return {name: ast.parse(path.read_text()) for name, path in zip(names, paths, strict=True)}


MODULES = read_modules()


def imported(tree: ast.AST) -> Iterator[str]:
    """The full names of the modules that a file imports, late imports included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else node.module


def room(module: str) -> str:
    """The package or file directly in marble_sweep/ that a module belongs to."""
    first, _, rest = module.partition(".")
    return first if first == "hydra_plugins" else rest.partition(".")[0] or "__init__"


def own_imports(module: str) -> set[str]:
    return {name for name in imported(MODULES[module]) if name.partition(".")[0] in ("marble_sweep", "hydra_plugins")}


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    for name in own_imports(module):
        here, there = room(module), room(name)
        assert ROW[there] <= ROW[here], f"{module} imports {name}"


def test_no_module_imports_itself_in_a_circle() -> None:
    """Late imports count too. A package's own __init__ is empty but for the public one, which imports late."""
    graph = {module: own_imports(module) - {"marble_sweep"} for module in MODULES}
    TopologicalSorter(graph).prepare()  # raises CycleError with the circle


@pytest.mark.parametrize("module", MODULES)
def test_only_the_door_knows_hydra(module: str) -> None:
    known = [name for name in imported(MODULES[module]) if name.partition(".")[0] in HYDRA]
    assert not known or room(module) in KNOW_HYDRA, f"{module} imports {known}"


@pytest.mark.parametrize("module", MODULES)
def test_private_parts_of_hydra_stand_in_one_file(module: str) -> None:
    if module == PRIVATE:
        return
    private = [
        name
        for name in imported(MODULES[module])
        if name.partition(".")[0] in HYDRA and any(part.startswith("_") for part in name.split("."))
    ]
    assert not private
    if room(module) in KNOW_HYDRA:
        attributes = [node for node in ast.walk(MODULES[module]) if isinstance(node, ast.Attribute)]
        of_others = {node.attr for node in attributes if ast.unparse(node.value) != "self"}
        assert not {name for name in of_others if name.startswith("_") and not name.endswith("_")}


@pytest.mark.parametrize("module", MODULES)
def test_complaints_are_raised_as_such(module: str) -> None:
    """A plain ValueError of ours would be taken for a bug, and a user's mistake shown with a traceback."""
    raised = [ast.unparse(node.exc) for node in ast.walk(MODULES[module]) if isinstance(node, ast.Raise) and node.exc]
    assert not [error for error in raised if error.startswith("ValueError")]
