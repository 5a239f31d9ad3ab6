"""Trials of a search: composed by us where Hydra's own launcher would only compose them anew."""

import pytest
from hydra import compose
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, open_dict

from marble_sweep import config as schema
from marble_sweep.hydra_app import private
from marble_sweep.hydra_app.compose import CONF
from marble_sweep.hydra_app.hydra_versions import composing_from


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
