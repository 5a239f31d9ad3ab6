import json
import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest

from marble_sweep.data import cache as cache_module
from marble_sweep.data.cache import cached, content_key

FILES = {"a.bin": bytes(range(256)), "b.json": b'{"x": 1}'}


def never() -> dict[str, bytes]:
    raise AssertionError("was built although it is cached")


def test_second_call_reads_what_the_first_wrote(cache: Path) -> None:
    assert cached("kind", "key", lambda: FILES) == FILES
    assert cached("kind", "key", never) == FILES
    assert [path.name for path in cache.iterdir()] == ["kind-key"]


def test_keys_and_kinds_are_separate_entries() -> None:
    cached("kind", "key", lambda: FILES)
    assert cached("kind", "other", lambda: {"a": b"1"}) == {"a": b"1"}
    assert cached("other", "key", lambda: {"a": b"2"}) == {"a": b"2"}


def test_key_depends_on_every_part_and_on_the_format(monkeypatch: pytest.MonkeyPatch) -> None:
    key = content_key("a", 1, [0.5])
    assert key == content_key("a", 1, [0.5])
    assert len({key, content_key("b", 1, [0.5]), content_key("a", 2, [0.5]), content_key("a", 1, [0.6])}) == 4
    monkeypatch.setattr(cache_module, "FORMAT_VERSION", 0)
    assert content_key("a", 1, [0.5]) != key


DAMAGES = {
    "truncated": lambda entry: (entry / "a.bin").write_bytes(FILES["a.bin"][:-1]),
    "one bit": lambda entry: (entry / "a.bin").write_bytes(b"\x01" + FILES["a.bin"][1:]),
    "missing file": lambda entry: (entry / "b.json").unlink(),
    "truncated manifest": lambda entry: (entry / "manifest.json").write_text('{"sha256": {"a.b'),
    "empty manifest": lambda entry: (entry / "manifest.json").write_text("{}"),
    "other manifest": lambda entry: (entry / "manifest.json").write_text("[]"),
    "no manifest": lambda entry: (entry / "manifest.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_entry_is_rebuilt(damage: str, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    cached("kind", "key", lambda: FILES)
    DAMAGES[damage](cache / "kind-key")
    rebuilt: list[str] = []

    def rebuild() -> dict[str, bytes]:
        rebuilt.append(damage)
        return FILES

    with caplog.at_level(logging.WARNING):
        assert cached("kind", "key", rebuild) == FILES
    assert rebuilt == [damage]
    assert "damaged and will be rebuilt" in caplog.text
    assert cached("kind", "key", never) == FILES
    assert [path.name for path in cache.iterdir()] == ["kind-key"]


def test_unwritable_cache_is_no_obstacle_and_warned_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MARBLE_SWEEP_CACHE", str(tmp_path / "file" / "cache"))
    cache_module._warn_unwritable.cache_clear()
    for _ in range(2):
        assert cached("kind", "key", lambda: FILES) == FILES
    assert [record.message for record in caplog.records] == [
        f"nothing is cached: cannot write to {tmp_path / 'file' / 'cache'} (Not a directory)"
    ]


BUILDER = """
import sys, time
from pathlib import Path
from marble_sweep.data.cache import cached

def build():
    print("built", flush=True)
    Path(sys.argv[1], f"ready-{sys.argv[2]}").touch()
    while not Path(sys.argv[1], "go").exists():
        time.sleep(0.001)
    return {f"file-{n}": bytes([n]) * 100_000 for n in range(20)}

files = cached("kind", "key", build)
assert files == {f"file-{n}": bytes([n]) * 100_000 for n in range(20)}
"""


def test_three_processes_build_the_same_entry_at_once(tmp_path: Path, cache: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", BUILDER, str(tmp_path)]
    processes = [
        subprocess.Popen([*command, str(n)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for n in range(3)
    ]
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("ready-*"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    (tmp_path / "go").touch()
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert outputs == [("built\n", "")] * 3  # and no warning
    assert [path.name for path in cache.iterdir()] == ["kind-key"]
    assert len(cached("kind", "key", never)) == 20
    manifest = json.loads((cache / "kind-key" / "manifest.json").read_text())
    assert len(manifest["sha256"]) == 20
