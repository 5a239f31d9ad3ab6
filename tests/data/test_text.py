import re
from pathlib import Path

import pytest

from marble_sweep.data.text import read_documents


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text.encode())


def test_folder_is_searched_for_text_and_markdown(tmp_path: Path) -> None:
    write(tmp_path / "own", {"b.txt": "B", "a/c.md": "C", "a/d.py": "D", "e.txt": " \n"})
    assert read_documents(str(tmp_path / "own")) == {"a/c.md": "C", "b.txt": "B"}


def test_glob_and_file(tmp_path: Path) -> None:
    write(tmp_path / "own", {"b.txt": "B", "a/c.log": "C", "a/d.log": "D"})
    assert read_documents(str(tmp_path / "own" / "**" / "*.log")) == {"c.log": "C", "d.log": "D"}
    assert read_documents(str(tmp_path / "own" / "a" / "c.log")) == {"c.log": "C"}


def test_names_do_not_depend_on_the_place(tmp_path: Path) -> None:
    for place in ("here", "else/where"):
        write(tmp_path / place, {"a/c.md": "C", "b.txt": "B"})
    assert read_documents(str(tmp_path / "here")) == read_documents(str(tmp_path / "else" / "where"))


def test_line_ends_and_byte_order_mark(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": "\ufeffone\r\ntwo\n"})
    assert read_documents(str(tmp_path / "a.txt")) == {"a.txt": "one\ntwo\n"}


@pytest.mark.parametrize("name", ["missing.txt", "*.nothing", "empty_folder"])
def test_nothing_found(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty_folder").mkdir()
    path = str(tmp_path / name)
    expected = f"data.path = '{path}': must be a file, a glob, or a folder with .txt or .md files"
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        read_documents(path)


def test_nothing_in_it(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": "", "b.txt": " \n\t"})
    expected = f"data.path = '{tmp_path}': must be more than white space, and is empty"
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        read_documents(str(tmp_path))


def test_not_utf8(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": "fine"})
    (tmp_path / "b.txt").write_bytes("café".encode("latin-1"))
    expected = f"data.path = '{tmp_path / 'b.txt'}': must be UTF-8, and byte 3 is not"
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        read_documents(str(tmp_path))
