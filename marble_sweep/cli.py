"""Hydra's part: compose, check, find the run's directory, and turn errors into one line each."""

import contextlib
import copy
import difflib
import os
import re
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from marble_sweep import config as schema

PACKAGE = Path(__file__).resolve().parent
# In a checkout conf/ lies beside the package; a wheel carries it inside.
CONF = next(path for path in (PACKAGE.parent / "conf", PACKAGE / "conf") if path.is_dir())

WANTS_TRACEBACK = "HYDRA_FULL_ERROR" in os.environ
EXIT_ERROR = 2
EXIT_INTERRUPTED = 130


def run_directory(resume: str | None) -> str:
    """A new directory under outputs/, or the one to resume in."""
    return resume or f"outputs/{datetime.now():%Y-%m-%d/%H-%M-%S-%f}"


def option_groups() -> str:
    """The options of every group in conf/, a line a group, for --help."""
    groups = sorted(path for path in CONF.iterdir() if path.is_dir() and path.name != "hydra")
    return "\n".join(f"{each.name}: {', '.join(sorted(path.stem for path in each.glob('*.yaml')))}" for each in groups)


class CheckFirst(Callback):
    """Checks a run's whole config before Hydra makes its directory."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        with exiting_on_errors():
            settings = schema.resolve(without_hydra(config))
            if settings.resume is None:
                return
            others = [each for each in config.hydra.overrides.task if not each.startswith("resume=")]
            alone = f"alone: the run's own config is used (drop {', '.join(others)})"
            schema.require(not others, "resume", settings.resume, alone)
            found = (Path(settings.resume) / "config.yaml").is_file()
            schema.require(found, "resume", settings.resume, "a run directory, one with a config.yaml")


def without_hydra(config: DictConfig) -> DictConfig:
    """A run's own keys, leaving out Hydra's."""
    own = copy.deepcopy(config)
    with open_dict(own):
        del own["hydra"]
    return own


def job(config: DictConfig) -> None:
    """One run, in the directory that Hydra made for it."""
    with exiting_on_errors():
        from marble_sweep.run import run

        directory = Path(HydraConfig.get().runtime.output_dir)
        resumed = config.resume is not None
        settings = schema.load(directory / "config.yaml") if resumed else schema.resolve(config)
        status = run(settings, directory, resume=resumed)
    if status == "interrupted":
        raise SystemExit(EXIT_INTERRUPTED)


@contextlib.contextmanager
def exiting_on_errors() -> Iterator[None]:
    """Turn what a user can mend into one line and an exit code; anything else is a bug, with its traceback."""
    try:
        yield
    except (ValueError, OSError, HydraException, OmegaConfBaseException) as error:
        if WANTS_TRACEBACK:
            raise
        print(f"marble_sweep: {one_line(error)}", file=sys.stderr)
        raise SystemExit(EXIT_ERROR) from None


def one_line(error: Exception) -> str:
    """Say in a line what is wrong: Hydra's and OmegaConf's own errors take several."""
    text = f"{error}\n{error.__cause__ or ''}" if isinstance(error, HydraException) else str(error)
    if key := re.search(r"Could not override '([^']+)'", text):
        return f"{key[1]}: no such key{hint(key[1])}"
    if option := re.search(r"Could not find '(.+)/(.+)'\s+Available options in .*:\n((?:\t.*\n?)+)", text):
        return f"{option[1]} = {option[2]}: must be one of {', '.join(option[3].split())}"
    lines = [line.strip() for line in text.splitlines()]
    message = " ".join(line for line in lines if line and not line.startswith(("object_type", "reference_type")))
    if value := re.search(r"(Value .*?) full_key: (\S+)", message):
        return f"{value[2]}: {value[1]}"
    return message


def hint(key: str) -> str:
    """Where an unknown key is known, or else the known one most like it."""
    owners: dict[str, list[str]] = {}
    for path in paths(OmegaConf.structured(schema.Config), None):
        owners[path] = []
    for group, options in schema.SCHEMAS.items():
        owners[group] = []
        for option, base in options.items():
            for path in paths(OmegaConf.structured(base), group):
                owners.setdefault(path, []).append(f"{group}={option}")
    if key in owners:
        return f" here; it belongs to {' and '.join(owners[key])}"
    return f"; the nearest known one is {difflib.get_close_matches(key, owners, n=1, cutoff=0.0)[0]}"


def paths(node: DictConfig, prefix: str | None) -> list[str]:
    """Every key below a node, in full, and the node's own."""
    found = [prefix] if prefix else []
    for key in map(str, node):
        path = f"{prefix}.{key}" if prefix else key
        child = node._get_node(key)
        found += paths(child, path) if isinstance(child, DictConfig) and not child._is_missing() else [path]
    return found


def main() -> None:
    """Run the command line. Exits with 0 when a run finished (or diverged: that is an outcome too)."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # lets Hydra's errors reach exiting_on_errors
    schema.register_schemas()
    OmegaConf.register_new_resolver("run_dir", run_directory, use_cache=True, replace=True)
    OmegaConf.register_new_resolver("option_groups", option_groups, replace=True)
    with exiting_on_errors():
        hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(job)()
