"""`python -m marble_sweep.compare`, from run directories to what it prints."""

import csv
import io
import json
import math
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from opened import opened_files

from marble_sweep.compare import main
from marble_sweep.report.rows import matches, parse_filter
from marble_sweep.report.summary import compare_directories, compare_runs
from marble_sweep.runs.run import Run

MakeRun = Callable[..., Path]
PROMISED = {
    *("run", "name", "num_layers", "hidden_dim", "num_heads", "lr", "n_params", "val_loss", "unigram_loss"),
    *("val_margin", "val_margin_se", "beats_unigram", "final_loss", "dead_moving", "steps_per_minute", "status"),
}


@pytest.fixture(scope="module")
def sweep(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sizes, each with two seeds."""
    folder = tmp_path_factory.mktemp("sweep")
    for job, (layers, seed) in enumerate([(2, 1), (2, 2), (4, 1), (4, 2)]):
        make_run(
            folder / str(job), f"model.num_layers={layers}", f"seed={seed}", freeze_at=150 if layers == 2 else None
        )
    return folder


@pytest.fixture
def compare(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(*arguments: object) -> str:
        assert main([str(argument) for argument in arguments]) == 0
        return capsys.readouterr().out

    return run


@pytest.fixture
def rows(compare: Callable[..., str]) -> Callable[..., list[dict[str, Any]]]:
    return lambda *arguments: json.loads(compare(*arguments, "--format", "json"))


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line with which a command line is refused."""

    def run(*arguments: object) -> str:
        assert main([str(argument) for argument in arguments]) == 2
        message = capsys.readouterr().err
        assert message.startswith("marble_sweep.compare: ")
        assert message.count("\n") == 1
        return message

    return run


def test_json_rows_have_what_is_promised(sweep: Path, rows: Any) -> None:
    compared = rows(sweep, "--group-by", "none", "--sort", "run")
    assert len(compared) == 4
    first = compared[0]
    assert set(first) >= PROMISED
    metadata = json.loads((sweep / "0" / "metadata.json").read_text())
    *_, last_eval = csv.DictReader((sweep / "0" / "evals.csv").read_text().splitlines())
    *_, last_step = csv.DictReader((sweep / "0" / "metrics.csv").read_text().splitlines())
    assert (first["name"], first["num_layers"], first["num_heads"], first["lr"]) == ("2L128D", 2, 4, 3e-4)
    assert first["n_params"] == metadata["n_params"]
    assert first["val_loss"] == float(last_eval["val_loss"])
    assert first["val_margin"] == pytest.approx(first["unigram_loss"] - first["val_loss"])
    assert first["final_loss"] == float(last_step["loss"])
    assert first["beats_unigram"] is True
    assert (first["dead_moving"], first["freeze_step"]) == (0, 150)
    assert compared[3]["freeze_step"] is None


def test_seeds_are_repeats(sweep: Path, rows: Any) -> None:
    single = {row["run"]: row["val_loss"] for row in rows(sweep, "--group-by", "none")}
    grouped = rows(sweep)
    assert [(row["num_layers"], row["n"], row["seeds"]) for row in grouped] == [(4, 2, [1, 2]), (2, 2, [1, 2])]
    for row in grouped:
        losses = [single[path] for path in row["runs"]]
        assert row["val_loss"] == pytest.approx(statistics.mean(losses))
        assert row["val_loss_sd"] == pytest.approx(statistics.stdev(losses))


def test_a_group_tells_what_became_of_its_runs(make_run: MakeRun, tmp_path: Path, rows: Any, compare: Any) -> None:
    for seed in (1, 2, 3):
        make_run(tmp_path / str(seed), f"seed={seed}", steps=40, status="failed" if seed == 2 else "finished")
    (row,) = rows(tmp_path)
    assert (row["status"], row["n"], row["seed"]) == ("2 finished, 1 failed", 3, None)
    assert "seed more than once" not in compare(tmp_path)
    make_run(tmp_path / "retry", "seed=1", steps=40)
    assert "seed more than once" in compare(tmp_path)


def test_the_table_shows_only_what_differs(sweep: Path, compare: Any) -> None:
    table = compare(sweep, "--format", "markdown").splitlines()
    assert table[0].startswith(
        "| run | num_layers | n | n_params | val_loss | val_margin | beats_unigram | beats_bigram |"
    )
    assert table[2].startswith("| 2 +1 | 4 | 2 | 2,082,816 | 4.0")
    single = compare(sweep, "--format", "markdown", "--group-by", "none").splitlines()
    assert single[0].startswith("| run | num_layers | seed | n_params |")


def test_the_terminal_table_is_aligned(sweep: Path, compare: Any) -> None:
    lines = compare(sweep, "--columns", "run,n_params,status").splitlines()
    assert lines[:4] == [
        "run    n_params  status",
        "────  ─────────  ────────",
        "2 +1  2,082,816  finished",
        "0 +1  1,689,600  finished",
    ]


def test_sort_filter_and_columns(sweep: Path, compare: Any) -> None:
    options = ("--group-by", "none", "--format", "csv", "--columns", "num_layers,seed", "--sort")
    assert compare(sweep, *options, "seed", "--descending", "--filter", "n_params<2e6").split() == [
        "num_layers,seed",
        "2,2",
        "2,1",
    ]
    assert compare(sweep, *options, "num_layers", "--filter", "seed==1 and status=='finished'").split()[1:] == [
        "2,1",
        "4,1",
    ]


def test_grouping_by_a_column_averages_over_the_rest(sweep: Path, rows: Any) -> None:
    (row,) = rows(sweep, "--group-by", "lr")
    assert (row["n"], row["num_layers"], row["freeze_step"]) == (4, None, None)


def test_csv_is_complete(sweep: Path, compare: Any) -> None:
    first, *_ = csv.DictReader(io.StringIO(compare(sweep, "--format", "csv")))
    assert set(first) >= PROMISED
    assert math.isfinite(float(first["val_loss_sd"]))


def test_runs_are_compared_at_the_same_step(make_run: MakeRun, tmp_path: Path, compare: Any, rows: Any) -> None:
    make_run(tmp_path / "long", steps=200)
    make_run(tmp_path / "short", "model.num_layers=2", steps=100, status="running")
    make_run(tmp_path / "broken", "optimizer.lr=1", steps=30, status="diverged")
    make_run(tmp_path / "blind", "optimizer.lr=0.1", steps=200, every=0)
    text = compare(tmp_path)
    assert "different lengths: all are compared at step 100" in text
    assert "short (running)" in text
    by_name = {Path(row["run"]).name: row for row in rows(tmp_path)}
    assert by_name["long"]["step"] == by_name["short"]["step"] == 100
    assert by_name["long"]["val_loss"] == Run.read(tmp_path / "long").eval_at[100]["val_loss"]
    assert by_name["long"]["final_loss"] == Run.read(tmp_path / "long").steps.row(100)["loss"]
    assert (by_name["broken"]["val_loss"], by_name["broken"]["status"]) == (None, "diverged")
    assert by_name["blind"]["val_loss"] is None
    (kept,) = rows(tmp_path, "--filter", "status==finished and lr<0.01")
    assert kept["step"] == 200


STOPPING = ("certify.stop=true", "trainer.num_evals=9", "trainer.eval_spacing=geometric", "trainer.total_steps=400")


def make_search(make_run: MakeRun, folder: Path) -> Path:
    """What a search leaves: the answer certified early, a lucky seed of a smaller size, one pruned, one refuted."""
    # A run's loss falls towards `loss`; unigram is at 6.2 nats.
    for name, layers, seed, steps, loss, status in (
        ("0", 4, 42, 50, 5.0, "certified"),
        ("1", 4, 43, 75, 5.0, "certified"),
        ("2", 2, 42, 100, 6.0, "certified"),
        ("3", 2, 43, 400, 6.4, "finished"),
        ("4", 1, 42, 25, 6.9, "pruned"),
    ):
        overrides = (*STOPPING, f"model.num_layers={layers}", f"seed={seed}")
        make_run(folder / name, *overrides, steps=steps, every=25, loss=loss, status=status)
    (folder / "search.json").write_text(
        json.dumps(
            {
                "words": ["The smallest model that beats the fitted unigram loss: 4L128D."],
                "threshold": "unigram",
                "standard_errors_each_look": 3.62,
                "answer": {"size": "4L128D", "n_params": 2_082_816, "confirmed": True},
                "frontier": [{"n_params": 2_082_816, "status": "certified", "margin": 1.0, "margin_se": 0.01}],
            }
        )
    )
    return folder


def test_each_trial_of_a_search_is_shown_with_what_it_ended_with(
    make_run: MakeRun, tmp_path: Path, rows: Any, compare: Any
) -> None:
    folder = make_search(make_run, tmp_path / "search")
    by_name = {Path(row["run"]).name: row for row in rows(folder)}
    assert {name: (row["status"], row["step"], row["beats_unigram"]) for name, row in by_name.items()} == {
        "0": ("certified", 50, True),
        "1": ("certified", 75, True),
        "2": ("certified", 100, True),
        "3": ("finished", 400, False),
        "4": ("pruned", 25, False),
    }
    for name, row in by_name.items():
        last = Run.read(folder / name).evals[-1]
        assert (row["val_loss"], row["val_margin"]) == (last["val_loss"], last["tempered_margin"])
        assert row["n"] == 1  # a mean over steps would say nothing
    text = compare(folder)
    assert text.startswith("The smallest model that beats the fitted unigram loss: 4L128D.")
    assert "shown at their own last evaluation" in text
    assert "all are compared at step" not in text
    heads = compare(folder, "--format", "csv").splitlines()[0].split(",")
    assert "step" in heads
    shown = compare(folder, "--format", "markdown")
    assert next(line for line in shown.splitlines() if line.startswith("| run |")).split(" | ")[1:5] == [
        "num_layers",
        "seed",
        "n_params",
        "step",
    ]


def test_the_page_of_a_search_ranks_no_losses_at_different_steps(make_run: MakeRun, tmp_path: Path) -> None:
    from marble_sweep.report.page import write_page

    folder = make_search(make_run, tmp_path / "search")
    write_page(compare_runs([Run.read(folder / name) for name in "01234"]), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    head = page[: page.index("<script>")]
    assert "<h1>The smallest model that beats the fitted unigram loss: 4L128D.</h1>" in head
    cells = [line for line in head.splitlines() if "<tr data-group" in line]
    beats = {"certified": "yes", "finished": "no", "pruned": "no"}
    assert len(cells) == 5
    for line in cells:
        status = next(status for status in beats if f">{status}<" in line)
        assert f">{beats[status]}<" in line
    assert "compare the trials at the last step" not in head
    assert "The line joins what no smaller model beats" not in head
    assert 'id="effects"' not in head


def test_runs_that_may_stop_have_no_say_in_the_step_of_others(make_run: MakeRun, tmp_path: Path) -> None:
    make_run(tmp_path / "early", *STOPPING, steps=25, every=25, status="certified", loss=5.0)
    make_run(tmp_path / "long", "model.num_layers=2", steps=200, every=25)
    make_run(tmp_path / "short", "model.num_layers=1", steps=100, every=25)
    comparison = compare_runs([Run.read(tmp_path / name) for name in ("early", "long", "short")])
    assert [row["step"] for row in comparison.rows] == [25, 100, 100]
    assert comparison.step is None
    assert "all are compared at step 100" in " ".join(comparison.notes)


def test_a_group_beats_only_where_every_run_is_known_to(make_run: MakeRun, tmp_path: Path, rows: Any) -> None:
    make_run(tmp_path / "a", "seed=1", loss=5.0)
    make_run(tmp_path / "b", "seed=2", loss=5.0)
    evals = (tmp_path / "b" / "evals.csv").read_text().splitlines()
    place = evals[0].split(",").index("tempered_margin_se")
    blank = [",".join("" if at == place else value for at, value in enumerate(line.split(","))) for line in evals[1:]]
    (tmp_path / "b" / "evals.csv").write_text("\n".join([evals[0], *blank]) + "\n")
    (row,) = rows(tmp_path)
    assert row["n"] == 2
    assert row["beats_unigram"] is None


def test_no_common_step_is_said(make_run: MakeRun, tmp_path: Path, compare: Any) -> None:
    make_run(tmp_path / "a", steps=30, every=30)
    make_run(tmp_path / "b", steps=40, every=40)
    assert "no step at which all runs have an evaluation" in compare(tmp_path)


@pytest.mark.parametrize("other", [{"sha256": "b" * 64}, {"vocab_size": 500}])
def test_losses_on_different_tokens_are_not_ranked(
    make_run: MakeRun, tmp_path: Path, compare: Any, other: dict[str, Any]
) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", **other)
    text = compare(tmp_path, "--format", "markdown")
    assert "Warning: runs on 2" in text
    assert "bits_per_byte" in text.splitlines()[2]
    assert compare_runs([Run.read(tmp_path / name) for name in "ab"]).objective == "bits_per_byte"


def test_beating_unigram_takes_three_standard_errors(
    make_run: MakeRun, tmp_path: Path, rows: Any, compare: Any
) -> None:
    for name, loss in (("clear", 6.1), ("close", 6.16), ("worse", 6.5)):
        make_run(tmp_path / name, loss=loss)
        evals = (tmp_path / name / "evals.csv").read_text().splitlines()
        (tmp_path / name / "evals.csv").write_text("\n".join([evals[0], evals[-1]]) + "\n")
    shown = rows(tmp_path, "--group-by", "none")
    assert {Path(row["run"]).name: row["beats_unigram"] for row in shown} == {
        "clear": True,
        "close": None,
        "worse": False,
    }
    outcomes = {Path(row["run"]).name: row["unigram_outcome"] for row in shown}
    assert outcomes == {"clear": "certified", "close": "undecided", "worse": "below"}
    table = compare(tmp_path, "--group-by", "none", "--columns", "run,beats_unigram").splitlines()
    rows_shown = [line.split() for line in table if line.startswith(("c", "w"))]
    assert rows_shown == [["clear", "yes"], ["close", "undecided"], ["worse", "no"]]


def test_a_choice_of_group_is_named_after_the_group(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", "precision.name=fp32", "optimizer.betas=[0.8,0.9]")]
    comparison = compare_runs([Run.read(run) for run in runs])
    assert comparison.varied == ["betas", "precision"]
    assert [row["precision"] for row in comparison.rows] == ["bf16", "fp32"]
    assert comparison.rows[1]["betas"] == "0.8, 0.9"
    assert list(compare_directories(runs)["precision"]) == ["bf16", "fp32"]


def test_mistakes_cost_one_line(sweep: Path, refused: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "the nearest is val_loss" in refused(sweep, "--sort", "vall_loss")
    assert "must be a column" in refused(sweep, "--columns", "run,nope")
    assert "must be a column" in refused(sweep, "--group-by", "nope")
    assert "must be a column" in refused(sweep, "--filter", "nope<1")
    assert "must be like" in refused(sweep, "--filter", "__import__('os').system('true')")
    assert "like with like" in refused(sweep, "--filter", "name<3")
    assert "none of 4 passes" in refused(sweep, "--filter", "lr>1")
    assert "PATH = nowhere" in refused("nowhere")
    monkeypatch.chdir(tmp_path)
    assert "there is no run under multirun/ or outputs/" in refused()


def test_without_a_path_the_newest_sweep_is_taken(
    make_run: MakeRun, tmp_path: Path, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "multirun" / "day" / "time" / "0")
    monkeypatch.chdir(tmp_path)
    assert [row["run"] for row in rows()] == ["multirun/day/time/0"]


@pytest.mark.parametrize(
    ("expression", "met"),
    [
        ("a<2", True),
        ("a >= 2", False),
        ("a==1 and b==x", True),
        ("b!='x'", False),
        ("c==true", True),
        ("d==none", True),
        ("d<1", False),
        ("d!=1", True),
        ("a=1e0 and c=false", False),
    ],
)
def test_filters(expression: str, met: bool) -> None:
    assert matches({"a": 1, "b": "x", "c": True, "d": None}, parse_filter(expression)) is met


def test_the_work_grows_with_the_runs_alone(make_run: MakeRun, tmp_path: Path, compare: Any) -> None:
    """How long a thousand runs take, benchmarks/compare.py prints."""
    source = make_run(tmp_path / "few" / "0", "model.num_layers=1", steps=2000, every=250, freeze_at=1000)
    for folder, runs in (("few", range(1, 4)), ("many", range(12))):
        for job in runs:
            run = shutil.copytree(source, tmp_path / folder / str(job))
            (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("seed: 42", f"seed: {job}"))
    compare(tmp_path / "few")  # what is imported late is read now
    read: dict[str, tuple[int, int]] = {}
    for folder in ("few", "many"):
        before = bytes_read()
        with opened_files() as paths:
            compare(tmp_path / folder)
        read[folder] = sum(str(tmp_path) in path for path in paths), bytes_read() - before
    assert read["many"][0] <= 3 * read["few"][0]
    assert read["many"][1] <= 1.1 * 3 * read["few"][1]
    size = sum(path.stat().st_size for path in source.iterdir())
    assert read["many"][1] <= 12 * 4 * size, "each file is read a few times over, however many its rows"


def bytes_read() -> int:
    """By this process so far; 0 where the system does not count."""
    counts = Path("/proc/self/io")
    return int(counts.read_text().split()[1]) if counts.exists() else 0


def test_parts_of_the_held_out_text_are_not_ranked_against_each_other(make_run: MakeRun, tmp_path: Path) -> None:
    for part, unigram in (("search", 6.5), ("confirm", 6.7)):
        folder = make_run(tmp_path / part, f"trainer.eval_part={part}", steps=40)
        metadata = json.loads((folder / "metadata.json").read_text())
        metadata["baselines"]["unigram_fitted"] = unigram
        (folder / "metadata.json").write_text(json.dumps(metadata))
    compared = compare_runs([Run.read(path) for path in sorted(tmp_path.iterdir())])
    assert compared.comparable
    assert [note for note in compared.notes if "trainer.eval_part" in note]
