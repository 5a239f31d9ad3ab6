"""The compiled library: kept, keyed, checked, and done without where there is no compiler."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from compilers import needs_compiler

from marble_sweep.kernels import compiler
from marble_sweep.kernels.compiler import CompilerError, load_library, native_compiler


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own, and nothing remembered from other tests."""
    monkeypatch.setenv("MARBLE_SWEEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    load_library.cache_clear()
    compiler.predefined_macros.cache_clear()


def fake_compiler(folder: Path, script: str) -> Path:
    path = folder / "fake-cc"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def entries(folder: Path) -> list[Path]:
    return sorted((folder / "cache").glob("library-*"))


@needs_compiler
def test_a_library_is_compiled_once_and_then_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = tmp_path / "calls"
    real = native_compiler().command[0]
    wrapper = fake_compiler(tmp_path, f'echo "$@" >> {calls}\nexec {real} "$@"')
    monkeypatch.setenv("CC", str(wrapper))
    for _ in range(2):
        load_library.cache_clear()
        assert load_library("head.c", WIDTH=2).head
    compilations = [line for line in calls.read_text().splitlines() if " -o " in line]
    assert len(compilations) == 1
    assert len(entries(tmp_path)) == 1


@needs_compiler
def test_another_width_flag_or_compiler_is_another_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = native_compiler().command[0]
    load_library("head.c", WIDTH=2)
    load_library("head.c", WIDTH=3)
    for given in (f"{real} -DUNUSED", f"{real} -fno-builtin"):
        monkeypatch.setenv("CC", given)
        load_library.cache_clear()
        load_library("head.c", WIDTH=2)
    assert len(entries(tmp_path)) == 4


@needs_compiler
def test_a_damaged_library_is_compiled_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_library("head.c", WIDTH=2)
    (entry,) = entries(tmp_path)
    library = entry / compiler.LIBRARY
    library.write_bytes(library.read_bytes()[:100])
    load_library.cache_clear()
    assert load_library("head.c", WIDTH=2).head
    assert "is damaged and will be rebuilt" in caplog.text
    assert library.stat().st_size > 100


@needs_compiler
def test_a_library_that_does_not_load_is_refused(tmp_path: Path) -> None:
    """A whole entry whose content is no library, as a compiler for another machine would leave it."""
    load_library("head.c", WIDTH=2)
    (entry,) = entries(tmp_path)
    (entry / compiler.LIBRARY).write_bytes(b"no library")
    manifest = entry / "manifest.json"
    digests = json.loads(manifest.read_text())
    digests["sha256"][compiler.LIBRARY] = hashlib.sha256(b"no library").hexdigest()
    manifest.write_text(json.dumps(digests))
    load_library.cache_clear()
    with pytest.raises(CompilerError, match="the compiled library cannot be loaded"):
        load_library("head.c", WIDTH=2)


def test_no_compiler_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CompilerError, match=r"no C compiler is found \(cc, gcc, clang\)"):
        load_library("head.c", WIDTH=2)


def test_a_compiler_that_is_named_and_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler -m64")
    with pytest.raises(CompilerError, match=r"no C compiler is found \(no-such-compiler\)"):
        load_library("head.c", WIDTH=2)


def test_a_compiler_that_does_not_know_this_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "false")
    with pytest.raises(CompilerError, match="false does not compile for this CPU"):
        load_library("head.c", WIDTH=2)


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ("echo 'head.c:1: error: no room' >&2; exit 3", "fails with status 3: head.c:1: error: no room"),
        ("exit 1", "fails with status 1: no message"),
        ("exit 0", "left no library"),
        ("printf 'no library' > \"$out\"", "the compiled library cannot be loaded"),
    ],
)
def test_a_compiler_that_fails(failure: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_output = 'for word in "$@"; do [ "$last" = -o ] && out=$word; last=$word; done'
    script = f'case "$*" in *-dM*) echo "#define FAKE 1"; exit 0;; esac\n{find_output}\n{failure}'
    monkeypatch.setenv("CC", str(fake_compiler(tmp_path, script)))
    with pytest.raises(CompilerError, match=message):
        load_library("head.c", WIDTH=2)


@needs_compiler
def test_several_processes_at_once(tmp_path: Path) -> None:
    code = "from marble_sweep.kernels.compiler import load_library; print(bool(load_library('head.c', WIDTH=2).head))"
    commands = [[sys.executable, "-c", code] for _ in range(3)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for command in commands]
    assert [process.communicate()[0].strip() for process in processes] == ["True"] * 3
    assert len(entries(tmp_path)) == 1
    assert not list((tmp_path / "cache").glob(".building-*"))


@needs_compiler
def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in its place")
    assert load_library("head.c", WIDTH=2).head
