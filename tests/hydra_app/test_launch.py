"""Trials of a search: without Hydra where its own launcher would only compose them anew and call the job."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from hydra import compose
from hydra.core.config_loader import ConfigLoader
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, open_dict

from marble_sweep import config as schema
from marble_sweep.hydra_app import launch, private
from marble_sweep.hydra_app.compose import CONF
from marble_sweep.hydra_app.composer import Composer
from marble_sweep.hydra_app.hydra_versions import composing_from
from marble_sweep.hydra_app.launch import TrialComposer


@pytest.fixture
def sweep_config() -> DictConfig:
    schema.register_schemas()
    with composing_from(CONF):
        return compose("config", [], return_hydra_config=True)


def test_hydras_own_launcher_is_recognised(sweep_config: DictConfig) -> None:
    assert private.launches_here(sweep_config)
    assert private.BASIC_LAUNCHER in Plugins.instance().class_name_to_class
    with open_dict(sweep_config):
        sweep_config.hydra.launcher._target_ = "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"
    assert not private.launches_here(sweep_config)


@pytest.fixture
def composer(sweep_config: DictConfig) -> TrialComposer:
    class Loader:
        """As Hydra's, for a test that composes without a command line."""

        def load_sweep_config(self, _: DictConfig, overrides: list[str]) -> DictConfig:
            with composing_from(CONF):
                return compose("config", overrides, return_hydra_config=True)

        def list_groups(self, _: str) -> list[str]:
            return []

    return TrialComposer(Composer(cast(ConfigLoader, Loader()), sweep_config), ["data=markov"])


def test_a_lone_trial_is_trained_with_all_threads(
    composer: TrialComposer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train_job(config: schema.Config, sweep_dir: Path, number: int, threads: int | None, _: object) -> Path | None:
        if number == 3:
            raise RuntimeError("its process died")
        assert (config.data.name, config.seed, threads) == ("markov", 5, None)
        return sweep_dir / str(number) if number < 2 else None

    monkeypatch.setattr(launch, "train_job", train_job)
    train = launch.lone_train(composer, tmp_path)
    assert train(1, {"seed": 5}) == tmp_path / "1"
    assert train(2, {"seed": 5}) == launch.NO_FURTHER_JOB
    assert train(3, {"seed": 5}) == "RuntimeError: its process died"


def test_a_lone_trial_hears_a_request_to_stop(
    composer: TrialComposer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train_job(*arguments: Callable[[], bool]) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        assert arguments[-1]()
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "train_job", train_job)
    with pytest.raises(KeyboardInterrupt):
        launch.lone_train(composer, tmp_path)(1, {})
