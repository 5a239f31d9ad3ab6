"""Workers of one study in directories of their own: they choose the same products for a shape."""

import json
from pathlib import Path

import optuna
import pytest
from helpers import tiny_config
from optuna.storages import InMemoryStorage
from optuna.study import Study

from marble_sweep.run import run
from marble_sweep.runs import layout
from marble_sweep.runs.status import read_metadata
from marble_sweep.searches.study_products import CHOICES, StudyProducts
from marble_sweep.searches.trial_watch import TrialWatch, device_settings

HEAD, MATMUL = "head-4x64-bf16.json", "matmul-4x1x16x8x16-bf16.json"


@pytest.fixture
def study() -> Study:
    return optuna.create_study(storage=InMemoryStorage())


def choose(sweep_dir: Path, name: str, choice: str) -> None:
    (sweep_dir / layout.PRODUCTS).mkdir(parents=True, exist_ok=True)
    (sweep_dir / layout.PRODUCTS / name).write_text(json.dumps({"choice": choice}))


def chosen(sweep_dir: Path) -> dict[str, str]:
    return {path.name: json.loads(path.read_text())["choice"] for path in (sweep_dir / layout.PRODUCTS).iterdir()}


def test_a_worker_takes_what_another_ones_job_chose(study: Study, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    first = StudyProducts(study.ask(), here)
    first.take()
    choose(here, HEAD, "fused")
    first.give()
    choose(here, MATMUL, "float32")
    first.give()
    choose(there, MATMUL, "bfloat16")  # at the same time
    second = StudyProducts(study.ask(), there)
    second.take()
    assert chosen(there) == {HEAD: "fused", MATMUL: "bfloat16"}
    second.give()
    assert CHOICES not in study.trials[1].user_attrs, "the study knows both"
    third = StudyProducts(study.ask(), tmp_path / "third")
    third.take()
    assert chosen(tmp_path / "third") == {HEAD: "fused", MATMUL: "float32"}, "the earliest trial's"


def test_the_earliest_of_several_choices_counts(study: Study, tmp_path: Path) -> None:
    early, late = study.ask(), study.ask()
    for trial, choice in ((late, "fused"), (early, "float32")):
        trial.set_user_attr(CHOICES, {HEAD: {"choice": choice}})
    StudyProducts(study.ask(), tmp_path).take()
    assert chosen(tmp_path) == {HEAD: "float32"}


@pytest.mark.parametrize("name", ["../config.json", "head-4x64-bf16.json.exe", "/tmp/head-1x1-bf16.json", "head.json"])
def test_a_study_writes_no_other_file(name: str, study: Study, tmp_path: Path) -> None:
    study.ask().set_user_attr(CHOICES, {name: {"choice": "fused"}})
    StudyProducts(study.ask(), tmp_path / "sweep").take()
    assert not [*tmp_path.rglob("*.json")]


def test_a_trial_that_was_ended_as_stale_gives_nothing(study: Study, tmp_path: Path) -> None:
    trial = study.ask()
    study.tell(trial, state=optuna.trial.TrialState.FAIL)
    choose(tmp_path, HEAD, "fused")
    StudyProducts(trial, tmp_path).give()
    assert study.trials[0].user_attrs == {}


@pytest.mark.parametrize("storage", ["null", "shared.log"])
def test_a_watched_trial_takes_and_gives_where_the_study_is_shared(storage: str, study: Study, tmp_path: Path) -> None:
    study.ask().set_user_attr(CHOICES, {HEAD: {"choice": "fused"}})
    trial, config = study.ask(), tiny_config("certify.stop=true", f"search.storage={storage}")
    (tmp_path / "1").mkdir()
    with TrialWatch(trial, config, tmp_path / "1", 60.0, lambda _: None) as watch:
        choose(tmp_path, MATMUL, "float32")
        watch.report_evaluations(tmp_path / "1")
    is_shared = storage != "null"
    assert (tmp_path / layout.PRODUCTS / HEAD).exists() == is_shared
    assert study.trials[1].user_attrs.get(CHOICES) == ({MATMUL: {"choice": "float32"}} if is_shared else None)


def test_a_trials_result_has_what_its_numbers_depend_on(study: Study, tmp_path: Path) -> None:
    directory, device = tmp_path / "0", ("device=cpu", "device.head=float32", "device.num_threads=3")
    config = tiny_config("certify.stop=true", *device)
    run(config, directory, show=False)
    used = TrialWatch(study.ask(), config, directory, 60.0, lambda _: None).result(directory).device
    assert used == {"matmul": read_metadata(directory)["products"]["matmul"], "head": "float32", "num_threads": 3}


def test_a_gpus_numbers_depend_on_no_products() -> None:
    assert device_settings({"products": None, "machine": {"num_threads": 3}}) is None
    assert device_settings({}) is None, "it crashed before it trained"
