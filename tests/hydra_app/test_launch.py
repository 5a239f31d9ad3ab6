"""Trials of a search: composed by us where Hydra's own launcher would only compose them anew."""

import pytest
from hydra import compose

from marble_sweep import config as schema
from marble_sweep.hydra_app import private
from marble_sweep.hydra_app.compose import CONF
from marble_sweep.hydra_app.hydra_versions import composing_from


@pytest.mark.parametrize(("launcher", "expected"), [("basic", True), ("joblib", False)])
def test_hydras_own_launcher_is_recognised_by_its_config(launcher: str, expected: bool) -> None:
    """A launcher that was not would compose every trial anew, a tenth of a second each."""
    schema.register_schemas()
    with composing_from(CONF):
        config = compose("config", [f"hydra/launcher={launcher}"], return_hydra_config=True)
    assert private.launches_here(config) == expected
