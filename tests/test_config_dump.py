"""The way back from a dumped config."""

from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
from helpers import MANDATORY, compose_config
from omegaconf import OmegaConf

from marble_sweep.checks import CheckError
from marble_sweep.config import ADDED, SCHEMAS, Config, dump, load
from marble_sweep.groups import AdamWConfig, PydocsConfig
from marble_sweep.hydra_app.compose import CONF
from marble_sweep.runs.state import identity
from marble_sweep.sample import read_config

KINDS = sorted((path.parent.name, path.stem) for path in CONF.glob("*/*.yaml") if path.parent.name in SCHEMAS)
EXPERIMENTS = sorted(path.stem for path in CONF.glob("experiment/*.yaml"))


def dumped(config: Config, directory: Path) -> Path:
    """As a run leaves it in its directory."""
    path = directory / "config.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
    return path


@pytest.mark.parametrize(("group", "option"), KINDS, ids="=".join)
def test_a_dumped_config_loads_as_it_was(tmp_path: Path, group: str, option: str) -> None:
    config = compose_config(
        f"{group}={option}", *MANDATORY.get(option, []), "seed=7", "notes='a: b # c'", "model.num_heads=8"
    )
    again = load(dumped(config, tmp_path))
    assert again == config
    assert type(getattr(again, group)) is type(getattr(config, group))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_dumped_experiment_loads_as_it_was(tmp_path: Path, experiment: str) -> None:
    config = compose_config(f"experiment={experiment}", "trainer.batch_size=3", "data.val_fraction=0.25")
    assert load(dumped(config, tmp_path)) == config


def test_lists_and_what_differs_from_every_default_survive(tmp_path: Path) -> None:
    config = compose_config(
        *("data.packages=[numpy]", "optimizer.betas=[0.8,0.95]", "optimizer.eps=1e-6", "device.num_threads=2"),
        *(
            "model.mlp_ratio=2.5",
            "verdict.direction_lag=7",
            "experiment_name=mine",
            "precision=mixed",
            "model.name=odd",
        ),
    )
    again = load(dumped(config, tmp_path))
    assert again == config
    assert isinstance(again.data, PydocsConfig)
    assert isinstance(again.optimizer, AdamWConfig)
    assert (again.data.packages, list(again.optimizer.betas), again.model.name) == (["numpy"], [0.8, 0.95], "odd")


@pytest.mark.parametrize("content", ["- a", "a: [", "model: {}", "optimizer: nope"])
def test_a_damaged_config_is_named_once(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.yaml").write_text(content)
    for read in (lambda: load(tmp_path / "config.yaml"), lambda: read_config(tmp_path)):
        with pytest.raises(CheckError) as raised:
            read()
        assert str(raised.value).startswith(f"{tmp_path / 'config.yaml'}: ")
        assert str(raised.value).count("config.yaml") == 1


def test_a_dumped_config_that_was_tampered_with_is_checked_again(tmp_path: Path) -> None:
    path = dumped(compose_config(), tmp_path)
    path.write_text(path.read_text().replace("lr: 0.0003", "lr: -1.0"))
    with pytest.raises(ValueError, match=r"optimizer.lr = -1.0: must be"):
        load(path)
    path.write_text(path.read_text().replace("lr: -1.0", "lr: 0.1\n  rate: 3"))
    with pytest.raises(CheckError, match=r"config.yaml: optimizer.rate: Key 'rate' not in 'AdamWConfig'$"):
        load(path)


Names = dict[str, "Names"]  # of fields, and of theirs


def test_a_dump_has_every_field() -> None:
    config = compose_config()
    dump = OmegaConf.to_container(OmegaConf.structured(config))

    def names(value: object) -> Names:
        return {each.name: names(getattr(value, each.name)) for each in fields(value)} if is_dataclass(value) else {}

    def keys(value: object) -> Names:
        return {key: keys(each) for key, each in value.items()} if isinstance(value, dict) else {}

    assert keys(dump) == names(config)


def test_what_is_dumped_is_the_config_as_it_is_now() -> None:
    config = compose_config()
    first = dump(config)
    config.notes = "changed in place"
    assert "notes: changed in place" in dump(config)
    config.notes = ""
    assert dump(config) == first


def test_settings_that_came_later_are_written_only_where_they_are_not_at_their_default() -> None:
    """A sweep knows its jobs by the text, also those that an earlier version trained; a state knows them all."""
    added = {key.partition(".")[2] for key in ADDED}
    config = compose_config("data=tokens", "data.path=ids.bin")
    assert not any(f"{name}:" in dump(config) for name in added)
    assert all(f"{name}:" in dump(config, whole=True) for name in added)
    assert "recorder" not in dump(config)
    assert (identity(config)["model.tied"], identity(config)["recorder.name"]) == (True, "none")
    changed = compose_config("model.tied=false", "optimizer.grad_clip=1")
    assert "tied: false" in dump(changed)
    assert "grad_clip: 1.0" in dump(changed)
    assert "embedding_std" not in dump(changed)
