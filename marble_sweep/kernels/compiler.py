"""The C sources beside this file, compiled once per machine where it has a compiler.

A library is kept in the user's cache, keyed by the source and by what the compiler says of itself, its flags and
the CPU it compiles for (its predefined macros). No compiler is needed to install or to run anything: whoever wants a
library is told why there is none, and does without.
"""

import ctypes
import functools
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from marble_sweep.data.cache import cache_dir, cached, content_key

COMPILERS = ("cc", "gcc", "clang")
# GCC and Clang know both for some CPUs, one for others. The library runs on the machine that compiles it.
NATIVE_FLAGS = ("-march=native", "-mcpu=native")
FLAGS = ("-std=gnu11", "-O2", "-ffp-contract=fast", "-fPIC", "-shared")
HEADER = "vectors.h"  # which sources may include
LIBRARY = "library.so"
PATIENCE = 60.0  # seconds


class CompilerError(RuntimeError):
    """There is no library; the message says why, in a line."""


@functools.cache
def load_library(source: str, **definitions: int) -> ctypes.CDLL:
    """The library made of a C file of this package, with the given macros defined.

    Raises CompilerError where no compiler is found, or where it or the loader fails.
    """
    package = resources.files(__package__)
    sources = {name: (package / name).read_bytes() for name in (HEADER, source)}
    compiler = native_compiler()
    command = [*compiler.command, *(f"-D{name}={value}" for name, value in definitions.items())]
    key = content_key(*(text.decode() for text in sources.values()), command, compiler.macros)
    return _load(cached("library", key, lambda: {LIBRARY: _compile(command, source, sources)})[LIBRARY])


class Compiler(NamedTuple):
    command: tuple[str, ...]  # with the flags that every library is made with
    macros: str  # what it predefines


def native_compiler() -> Compiler:
    """What the environment's CC names, or the first compiler that is found.

    Raises CompilerError where there is none that compiles for this CPU.
    """
    given = shlex.split(os.environ.get("CC", ""))
    commands = [given] if given else [[name] for name in COMPILERS]
    installed = [command for command in commands if shutil.which(command[0])]
    if not installed or not _has_developer_tools():
        raise CompilerError(f"no C compiler is found ({', '.join(command[0] for command in commands)})")
    for command in installed:
        for flag in NATIVE_FLAGS:
            native = (*command, *FLAGS, flag)
            if macros := predefined_macros(native):
                return Compiler(native, macros)
    raise CompilerError(f"{' '.join(installed[0])} does not compile for this CPU")


def _has_developer_tools() -> bool:
    """Whether the compilers that macOS lists are there; to call one that is not would open a window."""
    if sys.platform != "darwin":
        return True
    try:
        return subprocess.run(["xcode-select", "-p"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@functools.cache
def predefined_macros(command: tuple[str, ...]) -> str:
    """What a compiler says of its version and of the CPU's features; empty where it refuses the command."""
    try:
        return _run([*command, "-dM", "-E", "-x", "c", os.devnull])
    except CompilerError:
        return ""


def _compile(command: list[str], source: str, sources: Mapping[str, bytes]) -> bytes:
    """The library made of the file `source` of `sources`, which has what it includes as well."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in sources.items():
            Path(folder, name).write_bytes(text)
        library = Path(folder, LIBRARY)
        _run([*command, str(Path(folder, source)), "-o", str(library), "-lm"])
        try:
            return library.read_bytes()
        except OSError as error:
            raise CompilerError(f"{command[0]} left no library: {error.strerror}") from None


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompilerError(f"{command[0]} cannot be run: {error}") from None
    if done.returncode:
        lines = done.stderr.decode(errors="replace").splitlines()
        complaint = next((line for line in lines if "error" in line), lines[0] if lines else "no message")
        raise CompilerError(f"{command[0]} fails with status {done.returncode}: {complaint}")
    return done.stdout.decode(errors="replace")


def _load(library: bytes) -> ctypes.CDLL:
    """Map a library from a copy that is gone at once: nobody can cut it short while it runs."""
    complaint = ""
    for folder in (None, cache_dir()):  # programs may not be run from every folder
        try:
            with tempfile.NamedTemporaryFile(dir=folder, suffix=".so") as file:
                file.write(library)
                file.flush()
                return ctypes.CDLL(file.name)
        except OSError as error:
            complaint = complaint or str(error)
    raise CompilerError(f"the compiled library cannot be loaded: {complaint}")
