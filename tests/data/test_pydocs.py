import hashlib
import json
import logging
import os
import sys
import sysconfig
import textwrap
from pathlib import Path

import pytest
from opened import opened_files

from marble_sweep.data.baselines import measure_baselines
from marble_sweep.data.batches import eval_windows
from marble_sweep.data.corpus import load_corpus
from marble_sweep.data.pydocs import read_pydocs
from marble_sweep.groups import PydocsConfig

SOURCES = {
    "json/__init__.py": '''
        r"""Module   doc."""
        class A:
            """Class
                doc."""
            def f(self):
                """Method doc."""
            async def g(self):
                "Coroutine doc."
        def h(): "Function doc."; "no doc"
        text = "nothing to keep here"
        __doc__ = """More module doc."""
        _shared_docs["mean"] = """SharedStudy doc."""
        add_newdoc("json", "mean", """Compiled doc.""")
        add_newdoc("json", "ndarray", ("shape", """Attribute doc."""))
    ''',
    "json/tests/test_it.py": '"""A test\'s doc."""',
    "json/old.py": "print 'Python 2'",
    "json/no_docs.py": "x = 1",
    "latin.py": '# coding: latin-1\n"""caf\xe9 escape \\d"""',
    "lone.py": '"""A lone \\ud800 surrogate."""',
    "site-packages/other.py": '"""Another package."""',
    "pydoc_data/topics.py": "topics = {'if': 'The if\\n***\\n', 'for': 'The for\\n'}",
}


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A little standard library in place of the real one."""
    folder = tmp_path / "library"
    for name, source in SOURCES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(textwrap.dedent(source).strip().encode("latin-1"))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(folder))
    return folder


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that must not be imported."""
    folder = tmp_path / "site" / "marble_sample"
    (folder / "inner").mkdir(parents=True)
    (folder / "__init__.py").write_text('"""Package doc."""\nraise RuntimeError("imported")\n')
    (folder / "inner" / "part.py").write_text('"""Part doc."""')
    monkeypatch.syspath_prepend(folder.parent)
    return folder


def test_what_is_a_docstring_and_what_is_not(library: Path) -> None:
    documents, description, _ = read_pydocs([])
    assert documents["json"].split("\n\n") == [
        "Module   doc.",
        "Class\ndoc.",
        "Method doc.",
        "Coroutine doc.",
        "Function doc.",
        "More module doc.",
        "SharedStudy doc.",
        "Compiled doc.",
        "Attribute doc.",
    ]
    del documents["json"]
    assert documents == {
        "latin": "caf\xe9 escape \\d",
        "lone": "A lone  surrogate.",
        "pydoc_data.topics.for": "The for",
        "pydoc_data.topics.if": "The if\n***",
    }
    version = ".".join(map(str, sys.version_info[:3]))
    assert description == f"standard library of Python {version}; 5 documents"


def test_order_is_that_of_the_names(library: Path) -> None:
    documents, _, digest = read_pydocs([])
    assert list(documents) == sorted(documents)
    assert digest == hashlib.sha256(json.dumps(documents).encode()).hexdigest()


def test_packages_are_read_and_never_imported(library: Path, package: Path) -> None:
    documents, description, _ = read_pydocs(["marble_sample"])
    assert documents["marble_sample"] == "Package doc."
    assert documents["marble_sample.inner.part"] == "Part doc."
    assert "marble_sample" not in sys.modules
    assert description.endswith(", marble_sample of unknown version; 7 documents")


@pytest.mark.parametrize("name", ["no_such_package", "json.decoder", "_struct", ""])
def test_package_that_cannot_be_read(library: Path, name: str) -> None:
    allowed = "must be an installed package with Python sources"
    with pytest.raises(ValueError, match=f"^data.packages = '{name}': {allowed}$"):
        read_pydocs([name])


def test_package_without_docstrings(library: Path, package: Path) -> None:
    (package / "__init__.py").write_text("")
    (package / "inner" / "part.py").write_text("")
    with pytest.raises(ValueError, match=r"^data.packages = 'marble_sample': must be a package with docstrings$"):
        read_pydocs(["marble_sample"])


def test_sources_are_parsed_once_until_they_change(library: Path) -> None:
    changed = library / "lone.py"

    def read_again() -> tuple[dict[str, str], bool]:
        """The documents, and whether a source was read for them."""
        with opened_files() as paths:
            documents, *_ = read_pydocs([])
        return documents, str(changed) in paths

    first, parsed = read_again()
    assert parsed
    assert read_again() == (first, False)
    changed.write_text('"""Another doc, with no such thing."""')
    assert read_again() == (first | {"lone": "Another doc, with no such thing."}, True)
    os.utime(changed, ns=(0, 0))
    assert read_again()[1]


@pytest.mark.slow
def test_the_default_corpus(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        cold = load_corpus(PydocsConfig())
    assert caplog.records == []
    with opened_files() as paths:
        warm = load_corpus(PydocsConfig())
    assert len(paths) < 20, "it comes from the cache"
    assert warm.sha256 == cold.sha256
    assert len(warm.train_tokens) > 1_000_000
    assert len(warm.val_tokens) > 100_000
    assert warm.dead_mask.float().mean().item() == pytest.approx(0.37, abs=0.01)
    baselines = measure_baselines(warm.train_tokens, eval_windows(warm.val_tokens, 128, 1024), 10_000).per_window()
    means = {name: losses.mean().item() for name, losses in baselines.items()}
    assert 4 < means["bigram"] < means["oracle"] < means["unigram"] < 7.5
