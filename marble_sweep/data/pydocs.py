"""The built-in corpus: the documentation of Python and of packages, which every machine has.

Docstrings are read from source files with `ast`; no package is imported.
"""

import ast
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import logging
import os
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from marble_sweep.checks import require
from marble_sweep.data.cache import cached, content_key

SKIPPED_FOLDERS = {
    *("test", "tests", "idle_test", "lib2to3"),  # test code, without prose
    *("site-packages", "dist-packages", "_bundled", "__pycache__"),
}
TOPICS = "pydoc_data.topics"
FUNCTIONS_OF_DOCS = re.compile(r"add_newdoc|add_docstring")  # how numpy documents compiled code
NAMES_OF_DOCS = re.compile(r"doc", re.IGNORECASE)  # `__doc__ = …`, pandas' `_shared_docs[…] = …`

logger = logging.getLogger(__name__)


def read_pydocs(packages: list[str]) -> tuple[dict[str, str], str, str]:
    """Documents by module name, sorted, a one-line description, and the SHA-256 of the documents as JSON.

    A document is a module's docstrings, in the order of the source, or one of pydoc's help topics.
    Raises ValueError for a package that is not installed or has no docstrings.
    """
    versions = {"Python": platform.python_version()}
    sources = _source_files("", sysconfig.get_path("stdlib"))
    for package in packages:
        files = _package_files(package)
        require(bool(files), "data.packages", repr(package), "an installed package with Python sources")
        sources |= files
        versions[package] = _version(package)

    stats = {name: os.stat(path) for name, path in sources.items()}
    fingerprint = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in sorted(stats.items())]
    key = content_key("pydocs", versions, fingerprint)
    entry = cached("pydocs", key, lambda: {"documents.json": json.dumps(_extract(sources)).encode()})
    text = entry["documents.json"]
    documents: dict[str, str] = json.loads(text)
    for package in packages:
        documented = any(name == package or name.startswith(f"{package}.") for name in documents)
        require(documented, "data.packages", repr(package), "a package with docstrings")

    others = "".join(f", {package} {versions[package]}" for package in packages)
    description = f"standard library of Python {versions['Python']}{others}; {len(documents):,} documents"
    return documents, description, hashlib.sha256(text).hexdigest()


def _package_files(package: str) -> dict[str, str]:
    """Source files by module name; empty where the package is not installed or has only compiled code."""
    if not package.isidentifier():  # finding a dotted name would import its parent
        return {}
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return {}
    if spec is None:
        return {}
    if spec.submodule_search_locations is None:
        path = spec.origin or ""
        return {package: path} if path.endswith(".py") and os.path.isfile(path) else {}
    files: dict[str, str] = {}
    for folder in spec.submodule_search_locations:
        files |= _source_files(package, folder)
    return files


def _source_files(package: str, folder: str) -> dict[str, str]:
    """Paths, as text: to make a Path of each of a thousand files would take as long as to find them."""
    files = {}
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS]
        below = parent.removeprefix(folder).strip(os.sep).split(os.sep)
        for name in names:
            if name.endswith(".py"):
                parts = [package, *below, name.removesuffix(".py")]
                module = ".".join(part for part in parts if part and part != "__init__")
                files[module] = os.path.join(parent, name)
    return files


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def _extract(sources: dict[str, str]) -> dict[str, str]:
    documents: dict[str, str] = {}
    logger.info("reading the docstrings of %d source files", len(sources))
    for name, path in tqdm(sorted(sources.items()), desc="docstrings", unit="file", disable=None, leave=False):
        try:
            with warnings.catch_warnings(action="ignore"):  # invalid escapes in their sources
                tree = ast.parse(Path(path).read_bytes())
        except (SyntaxError, ValueError):
            continue  # a template, or a source for another Python
        if name == TOPICS:
            documents |= {f"{TOPICS}.{topic}": _clean(text) for topic, text in _topics(tree).items()}
        elif texts := [text for text in map(_clean, _docstrings(tree)) if text]:
            documents[name] = "\n\n".join(texts)
    return dict(sorted(documents.items()))


def _clean(text: str) -> str:
    # A lone surrogate is not text and has no UTF-8.
    return inspect.cleandoc(text).encode(errors="ignore").decode().strip()


def _topics(tree: ast.Module) -> dict[str, str]:
    """The help topics: the dictionary in their module."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            topics: dict[str, str] = ast.literal_eval(node.value)
            return topics
    return {}


def _docstrings(tree: ast.Module) -> Iterator[str]:
    """Docstrings of modules, classes and functions, and strings that code uses as docstrings."""
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node, clean=False) or ""
        elif isinstance(node, ast.Assign) and NAMES_OF_DOCS.search(_name(node.targets[0])):
            yield from _strings(node.value)
        elif isinstance(node, ast.Call) and FUNCTIONS_OF_DOCS.match(_name(node.func)):
            for argument in node.args:
                yield from _strings(argument)
        stack.extend(reversed(list(ast.iter_child_nodes(node))))


def _name(node: ast.AST) -> str:
    """The last name in `name`, `owner.name` or `name[index]`."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Subscript(value=value):
            return _name(value)
    return ""


def _strings(node: ast.AST) -> Iterator[str]:
    for child in ast.walk(node):
        # A single word is a name, not prose.
        if isinstance(child, ast.Constant) and isinstance(child.value, str) and " " in child.value.strip():
            yield child.value
