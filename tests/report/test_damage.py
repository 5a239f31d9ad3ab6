"""Runs with a damaged file: shown as such, by name, while the others are compared as always."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from marble_sweep.compare import main
from marble_sweep.report.page import write_page
from marble_sweep.report.summary import compare_runs
from marble_sweep.runs.run import Run
from marble_sweep.runs.steps import PART_BYTES, StepFile
from marble_sweep.training.evaluation import EVAL_COLUMNS

MakeRun = Callable[..., Path]
Change = Callable[[Path], Any]  # of a file


def write(content: bytes) -> Change:
    return lambda path: path.write_bytes(content)


def edit(change: Callable[[bytes], bytes]) -> Change:
    return lambda path: path.write_bytes(change(path.read_bytes()))


def insert(before: bytes, text: bytes) -> Change:
    return edit(lambda content: content.replace(before, before + text, 1))


def set_in_json(**values: Any) -> Change:
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | values))


def set_in_yaml(**values: Any) -> Change:
    return lambda path: path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | values))


def in_place_of(make: Callable[[Path], Any]) -> Change:
    def change(path: Path) -> None:
        path.unlink()
        make(path)

    return change


def line(number: int, text: bytes) -> Change:
    def change(content: bytes) -> bytes:
        lines = content.splitlines(keepends=True)
        lines[number - 1] = text + b"\n"
        return b"".join(lines)

    return edit(change)


DEEP = b"[" * 100_000  # PyYAML's C loader crashes on it
DAMAGES: list[tuple[str, Change, str]] = [  # file, what is done to it, what is said
    ("metrics.csv", edit(lambda text: text.replace(b"\n17,", b"\n17,\0", 1)), "line 18: must be numbers; it holds"),
    ("metrics.csv", edit(lambda text: text + bytes(100)), "line 42: must be numbers"),
    ("metrics.csv", line(17, b"garbage"), "line 17: must be numbers; it holds b'g'"),
    ("metrics.csv", line(17, b"16,1,2"), "line 17: must have 22 fields; it has 3"),
    ("metrics.csv", line(17, b""), "line 17: must have 22 fields; it has 1"),
    ("metrics.csv", edit(lambda text: text.replace(b"\n17,", b"\n1e1,", 1)), "line 18: must be step 17; it is 1e1"),
    (
        "metrics.csv",
        edit(lambda text: text.replace(b"\n17,", b"\n0000000000000175,", 1)),
        "line 18: must be step 17; it is 0000000000000175",
    ),
    *(
        (
            "metrics.csv",
            insert(b"\n40,", bad),
            "line 41: must be numbers",
        )
        for bad in (b"--", b"1.2.", b"1-", b"e", b".,", b"-,", b"1e-1.", b"1e5e", b"nan", b"inf", b"1_", b"+,", b"\r")
    ),
    ("metrics.csv", edit(lambda text: text[: text.index(b"\n30,") + 1]), "rows up to step 29; the run went to step 40"),
    ("metrics.csv", Path.unlink, "has rows up to step 0; the run went to step 40"),
    ("metrics.csv", write(b"\x89PNG\r\n\x1a\n"), "line 1: must be the names of the columns"),
    ("metrics.csv", write(b"a,b\n1,2\n"), "line 1: must be the names of the columns, step first and loss among them"),
    ("metrics.csv", write(b"step,top1\n1,2\n"), "line 1: must be the names of the columns, step first and loss among"),
    (
        "evals.csv",
        write(b"step,loss\n10,2\n"),
        "line 1: must be the names of the columns, step first and val_loss among",
    ),
    ("evals.csv", line(2, b"10,one" + b",1" * (len(EVAL_COLUMNS) - 2)), "line 2: must be numbers; it holds b'o'"),
    ("evals.csv", line(3, b"10" + b",1" * (len(EVAL_COLUMNS) - 1)), "line 3: must be of a later step"),
    (
        "evals.csv",
        line(3, b"10.5" + b",1" * (len(EVAL_COLUMNS) - 1)),
        "line 3: must be of a later step than the line before; its step is 10.5",
    ),
    ("evals.csv", line(3, b"20,1.2.3" + b",1" * (len(EVAL_COLUMNS) - 2)), "line 3: must be numbers"),
    ("evals.csv", write(b"\xff\xfe\0"), "line 1: must be the names of the columns"),
    ("evals.csv", edit(lambda text: text[: text.index(b"\n40,") + 1]), "the run was evaluated at step 40"),
    ("evals.csv", in_place_of(Path.mkdir), "must be a file"),
    ("evals.csv", in_place_of(os.mkfifo), "must be a file"),
    ("evals.csv", in_place_of(lambda path: path.symlink_to("/dev/zero")), "must be a file"),
    ("metadata.json", write(b"{}"), "must have a status"),
    ("metadata.json", write(b"[]"), "must hold a mapping, not []"),
    ("metadata.json", write(b'{"status": "fini'), "must be JSON"),
    ("metadata.json", write(b'{"status": "\xff"}'), "must be UTF-8; byte 12 is not"),
    ("metadata.json", write(b'{"status": "finished", "step": ' + b"9" * 5000 + b"}"), "must be JSON"),
    ("metadata.json", write(DEEP), "must be JSON"),
    ("metadata.json", set_in_json(n_params="12"), "n_params = '12': must be a whole number or null"),
    ("metadata.json", set_in_json(n_params=10**30), "must be a whole number or null"),
    ("metadata.json", set_in_json(n_params=-1), "n_params = -1: must be a whole number or null"),
    ("metadata.json", set_in_json(n_params=True), "n_params = True: must be a whole number or null"),
    (
        "metadata.json",
        set_in_json(steps_per_minute=1e200),
        "steps_per_minute = 1e+200: must be a finite number or null",
    ),
    ("metadata.json", lambda path: os.truncate(path, (1 << 24) + 1), "must be at most 16 MiB"),
    ("metadata.json", set_in_json(steps_per_minute=float("inf")), "Infinity is no JSON number"),
    ("metadata.json", set_in_json(baselines={"bigram": float("nan")}), "NaN is no JSON number"),
    ("metadata.json", set_in_json(baselines={"bigram": [1]}), "baselines.bigram = [1]: must be a finite number"),
    ("metadata.json", set_in_json(corpus="text"), "corpus = 'text': must be a mapping"),
    ("metadata.json", set_in_json(status=["finished"]), "status = ['finished']: must be text"),
    ("metadata.json", in_place_of(lambda path: path.symlink_to("/nowhere")), "is a symbolic link to nothing"),
    ("metadata.json", in_place_of(lambda path: path.symlink_to(path.name)), "cannot be read"),
    ("config.yaml", Path.unlink, "is missing"),
    ("config.yaml", write(b"- 1\n- 2\n"), "must hold a mapping"),
    ("config.yaml", write(b"\0" * 50), "must be YAML"),
    ("config.yaml", write(DEEP), "it is nested too deeply"),
    ("config.yaml", write(b"a: &a\n  b: *a\n"), "it has an alias"),
    ("config.yaml", write(b"seed: 2024-99-99\n"), "must be YAML"),
    ("config.yaml", set_in_yaml(trainer=None), "must have trainer.total_steps"),
    ("config.yaml", set_in_yaml(optimizer={"name": "adamw", "lr": "high"}), "optimizer.lr = 'high': must be a finite"),
    ("config.yaml", set_in_yaml(seed=10**400), "seed = "),
    ("verdict.json", lambda path: path.write_text("null"), "must hold a mapping"),
]


@pytest.fixture(scope="module")
def sweep(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of different learning rates."""
    folder = tmp_path_factory.mktemp("sweep")
    for lr in ("0.01", "0.02"):
        make_run(folder / lr, f"optimizer.lr={lr}", steps=40, every=10, freeze_at=30)
    return folder


@pytest.fixture(scope="module")
def sound(sweep: Path) -> dict[str, Any]:
    """The rows of the two, while both are sound."""
    return {Path(row["run"]).name: row for row in compare_runs([Run.read(path) for path in sweep.iterdir()]).rows}


@pytest.mark.parametrize(
    ("name", "change", "reason"), DAMAGES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_damaged_run_is_shown_with_its_file_and_the_other_as_always(
    sweep: Path, sound: dict[str, Any], tmp_path: Path, name: str, change: Change, reason: str, capsys: Any
) -> None:
    shutil.copytree(sweep, tmp_path / "sweep")
    change(tmp_path / "sweep" / "0.01" / name)
    assert main([str(tmp_path / "sweep"), "--format", "json", "--sort", "run"]) == 0
    printed = capsys.readouterr()
    damaged, other = json.loads(printed.out)
    assert damaged["status"] == "damaged"
    assert damaged["damage"].startswith(f"{name}: ")
    assert reason in damaged["damage"]
    complaint = f"damaged: {tmp_path / 'sweep' / '0.01'}: {name}: "
    assert printed.err.startswith(complaint)
    assert printed.err.count(complaint) == 1 or name == "config.yaml", (
        "several settings may be damaged, a file only once"
    )
    assert other["damage"] is None
    expected = sound["0.02"] | {"run": other["run"]}
    assert {column: other[column] for column in expected} == expected
    assert main([str(tmp_path / "sweep")]) == 0
    table, _, below = capsys.readouterr().out.partition("\n\n")
    assert any(row.startswith("0.01 ") and row.endswith("  damaged") for row in table.splitlines())
    assert any(row.startswith(complaint) for row in below.splitlines())


def test_the_page_names_what_is_damaged_and_calls_no_damaged_run_the_best(make_run: MakeRun, tmp_path: Path) -> None:
    best = make_run(tmp_path / "best", "optimizer.lr=0.01", steps=40, loss=4.0)
    make_run(tmp_path / "other", "optimizer.lr=0.02", steps=40, loss=5.0)
    line(9, b"garbage")(best / "metrics.csv")
    comparison = compare_runs([Run.read(path) for path in sorted(tmp_path.iterdir())])
    write_page(comparison, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert f"damaged: {best}: metrics.csv: line 9: must be numbers" in text
    assert "<h1>One configuration: 4L128D, lr=0.02, held-out loss 5.0" in text


def test_what_is_damaged_changes_no_mean_and_no_step(make_run: MakeRun, tmp_path: Path, capsys: Any) -> None:
    for seed in (1, 2, 3):
        make_run(tmp_path / str(seed), f"seed={seed}", steps=40, every=10)
    evals = tmp_path / "3" / "evals.csv"
    evals.write_text(evals.read_text()[: evals.read_text().index("\n30,") + 1])
    assert main([str(tmp_path), "--format", "json"]) == 0
    groups = {row["status"]: row for row in json.loads(capsys.readouterr().out)}
    assert (groups["finished"]["seeds"], groups["finished"]["step"]) == ([1, 2], 40)
    assert (groups["damaged"]["seeds"], groups["damaged"]["val_loss"]) == ([3], None)


def test_all_runs_may_be_damaged(make_run: MakeRun, tmp_path: Path, capsys: Any) -> None:
    for name in ("config.yaml", "metadata.json", "evals.csv", "metrics.csv"):
        run = make_run(tmp_path / name, steps=20)
        (run / name).write_bytes(random.Random(1).randbytes(300))
    assert main([str(tmp_path), "--html", str(tmp_path / "page.html"), "--group-by", "none"]) == 0
    assert capsys.readouterr().out.count("\ndamaged: ") == 4


def test_random_damage_stops_nothing(sweep: Path, tmp_path: Path, capsys: Any) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for case in range(20):
        folder = tmp_path / str(case)
        shutil.copytree(sweep, folder)
        path = folder / "0.01" / rng.choice(["config.yaml", "metadata.json", "evals.csv", "metrics.csv"])
        content = bytearray(path.read_bytes())
        for _ in range(rng.randrange(1, 6)):
            at = rng.randrange(len(content))
            content[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(4))
        path.write_bytes(content[: rng.choice([len(content), rng.randrange(len(content))])])
        for form in ("table", "csv"):
            assert main([str(folder), "--format", form, "--group-by", "none"]) == 0, f"seed {seed}, case {case}"
    capsys.readouterr()


def test_a_file_of_several_parts_is_read_as_one_and_checked_to_its_end(tmp_path: Path) -> None:
    num_rows = PART_BYTES // 5
    rows = [f"{step},{1 / step:.6f},{int(step < 100)}\n" for step in range(1, num_rows + 1)]
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss,dead_moving\n" + "".join(rows))
    assert path.stat().st_size > 2 * PART_BYTES
    file = StepFile(path)
    assert (file.damage, file.num_rows, file.last_step) == (None, num_rows, num_rows)
    for step in (1, num_rows // 2, num_rows):
        assert file.row(step) == {"step": step, "loss": round(1 / step, 6), "dead_moving": float(step < 100)}
    assert file.step_after_last("dead_moving", num_rows) == 100
    del rows[-3]
    path.write_text("step,loss,dead_moving\n" + "".join(rows))
    assert StepFile(path).damage == f"line {num_rows - 1}: must be step {num_rows - 2}; it is {num_rows - 1}"


def test_a_folder_that_cannot_be_read_is_shown_as_damaged(make_run: MakeRun, tmp_path: Path, capsys: Any) -> None:
    make_run(tmp_path / "sweep" / "0", steps=20)
    (tmp_path / "sweep" / "1").mkdir()
    (tmp_path / "sweep" / "1").chmod(0)
    if os.access(tmp_path / "sweep" / "1", os.R_OK):
        pytest.skip("this user may read every folder")
    assert main([str(tmp_path / "sweep")]) == 0
    assert (
        f"damaged: {tmp_path / 'sweep' / '1'}: config.yaml: cannot be read (Permission denied)"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    "content",
    [b"[]", b"{}", b"null", b'{"words": 5}', b'{"words": [1]}', b"\xff", DEEP],
)
def test_a_damaged_search_json_is_named(make_run: MakeRun, tmp_path: Path, capsys: Any, content: bytes) -> None:
    make_run(tmp_path / "0", steps=20)
    (tmp_path / "search.json").write_bytes(content)
    assert main([str(tmp_path), "--html", str(tmp_path / "page.html")]) == 0
    line = f"damaged: {tmp_path / 'search.json'}: must "
    assert line in capsys.readouterr().out
    assert line in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    "frontier", [None, 5, [{}], [{"status": "certified", "n_params": 0, "margin": 1, "margin_se": 1}]]
)
def test_a_search_whose_frontier_is_damaged_has_no_plot(make_run: MakeRun, tmp_path: Path, frontier: Any) -> None:
    make_run(tmp_path / "0", steps=20)
    (tmp_path / "search.json").write_text(json.dumps({"words": ["found"], "frontier": frontier, "answer": None}))
    assert main([str(tmp_path), "--html", str(tmp_path / "page.html")]) == 0
    assert "<h1>found</h1>" in (tmp_path / "page.html").read_text()
