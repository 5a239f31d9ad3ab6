"""The command line that a process was started with, taken from its config for a command that goes on."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from marble_sweep.commands import CONFIG_NAME, override, shell_command
from marble_sweep.hydra_app.compose import CONF


def rerun_command(config: DictConfig, sweep_dir: Path) -> str:
    """The command that goes on with this sweep."""
    read = config_words(config)
    given = [*as_written(config.hydra.overrides.task), *as_written(config.hydra.overrides.hydra)]
    set_here = ("hydra.mode=", "hydra.sweep.dir=")
    kept = [word for word in given if word not in read and not word.lstrip("+").startswith(set_here)]
    return shell_command(["--multirun", *read, *kept, override("hydra.sweep.dir", sweep_dir)])


def config_words(config: DictConfig) -> list[str]:
    """The words that make Hydra read the same files again: its flags, and its search path where that was given."""
    sources = {source["provider"]: source for source in as_written(config.hydra.runtime.config_sources)}
    words = []
    if (path := sources["main"]["path"]) != str(CONF):
        words += ["--config-path", f"pkg://{path}" if sources["main"]["schema"] == "pkg" else path]
    if (name := config.hydra.job.config_name) != CONFIG_NAME:
        words += ["--config-name", name]
    if "command-line" in sources:
        words += ["--config-dir", sources["command-line"]["path"]]
    given = as_written(config.hydra.overrides.hydra)
    return words + [word for word in given if word.lstrip("+").startswith("hydra.searchpath=")]


def as_written(node: Any) -> Any:
    """A part of a config in plain dicts and lists. `${` in it is left alone: in an override it is no more than text."""
    return OmegaConf.to_container(node, resolve=False)
