"""`compare --pairs` and `--noise`: which runs are tested on what, and what is said of the others."""

import csv
import io
import json
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import tiny_config, train_only
from scipy import stats

import marble_sweep as ms
from marble_sweep.checks import CheckError
from marble_sweep.compare import main
from marble_sweep.report.page import write_page
from marble_sweep.report.summary import compare_runs
from marble_sweep.runs.run import Run
from marble_sweep.runs.window_losses import HeldOut, write_windows

MakeRun = Callable[..., Path]
NUM_WINDOWS = 64


@pytest.fixture
def make(make_run: MakeRun, tmp_path: Path) -> MakeRun:
    """A run with losses by window, `loss` on average."""

    def make(name: str, *overrides: str, loss: float, first: int = 0, **given: Any) -> Path:
        run = make_run(tmp_path / name, *overrides, **({"steps": 40} | given))
        write_losses(run, loss + np.random.default_rng([*name.encode()]).normal(0, 0.05, NUM_WINDOWS), first)
        return run

    return make


def write_losses(run: Path, losses: np.ndarray, first: int = 0) -> None:
    numbers = list(range(first, first + len(losses)))
    write_windows(run / "windows.csv", HeldOut(np.array(numbers), np.array(numbers) // 2))
    rows = [",".join(map(str, [step, *losses])) for step in (20, 40)]
    (run / "window_losses.csv").write_text("\n".join([",".join(map(str, ["step", *numbers])), *rows, ""]))


@pytest.fixture
def compare(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str]]:
    """What is printed on standard output and on standard error."""

    def run(*arguments: object) -> tuple[str, str]:
        assert main([str(argument) for argument in arguments]) == 0
        return capsys.readouterr()

    return run


def test_settings_are_tested_pair_by_pair(make: MakeRun, tmp_path: Path, compare: Any) -> None:
    for seed in (1, 2, 3):
        make(f"low{seed}", "optimizer.lr=1e-3", f"seed={seed}", loss=4.0 + seed / 1000)
        make(f"high{seed}", "optimizer.lr=3e-3", f"seed={seed}", loss=4.5)
    out, err = compare(tmp_path, "--pairs", "--format", "json")
    (row,) = json.loads(out)
    assert "Not in the pair tests" not in err
    assert (row["setting"], row["other"], row["n"], row["n_other"]) == ("4L128D, lr=0.001", "4L128D, lr=0.003", 3, 3)
    sides = [
        np.array([np.loadtxt(tmp_path / f"{name}{seed}/window_losses.csv", delimiter=",", skiprows=1)[1, 1:]
                  for seed in (1, 2, 3)])
        for name in ("low", "high")
    ]  # fmt: skip
    difference = sides[0].mean(axis=0) - sides[1].mean(axis=0)
    assert row["difference"] == pytest.approx(difference.mean())
    text = statistics.variance(difference.reshape(-1, 2).mean(axis=1)) / (NUM_WINDOWS / 2)
    seeds = [statistics.variance(losses.mean(axis=1).tolist()) / 3 for losses in sides]
    assert row["difference_se"] == pytest.approx((text + sum(seeds)) ** 0.5)
    p = 2 * stats.t.sf(abs(row["difference"] / row["difference_se"]), row["df"])
    assert row["p"] == row["p_corrected"] == pytest.approx(p)
    assert row["result"] == "4L128D, lr=0.001 is lower"

    out, _ = compare(tmp_path, "--pairs")
    assert "at step 40, on the same 64 held-out windows" in out
    assert "these two trained models" not in out
    assert out.rstrip().endswith("4L128D, lr=0.001 is lower")
    assert len(list(csv.DictReader(io.StringIO(compare(tmp_path, "--pairs", "--format", "csv")[0])))) == 1
    assert "| 4L128D, lr=0.001 | 4L128D, lr=0.003 | 3 | 3 |" in compare(tmp_path, "--pairs", "--format", "markdown")[0]


def test_two_runs_are_compared_whatever_differs(make: MakeRun, compare: Any) -> None:
    first, second = make("a", "seed=1", loss=4.0), make("bb", "seed=2", loss=4.001)
    out, _ = compare(first, second, "--pairs")
    assert "is about these two trained models, not about their settings" in out
    assert out.rstrip().endswith("within noise")
    frame = ms.compare_pairs(first, second)
    assert frame["result"].tolist() == ["within noise"]
    assert "on the same 64 held-out windows" in frame.attrs["notes"][0]
    twin = make("cc", "seed=3", loss=4.2)
    shutil.copy(second / "window_losses.csv", twin)
    assert ms.compare_pairs(second, twin)["result"].tolist() == ["identical"]


def test_groups_that_the_user_names_are_settings(make: MakeRun, tmp_path: Path, compare: Any) -> None:
    for index, (layers, lr) in enumerate([(2, 1e-3), (4, 1e-3), (2, 2e-3), (4, 2e-3)]):
        make("r" * (index + 1), f"model.num_layers={layers}", f"optimizer.lr={lr}", loss=4.0 + 100 * lr)
    for column, labels in (("lr", ["lr=0.001", "lr=0.002"]), ("num_layers", ["2L128D", "4L128D"])):
        (row,) = json.loads(compare(tmp_path, "--pairs", "--group-by", column, "--format", "json")[0])
        assert sorted([row["setting"], row["other"]]) == labels
        assert {row["n"], row["n_other"]} == {2}


def test_trials_of_a_search_are_tested_at_their_last_common_step(make: MakeRun, tmp_path: Path, compare: Any) -> None:
    make("a", "certify.stop=true", loss=4.0)
    make("bb", "certify.stop=true", "optimizer.lr=1e-3", loss=4.1, steps=20)
    out, err = compare(tmp_path, "--pairs", "--format", "json")
    assert len(json.loads(out)) == 1
    assert "Every pair of settings at step 20" in err


def test_a_copy_of_a_run_counts_once(make: MakeRun, tmp_path: Path, compare: Any) -> None:
    make("a", "optimizer.lr=1e-3", "seed=1", loss=4.0)
    shutil.copytree(make("bb", "optimizer.lr=2e-3", "seed=1", loss=4.1), tmp_path / "copy")
    (row,) = json.loads(compare(tmp_path, "--pairs", "--format", "json")[0])
    assert (row["n"], row["n_other"]) == (1, 1)


@pytest.mark.parametrize(("num_settings", "num_shown"), [(5, 10), (6, 5)])
def test_many_settings_are_compared_with_the_best(
    num_settings: int, num_shown: int, make: MakeRun, tmp_path: Path, compare: Any
) -> None:
    for index in range(num_settings):
        make("r" * (index + 1), f"optimizer.lr={index + 1}e-3", loss=4 + index / 100)
    out, err = compare(tmp_path, "--pairs", "--format", "json")
    rows = json.loads(out)
    assert len(rows) == num_shown
    assert all(row["difference"] < 0 for row in rows)
    num_pairs = num_settings * (num_settings - 1) // 2
    smallest = min(rows, key=lambda row: row["p"])
    assert smallest["p_corrected"] == pytest.approx(min(1, smallest["p"] * num_pairs))
    assert f"for all {num_pairs} pairs of {num_settings} settings" in err
    if num_settings > 5:
        assert {row["setting"] for row in rows} == {"4L128D, lr=0.001"}


@pytest.mark.parametrize(
    ("overrides", "given", "reason"),
    [
        (("trainer.eval_part=confirm",), {}, "other held-out windows than most (trainer.eval_part confirm, not all)"),
        ((), {"sha256": "b" * 64}, "is on another corpus than most"),
        ((), {"first": 1}, "is on other held-out windows than most (trainer.seq_len or trainer.eval_windows)"),
        (("trainer.seq_len=64",), {}, "is on other held-out windows than most (trainer.seq_len"),
    ],
)
def test_runs_on_other_windows_are_declined(
    overrides: tuple[str, ...], given: dict[str, Any], reason: str, make: MakeRun, tmp_path: Path, compare: Any
) -> None:
    make("a", "optimizer.lr=1e-3", loss=4.0)
    make("bb", "optimizer.lr=2e-3", loss=4.1)
    other = make("ccc", "optimizer.lr=3e-3", *overrides, loss=4.2, **given)
    out, _ = compare(tmp_path, "--pairs")
    (line,) = [line for line in out.splitlines() if line.startswith("Not in the pair tests")]
    assert line.startswith(f"Not in the pair tests: {other}: ")
    assert reason in line
    assert len(ms.compare_pairs(tmp_path)) == 1
    with pytest.raises(CheckError, match="No pair tests: they need 2 settings"):
        ms.compare_pairs(tmp_path / "a", other)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda path: path.unlink(), "has no window_losses.csv, which earlier versions did not write."),
        (lambda path: path.write_text("\0" * 99), "line 1: must be step, then the number of each window"),
        (lambda path: path.write_text("step,0,1\n20,1,1\n"), "has no losses by window at step 40."),
        (lambda path: path.write_text("step,0,1\n40,1,\n"), "step 40: must be 2 finite numbers"),
    ],
)
def test_a_run_without_losses_by_window_is_left_out_of_the_pairs_alone(
    change: Callable[[Path], Any], reason: str, make: MakeRun, tmp_path: Path, compare: Any
) -> None:
    for index, name in enumerate(("a", "bb", "ccc")):
        make(name, f"optimizer.lr={index + 1}e-3", loss=4.0 + index)
    change(tmp_path / "ccc" / "window_losses.csv")
    out, _ = compare(tmp_path, "--pairs")
    assert reason in out
    assert "damaged" not in out
    assert len(ms.compare_pairs(tmp_path)) == 1
    change(tmp_path / "bb" / "window_losses.csv")
    assert "No pair tests: they need 2 settings with losses by window." in compare(tmp_path, "--pairs")[0]


def test_runs_that_hold_nothing_out_are_no_damage(make: MakeRun, tmp_path: Path, compare: Any) -> None:
    for index, name in enumerate(("a", "bb")):
        run = make(name, "data.val_fraction=0", f"optimizer.lr={index + 1}e-3", loss=4.0, every=0)
        (run / "window_losses.csv").write_text("step\n")
    out, _ = compare(tmp_path, "--pairs")
    assert f"{tmp_path / 'bb'}: nothing is held out (data.val_fraction = 0)." in out
    assert "window_losses.csv" not in out


def test_documents_may_be_missing(make: MakeRun, tmp_path: Path, compare: Any) -> None:
    for index, name in enumerate(("a", "bb")):
        (make(name, f"optimizer.lr={index + 1}e-3", loss=4.0 + index) / "windows.csv").unlink()
    assert "windows.csv: is missing: blocks of windows stand for documents." in compare(tmp_path, "--pairs")[0]


def test_noise_is_that_of_the_table(make: MakeRun, tmp_path: Path, compare: Any) -> None:
    for seed in (1, 2, 3):
        make(f"low{seed}", "optimizer.lr=1e-3", f"seed={seed}", loss=4.0)
    make("single", "optimizer.lr=3e-3", loss=4.5)
    out, err = compare(tmp_path, "--noise", "--difference", "0.01", "--format", "json")
    (row,) = json.loads(out)
    losses = [run["val_loss"] for run in json.loads(compare(tmp_path, "--group-by", "none", "--format", "json")[0])]
    deviation = statistics.stdev(sorted(losses)[:3])
    assert (row["setting"], row["n"]) == ("4L128D, lr=0.001", 3)
    assert row["val_loss_sd"] == pytest.approx(deviation)
    assert row["least_difference"] == pytest.approx(stats.t.ppf(0.975, 4) * deviation * (2 / 3) ** 0.5)
    assert row["sd_low"] < deviation < row["sd_high"]
    assert row["seeds_needed"] <= row["seeds_needed_high"]
    assert "seeds_needed a side show a difference of 0.01 at 95% with a power of 80%" in err
    assert "seeds_needed" not in compare(tmp_path, "--noise")[0]
    shutil.copytree(tmp_path / "low1", tmp_path / "copy")
    assert json.loads(compare(tmp_path, "--noise", "--difference", "0.01", "--format", "json")[0]) == [row]
    assert "No noise to tell" in compare(tmp_path / "low1", tmp_path / "copy", "--noise")[0]
    assert "No noise to tell" in compare(tmp_path / "single", "--noise")[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--difference", "0.01"], "--difference = 0.01: must be a number > 0 in nats per token, given with --noise"),
        (["--noise", "--difference", "-1"], "--difference = -1.0: must be a number > 0"),
        (["--noise", "--difference", "inf"], "--difference = inf: must be"),
        (["--noise", "--pairs", "--format", "csv"], "--format = csv: must be table or markdown with both"),
    ],
)
def test_what_cannot_be_asked(
    arguments: list[str], message: str, make: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(make("a", loss=4.0)), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_page_has_the_pairs(make: MakeRun, tmp_path: Path) -> None:
    def page(*runs: Path) -> str:
        write_page(compare_runs([Run.read(run) for run in runs]), tmp_path / "page.html")
        return (tmp_path / "page.html").read_text()

    first, second = make("a", "optimizer.lr=1e-3", loss=4.0), make("bb", "optimizer.lr=2e-3", loss=4.2)
    text = page(first, second)
    assert "<h2>Pairs</h2>" in text
    assert "<td>4L128D, lr=0.001 is lower</td>" in text
    assert "<h2>Pairs</h2>" not in page(first)
    (second / "window_losses.csv").unlink()
    assert "No pair tests: they need 2 settings with losses by window." in page(first, second)


def test_real_runs_are_compared(tmp_path: Path, compare: Any) -> None:
    for lr in ("1e-2", "1e-4"):
        train_only(tiny_config(f"optimizer.lr={lr}", "trainer.total_steps=30"), tmp_path / lr)
    (row,) = json.loads(compare(tmp_path, "--pairs", "--format", "json")[0])
    single = {run["lr"]: run["val_loss"] for run in json.loads(compare(tmp_path, "--format", "json")[0])}
    # The files have nine significant digits.
    assert row["difference"] == pytest.approx(single[1e-2] - single[1e-4], abs=1e-7)
    assert row["result"] == "1L16D, lr=0.01 is lower"
