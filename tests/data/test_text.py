import os
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


def test_hidden_files_and_folders_are_left_alone(tmp_path: Path) -> None:
    write(tmp_path, {"book.txt": "B", ".git/a.txt": "no", "a/.b/c.md": "no", ".hidden.txt": "no"})
    (tmp_path / "._book.txt").write_bytes(b"\x00\x05\x16\x07\x00\xff")  # as a Mac leaves beside it
    assert read_documents(str(tmp_path)) == {"book.txt": "B"}
    assert read_documents(str(tmp_path / "**" / "*.*")) == {"book.txt": "B"}
    # Whoever names one means it.
    assert read_documents(str(tmp_path / ".git")) == {"a.txt": "no"}
    assert read_documents(str(tmp_path / ".hidden.txt")) == {".hidden.txt": "no"}


def test_suffixes_in_upper_case(tmp_path: Path) -> None:
    write(tmp_path, {"NOTES.TXT": "N", "a/Read.Md": "R"})
    assert read_documents(str(tmp_path)) == {"NOTES.TXT": "N", "a/Read.Md": "R"}


@pytest.mark.parametrize("folder", ["notes [2024]", "[", "a*b?", "x/[y]/{z}", "sp ace"])
def test_signs_of_a_glob_in_the_name_of_a_folder(tmp_path: Path, folder: str) -> None:
    write(tmp_path / folder, {"a.txt": "A", "[b].txt": "B", "c.log": "C"})
    place = tmp_path / folder
    assert read_documents(str(place)) == {"a.txt": "A", "[b].txt": "B"}
    assert read_documents(str(place / "[b].txt")) == {"[b].txt": "B"}
    assert read_documents(str(place / "*.txt")) == {"a.txt": "A", "[b].txt": "B"}
    assert read_documents(str(place / "**" / "[a-c].*")) == {"a.txt": "A", "c.log": "C"}


def test_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "own", {"b.txt": "B", "a/c.txt": "C"})
    monkeypatch.chdir(tmp_path)
    for path in ("own", "own/**/*.txt", "./*/../own/**/*.txt"):
        assert read_documents(path) == {"a/c.txt": "C", "b.txt": "B"}


def test_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"b.txt": "B"})
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_documents("~/b.txt") == read_documents("~/*.txt") == {"b.txt": "B"}


def test_a_file_name_that_is_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.txt")
    write(tmp_path, {name: "A", "b.txt": "B"})
    assert read_documents(str(tmp_path)) == {"b.txt": "B", name: "A"}
    (tmp_path / name).write_bytes(b"ab\xff")
    with pytest.raises(ValueError, match=r"must be UTF-8, and byte 2 is not$") as caught:
        read_documents(str(tmp_path))
    assert r"caf\udce9.txt" in str(caught.value).encode().decode()  # can be printed anywhere


def test_what_is_no_file_is_left_out_with_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, {"a.txt": "A", "folder.txt/b.txt": "B", "empty.txt": ""})
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "broken.txt").symlink_to(tmp_path / "gone.txt")
    (tmp_path / ".#a.txt").symlink_to("an editor's lock")
    assert read_documents(str(tmp_path)) == {"a.txt": "A", "folder.txt/b.txt": "B"}
    assert sorted(caplog.messages) == [
        f"data.path: '{tmp_path}/{name}.txt' is left out: it is a broken link or not a regular file"
        for name in ("broken", "pipe")
    ]


def test_unreadable_file_and_folder(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    write(tmp_path, {"a.txt": "A", "closed/b.txt": "B"})
    (tmp_path / "closed").chmod(0)
    with pytest.raises(ValueError, match=r"^data.path = .*: must be readable \(Permission denied: '.*closed'\)$"):
        read_documents(str(tmp_path))
    (tmp_path / "closed").chmod(0o700)
    (tmp_path / "a.txt").chmod(0)
    with pytest.raises(ValueError, match=r"^data.path = '.*a.txt': must be a readable file \(Permission denied\)$"):
        read_documents(str(tmp_path))


@pytest.mark.parametrize("path", ["", "~nobody-of-this-name/a.txt", "a\0b"])
def test_path_that_leads_nowhere(path: str) -> None:
    expected = f"data.path = {path!r}: must be a file, a glob, or a folder with .txt or .md files"
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        read_documents(path)


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
