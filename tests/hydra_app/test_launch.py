"""Trials of a search: composed by us where Hydra's own launcher would only compose them anew."""

import importlib.util
from types import ModuleType
from typing import cast

import pytest
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher

from marble_sweep.hydra_app import private


def imported_anew(name: str) -> ModuleType:
    """As Hydra imports a plugin: beside the module that is there."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_hydras_own_launcher_is_recognised_however_often_it_is_imported() -> None:
    """A launcher that was not would compose every trial anew, a tenth of a second each."""
    module, _, name = private.BASIC_LAUNCHER.rpartition(".")
    for launcher in (getattr(imported_anew(module), name), getattr(imported_anew(module), name)):
        assert private.launches_here(launcher())
    loaded = Plugins.instance().class_name_to_class[private.BASIC_LAUNCHER]
    assert private.launches_here(cast(Launcher, loaded()))


@pytest.mark.parametrize("module", ["somewhere", "hydra._internal.core_plugins.basic_launcher"])
def test_a_launcher_that_is_made_of_it_is_another(module: str) -> None:
    base = Plugins.instance().class_name_to_class[private.BASIC_LAUNCHER]
    other = type("Other", (base,), {"__module__": module})
    assert not private.launches_here(other())
