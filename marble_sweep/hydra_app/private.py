"""Every touch of what Hydra and OmegaConf do not promise to keep, each with its reason.

A new version of either is tried against this file first.
"""

import contextlib
import re
import traceback
from collections.abc import Iterator, Sequence

from hydra.core.utils import JobReturn, run_job
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

# Hydra's own grid, as `hydra/sweeper=basic`: that its jobs are known beforehand shows in nothing but its name.
BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
# Hydra's own launcher, which runs jobs in this process one after the other: it has no public name.
BASIC_LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"


@contextlib.contextmanager
def leaving_hydra() -> Iterator[None]:
    """Let an error out of a callback or a job: `raising_what_left` raises it again, outside Hydra's call.

    Of an Exception in a callback Hydra only warns, and goes on; of one in a job it prints the overrides. It lets
    SystemExit through, because that is no Exception.
    """
    try:
        yield
    except Exception as error:
        raise SystemExit(str(error)) from error


@contextlib.contextmanager
def raising_what_left() -> Iterator[None]:
    """Raise the error that left Hydra as a SystemExit."""
    try:
        yield
        return
    except SystemExit as ending:
        if not isinstance(ending.__cause__, Exception):
            raise
        error = ending.__cause__
    raise error


def is_raised_by_hydra(error: Exception) -> bool:
    """Whether the error was raised in Hydra's or OmegaConf's own code.

    For a config file that it cannot use, and for a number of thousands of digits, Hydra raises a plain ValueError.
    """
    *_, (last, _) = traceback.walk_tb(error.__traceback__)
    return str(last.f_globals.get("__name__")).partition(".")[0] in ("hydra", "omegaconf")


# --------------------------------------------------------------- jobs without another composition


def launches_here(config: DictConfig) -> bool:
    """Whether Hydra's own launcher would run the jobs."""
    return str(config.hydra.launcher._target_) == BASIC_LAUNCHER


def run_here(config: DictConfig, number: int, context: HydraContext, task: TaskFunction) -> JobReturn:
    """What Hydra's own launcher does with a job, for a config that is there: it would compose anew, which takes 0.1 s.

    Configuring the logging anew for every trial is left out too.
    """
    with open_dict(config):
        config.hydra.job.id = str(number)
        config.hydra.job.num = number
    return run_job(
        hydra_context=context,
        task_function=task,
        config=config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
        configure_logging=False,
    )


# --------------------------------------------------------------- what errors say
#
# Hydra's errors say in words only what is wrong with which key: these find it there. Where a version words a message
# in another way, they match nothing, and a user reads the message as it is.

DETAILS = ("object_type", "reference_type", "value:", "full_key:", "Error merging override")
GRAMMAR_NOISE = ("LexerNoViableAlt", "Error ", "^")


def message_lines(text: str) -> list[str]:
    """The lines that say what is wrong, without those that OmegaConf adds about types and Hydra about the override."""
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith(DETAILS)]


def full_key(text: str) -> str | None:
    """The key that OmegaConf names below its message; an error that Hydra wraps has it in no attribute."""
    match = re.search(r"^\s*full_key: (\S+)", text, re.MULTILINE)
    return match[1] if match else None


def swept_override(text: str) -> str | None:
    """The override that sweeps, where one run was asked for."""
    match = re.search(r"(?:Ambiguous value for argument|Sweep parameters) '(.*)'(?:\n| requires --multirun)", text)
    return match[1] if match else None


def unknown_key(text: str) -> str | None:
    """The key that is not in the config; of several in braces, the one it is."""
    match = re.search(r"Could not override '([^']+)'", text)
    inner = full_key(text)
    return inner if match and inner and inner.startswith(f"{match[1]}.") else match[1] if match else None


def nameless_override(text: str) -> str | None:
    """The override that has no key before its `=`."""
    match = re.search(r"Could not override ''.*\n?.*use \+(=.*)", text)
    return match[1] if match else None


def unknown_option(text: str) -> tuple[str, str, list[str]] | None:
    """The group, the option that it does not have, and those it has."""
    match = re.search(r"Could not find '(.+)/(.*)'\s+Available options in .*:\n((?:\t.*\n?)+)", text)
    return (match[1], match[2], match[3].split()) if match else None


def doubled_key(text: str) -> str | None:
    """The key that `+` adds though it is there."""
    match = re.search(r"An item is already at '([^']+)'|Multiple values for ([^ ]+)\.", text)
    return (match[1] or match[2]) if match else None


def forced_option(text: str) -> str | None:
    """The choice of an option that begins with `++`."""
    match = re.search(r"force-add of config groups is not supported: '\++(.*)'", text)
    return match[1] if match else None


def deleted_key(text: str) -> str | None:
    """The key that `~` would take away."""
    match = re.search(r"Error merging override ~([^=\n]+)", text)
    return match[1] if match else None


def unfit_value(text: str) -> str | None:
    """The value that is of the wrong type, where OmegaConf repeats it."""
    match = re.search(r"Value '(.*)' (?:of type|is not a)", text)
    return match[1] if match else None


def overriding_value(key: str, text: str) -> str | None:
    """The value as the override of this key has it."""
    match = re.search(rf"Error merging override \+*{re.escape(key)}=(.*)", text)
    return match[1] if match else None


def object_type(text: str) -> str | None:
    """The name of the schema that a wrong value's key is in."""
    match = re.search(r"^\s*object_type=(\w+)", text, re.MULTILINE)
    return match[1] if match else None


def grammar_reason(lines: Sequence[str]) -> str | None:
    """Why Hydra's grammar has no reading for an override, in the first line that is not about its lexer."""
    return next((line for line in lines if not line.startswith(GRAMMAR_NOISE)), None)
