"""Configs of jobs put together quickly are those that Hydra composes, in every kind of override."""

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.marble_sweeper.grid_sweeper import GridSweeper
from marble_sweep import config as schema
from marble_sweep.hydra_app.callbacks import fix_directory
from marble_sweep.hydra_app.compose import CONF
from marble_sweep.hydra_app.composer import Composer, without_hydra
from marble_sweep.hydra_app.hydra_versions import composing_from


class CountingLoader:
    """Hydra's own loader, and how often it composed a config."""

    def __init__(self, loader: ConfigLoader) -> None:
        self.loader = loader
        self.composed = 0

    def load_sweep_config(self, master: DictConfig, overrides: list[str]) -> DictConfig:
        self.composed += 1
        return self.loader.load_sweep_config(master, overrides)

    def list_groups(self, parent: str) -> list[str]:
        return self.loader.list_groups(parent)


@pytest.fixture(scope="module")
def loader() -> Iterator[ConfigLoader]:
    schema.register_schemas()
    with composing_from(CONF):
        yield GlobalHydra.instance().config_loader()


@pytest.fixture(scope="module")
def master(loader: ConfigLoader) -> DictConfig:
    return loader.load_configuration("config", ["hydra.sweep.dir=somewhere"], RunMode.MULTIRUN)


@pytest.fixture(scope="module")
def counting(loader: ConfigLoader) -> CountingLoader:
    return CountingLoader(loader)


@pytest.fixture(scope="module")  # what one test leaves behind must not change the next
def composer(counting: CountingLoader, master: DictConfig) -> Composer:
    return Composer(counting, master)  # type: ignore[arg-type]  # all of a loader that a composer uses


JOBS = [
    ["model.num_layers=3", "optimizer.lr=1e-2", "seed=7"],
    ["model.num_layers=0", "optimizer.lr=1", "seed=8"],  # an int for a float
    ["model.num_layers='2'", "optimizer.lr=0.5", "seed=9"],  # text that is a number
    ["model=2L64D", "model.hidden_dim=32"],
    ["model.hidden_dim=32", "model=2L64D"],
    ["experiment=quick", "optimizer=muon", "optimizer.momentum=0.5", "precision=fp32"],
    ["model.num_heads=8"],
    ["notes='a=b, c: d'", "experiment_name=mine"],
    ["notes=null_and_void", "sweep.max_failures=null"],
    ["notes=true", "model.name=12"],
    ["notes=${model.name}", "model.num_layers=1"],
    [r"notes='\${model.name}'", "model.num_layers=1"],
    ["optimizer.betas=[0.5,0.75]", "optimizer.lr=0.25"],
    ["optimizer.betas.1=0.5"],
    ["optimizer={lr:0.25,weight_decay:0.5}", "optimizer.lr=0.125"],
    ["optimizer.lr=0.125", "optimizer={lr:0.25,weight_decay:0.5}"],
    ["+optimizer.lr=0.125", "++optimizer.eps=1e-6"],
    ["~notes", "seed=3"],
    ["data=text", "data.path=a.txt"],
    ["data=text", "data.path='???'"],
    ["data=text"],
    ["model.num_layers=two"],
    ["optimizer.lr=[1]"],
    ["optimizer.momentum=0.5"],
    ["model=9L9D"],
    ["seed=1,2"],
]


@pytest.mark.parametrize("job", JOBS, ids=" ".join)
def test_a_job_is_what_hydra_composes(
    job: list[str], composer: Composer, loader: ConfigLoader, master: DictConfig
) -> None:
    def outcome(resolve: Callable[[list[str]], schema.Config]) -> schema.Config | tuple[type, str]:
        try:
            return resolve(job)
        except (ValueError, HydraException) as error:
            return type(error), str(error)

    expected = outcome(lambda words: schema.resolve(without_hydra(loader.load_sweep_config(master, words))))
    assert outcome(composer.resolve) == expected
    if isinstance(expected, schema.Config):
        assert schema.dump(composer.resolve(job)) == schema.dump(expected)
        whole = composer.compose(job)
        assert schema.resolve(without_hydra(whole)) == expected
        assert whole.hydra.overrides.task == job
        assert whole.hydra.sweep.dir == "somewhere"


def test_every_job_has_the_directory_of_its_sweep(loader: ConfigLoader) -> None:
    """The default holds the time of day: whoever composes a job later, in whichever process, must not ask again."""
    master = loader.load_configuration("config", [], RunMode.MULTIRUN)
    fix_directory(master, "sweep")
    job = OmegaConf.to_container(loader.load_sweep_config(master, ["seed=1"]).hydra.sweep)
    assert isinstance(job, dict)
    assert job["dir"] == master.hydra.sweep.dir
    assert job["dir"].startswith("multirun/2")


def test_names_follow_the_numbers_of_each_job(composer: Composer) -> None:
    for layers in (2, 0, 3):
        config = composer.resolve([f"model.num_layers={layers}"])
        assert (config.model.name, config.experiment_name) == (f"{layers}L128D", f"{layers}L128D")


def test_hydra_composes_once_for_each_choice_of_options(counting: CountingLoader, composer: Composer) -> None:
    """That takes 0.1 s, and there are three hundred jobs."""
    before = counting.composed
    for optimizer in ("adamw", "sgd"):
        for layers in range(10):
            for seed in range(15):
                composer.resolve([f"optimizer={optimizer}", f"model.num_layers={layers}", f"seed={seed}"])
    assert counting.composed - before <= 2


def test_the_sweeper_composes_none_of_them_again(master: DictConfig) -> None:
    assert master.hydra.sweeper._target_.endswith(".GridSweeper")
    sweeper = GridSweeper.__new__(GridSweeper)  # without a config: Hydra's own method would ask for one
    sweeper.validate_batch_is_legal([["seed=-1"]])


def test_a_size_that_cannot_be_costs_no_composition(counting: CountingLoader, composer: Composer) -> None:
    composer.resolve(["model.num_heads=8", "model.hidden_dim=64"])
    before = counting.composed
    for width in range(65, 72):
        with pytest.raises(ValueError, match=f"must be null or a divisor of model.hidden_dim = {width}"):
            composer.resolve(["model.num_heads=8", f"model.hidden_dim={width}"])
    assert counting.composed == before


def test_only_our_own_information_is_shown() -> None:
    """Other packages inform about themselves, torch as it ends for one; a terminal shows what they warn of."""
    code = f"""
import logging.config, yaml
logging.config.dictConfig(yaml.safe_load(open({str(CONF / "hydra/job_logging/console.yaml")!r})))
for name in ("torch._subclasses", "marble_sweep.run"):
    logging.getLogger(name).info("informs")
    logging.getLogger(name).warning("warns")
"""
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stderr
    assert said.splitlines() == ["warns", "informs", "warns"]
