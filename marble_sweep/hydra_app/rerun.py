"""The command line that a process was started with, taken from its config for a command that goes on."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from marble_sweep.commands import CONFIG_NAME, override, shell_command
from marble_sweep.hydra_app.compose import CONF


def rerun_command(config: DictConfig, sweep_dir: Path) -> str:
    """The command that goes on with this sweep."""
    read = config_arguments(config)
    given = [*as_written(config.hydra.overrides.task), *as_written(config.hydra.overrides.hydra)]
    set_here = ("hydra.mode=", "hydra.sweep.dir=")
    kept = [argument for argument in given if argument not in read and not argument.lstrip("+").startswith(set_here)]
    return shell_command(["--multirun", *read, *kept, override("hydra.sweep.dir", sweep_dir)])


def config_arguments(config: DictConfig) -> list[str]:
    """The arguments that make Hydra read the same files again: its flags, and its search path where that was given."""
    sources = {source["provider"]: source for source in as_written(config.hydra.runtime.config_sources)}
    arguments = []
    if (path := sources["main"]["path"]) != str(CONF):
        arguments += ["--config-path", f"pkg://{path}" if sources["main"]["schema"] == "pkg" else path]
    if (name := config.hydra.job.config_name) != CONFIG_NAME:
        arguments += ["--config-name", name]
    if "command-line" in sources:
        arguments += ["--config-dir", sources["command-line"]["path"]]
    given = as_written(config.hydra.overrides.hydra)
    return arguments + [argument for argument in given if argument.lstrip("+").startswith("hydra.searchpath=")]


def as_written(node: Any) -> Any:
    """A part of a config in plain dicts and lists. `${` in it is left alone: in an override it is no more than text."""
    return OmegaConf.to_container(node, resolve=False)
