"""Settings that did nothing: runs that agree to the last digit though a parameter differs."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import tiny_config, train_only

from marble_sweep.report.summary import compare_runs
from marble_sweep.report.twins import NO_OUTCOMES
from marble_sweep.runs.run import Run

MakeRun = Callable[..., Path]
STEPS = 60


@pytest.fixture
def twin(make_run: MakeRun, tmp_path: Path) -> Callable[..., Path]:
    """A run whose rows are those of one of its seed, from step `changed` on with another grad_norm."""

    def make(name: str, key: str, value: Any, *, seed: int = 1, changed: int | None = None, **edits: Any) -> Path:
        source = tmp_path / f"source{seed}"
        if not source.exists():
            make_run(source, f"seed={seed}", steps=STEPS, **edits)
        run = Path(shutil.copytree(source, tmp_path / name))
        config = yaml.safe_load((run / "config.yaml").read_text())
        group, _, setting = key.partition(".")
        config[group][setting] = value
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        with (run / "metrics.csv").open() as file:
            header, *rows = csv.reader(file)
        for row in rows:
            values = dict(zip(header, row, strict=True)) | {"tokens_per_second": str(len(name) * 1000)}
            if changed is not None and int(row[0]) >= changed:
                values["grad_norm"] = "0.5"
            row[:] = values.values()
        (run / "metrics.csv").write_text("\n".join(map(",".join, [header, *rows])) + "\n")
        return run

    return make


def notes(*runs: Path) -> list[str]:
    return [note for note in compare_runs([Run.read(run) for run in runs]).notes if "identical" in note]


def test_a_knob_that_did_nothing_is_named(twin: Callable[..., Path]) -> None:
    runs = [twin(name, "optimizer.weight_decay", value) for name, value in (("a", 0.01), ("b", 0), ("c", 0.1))]
    assert notes(*runs) == ["weight_decay 0, 0.01 and 0.1: 60 of 60 steps identical: this knob did nothing."]
    assert notes(runs[0]) == []


def test_a_default_that_is_not_written_is_a_value(twin: Callable[..., Path]) -> None:
    """As a config.yaml has it: a setting that came later is there only where it is not at its default."""
    default, clipped = twin("a", "optimizer.grad_clip", None), twin("b", "optimizer.grad_clip", 2.0)
    config = yaml.safe_load((default / "config.yaml").read_text())
    del config["optimizer"]["grad_clip"]
    (default / "config.yaml").write_text(yaml.safe_dump(config))
    assert notes(default, clipped) == ["grad_clip None and 2: 60 of 60 steps identical: this knob did nothing."]
    shown = compare_runs([Run.read(run) for run in (default, clipped)])
    assert [row["grad_clip"] for row in shown.rows] == [None, 2.0]


def test_a_knob_with_an_effect_is_not(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(lr), f"optimizer.lr={lr}", steps=STEPS) for lr in (1e-3, 2e-3)]
    assert notes(*runs) == []


def test_a_partial_agreement_says_how_far(twin: Callable[..., Path]) -> None:
    whole = twin("a", "schedule.warmup_steps", 0)
    assert notes(whole, twin("b", "schedule.warmup_steps", 5, changed=38)) == [
        "warmup_steps 0 and 5: identical up to step 37."
    ]
    # As far as the first steps, in which a parameter cannot act yet, nothing is said.
    assert notes(whole, twin("c", "schedule.warmup_steps", 6, changed=10)) == []


def test_seeds_that_agree_are_one_sentence(twin: Callable[..., Path]) -> None:
    runs = [
        twin(f"{seed}-{decay}", "optimizer.weight_decay", decay, seed=seed) for seed in (1, 2) for decay in (0, 0.01)
    ]
    assert notes(*runs) == [
        "weight_decay 0 and 0.01: 60 of 60 steps identical: this knob did nothing. So with each of 2 seeds."
    ]


def test_two_classes_of_twins_are_told_apart(twin: Callable[..., Path]) -> None:
    runs = [
        twin(str(index), "optimizer.weight_decay", decay, changed=None if decay < 0.1 else 31)
        for index, decay in enumerate((0, 0.01, 0.1, 0.2))
    ]
    assert notes(*runs) == [
        "weight_decay 0 and 0.01: 60 of 60 steps identical: this knob did nothing.",
        "weight_decay 0.1 and 0.2: 60 of 60 steps identical: this knob did nothing.",
        "weight_decay 0, 0.01, 0.1 and 0.2: identical up to step 30.",
    ]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trainer.eval_windows", 7),
        ("trainer.total_steps", 80),
        ("verdict.target_loss", 3.0),
        ("device.num_threads", 1),
        ("recorder.name", "dead"),
    ],
)
def test_what_does_not_act_on_training_is_no_knob(twin: Callable[..., Path], key: str, value: Any) -> None:
    assert notes(twin("a", "optimizer.weight_decay", 0.01), twin("b", key, value)) == []


def cut(run: Path, steps: int, status: str) -> Path:
    """The run as it would be, had it ended at `steps`."""
    rows = (run / "metrics.csv").read_text().splitlines(keepends=True)
    (run / "metrics.csv").write_text("".join(rows[: steps + 1]))
    metadata = json.loads((run / "metadata.json").read_text())
    evaluation = metadata["last_evaluation"] | {"step": 20}
    (run / "metadata.json").write_text(
        json.dumps(metadata | {"status": status, "step": steps, "last_evaluation": evaluation})
    )
    return run


def test_of_a_run_that_goes_on_only_the_shared_steps_are_known(twin: Callable[..., Path]) -> None:
    runs = [twin("a", "optimizer.eps", 1e-8, status="running"), twin("b", "optimizer.eps", 1e-7)]
    assert notes(*runs) == ["eps 1e-08 and 1e-07: identical in the first 60 steps that they share."]


def test_a_run_that_ended_early_shows_only_its_own_steps(twin: Callable[..., Path]) -> None:
    runs = [twin("a", "optimizer.weight_decay", 0), cut(twin("b", "optimizer.weight_decay", 0.01), 20, "failed")]
    expected = ["weight_decay 0 and 0.01: identical in the first 20 steps that they share."]
    assert notes(*runs) == notes(*reversed(runs)) == expected
    cut(runs[1], 20, "finished")  # of fewer total_steps
    assert notes(*runs) == expected


def test_a_run_that_ended_early_hides_nothing_of_the_others(twin: Callable[..., Path]) -> None:
    runs = [
        twin("a", "optimizer.weight_decay", 0),
        twin("b", "optimizer.weight_decay", 0.01, changed=51),
        twin("c", "optimizer.weight_decay", 0.02),
        cut(twin("d", "optimizer.weight_decay", 0.1), 40, "pruned"),
    ]
    assert notes(*runs) == [
        "weight_decay 0 and 0.02: 60 of 60 steps identical: this knob did nothing.",
        "weight_decay 0, 0.01 and 0.02: identical up to step 50.",
        "weight_decay 0, 0.01, 0.02 and 0.1: identical in the first 40 steps that they share.",
    ]
    cut(runs[1], 30, "failed")
    assert notes(runs[1], runs[3]) == ["weight_decay 0.01 and 0.1: identical in the first 30 steps that they share."]


def test_a_difference_in_what_runs_share_is_named_once(twin: Callable[..., Path]) -> None:
    runs = [
        twin("a", "optimizer.weight_decay", 0),
        twin("b", "optimizer.weight_decay", 0.01, changed=31),
        cut(twin("c", "optimizer.weight_decay", 0.1, changed=31), 40, "failed"),
    ]
    assert notes(*runs) == [
        "weight_decay 0.01 and 0.1: identical in the first 40 steps that they share.",
        "weight_decay 0, 0.01 and 0.1: identical up to step 30.",
    ]


def test_a_number_that_only_begins_like_another_is_a_difference(twin: Callable[..., Path]) -> None:
    runs = [twin("a", "optimizer.eps", 1e-8), cut(twin("b", "optimizer.eps", 1e-7), 40, "failed")]
    header, *rows = (runs[0] / "metrics.csv").read_text().splitlines()
    last = [column not in NO_OUTCOMES for column in header.split(",")][::-1].index(True) + 1
    fields = rows[39].split(",")
    fields[-last] += "5" if "." in fields[-last] else ".5"
    rows[39] = ",".join(fields)
    (runs[0] / "metrics.csv").write_text("\n".join([header, *rows, ""]))
    assert notes(*runs) == ["eps 1e-08 and 1e-07: identical up to step 39."]


def test_a_damaged_run_has_no_twin(twin: Callable[..., Path]) -> None:
    runs = [twin("a", "optimizer.eps", 1e-8), twin("b", "optimizer.eps", 1e-7)]
    with (runs[1] / "metrics.csv").open("a") as file:
        file.write("61,\0\n")
    assert notes(*runs) == []


def test_a_decay_that_bfloat16_rounds_away(tmp_path: Path) -> None:
    """A decay of lr x weight_decay = 1e-5 a step is far below half a cell, which is 2^-9 of a weight or more."""
    runs = []
    for decay in (0, 0.001):
        config = tiny_config("precision=bf16_pure", f"optimizer.weight_decay={decay}", "trainer.total_steps=20")
        train_only(config, tmp_path / str(decay))
        runs.append(tmp_path / str(decay))
    assert notes(*runs) == ["weight_decay 0 and 0.001: identical in the first 20 steps that they share."]
