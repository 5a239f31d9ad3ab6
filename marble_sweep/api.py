"""marble_sweep in Python, for notebooks and scripts; `import marble_sweep as ms` has these names.

Nothing here changes the process for good: no environment variable, no thread or memory setting, and no signal
handler outlives a call.
"""

import contextlib
import logging
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
from tokenizers import Tokenizer
from torch import Tensor

from marble_sweep.census.census import Census, take_census
from marble_sweep.checks import CheckError, require
from marble_sweep.commands import override
from marble_sweep.config import Config
from marble_sweep.groups import TokensConfig
from marble_sweep.hydra_app.compose import compose_config
from marble_sweep.loaded_run import Run
from marble_sweep.report.pairs import compare_pairs as test_pairs
from marble_sweep.report.rows import group_rows, repeats
from marble_sweep.report.summary import compare_directories, compare_runs
from marble_sweep.run import run as run_in_directory
from marble_sweep.runs import layout
from marble_sweep.runs.damage import read_json
from marble_sweep.runs.discovery import find_runs
from marble_sweep.runs.run import Run as RunFiles
from marble_sweep.runs.status import RunStatus
from marble_sweep.runs.tensors import write_tensors

EXIT_REFUSED = 2  # of the command line: a setting that cannot be


def compose(overrides: Sequence[str] = ()) -> Config:
    """The checked config that a command line of these overrides would run.

    Raises CheckError, in one line, for what cannot be.

    >>> import marble_sweep as ms
    >>> ms.compose(["model=2L64D", "optimizer.lr=1e-3"]).model
    ModelConfig(name='2L64D', num_layers=2, hidden_dim=64, num_heads=None, mlp_ratio=4.0, tied=True, embedding_std=None)
    """
    return compose_config(overrides)


def train(
    config: Config | Sequence[str] = (),
    directory: str | Path | None = None,
    *,
    tokens: Tensor | None = None,
    resume: bool = False,
) -> Run:
    """Train one model in this process and return its run.

    `config` is a Config or a list of overrides; `directory` a new one (a timestamped one under outputs/ unless
    given). With `resume` the run in `directory` is continued, with its own config. `tokens` (num_tokens,) are ids
    of one's own to train on instead of the config's data: the last `data.val_fraction` of them are held out, and
    ids below `data.vocab_size` that do not occur are dead. They are kept in the directory as tokens.safetensors.

    Raises CheckError for what cannot be trained. KeyboardInterrupt saves the state first, as Ctrl-C does.

    >>> import marble_sweep as ms
    >>> run = ms.train(["experiment=quick", "trainer.total_steps=200"])  # doctest: +SKIP
    """
    if resume:
        require(directory is not None, "directory", directory, "given with resume=True")
        require(not config and tokens is None, "config", config, "left out with resume=True: the run has its own")
        run_dir = Path(str(directory))
        run_config = Run(run_dir).config
    else:
        run_dir = _directory_or_new(directory, layout.OUTPUTS)
        run_config = config if isinstance(config, Config) else compose_config(config)
        if tokens is not None:
            run_config = _on_tokens(run_config, tokens, run_dir)
    with _logging_here():
        status = run_in_directory(run_config, run_dir, resume=resume)
    if status == RunStatus.INTERRUPTED:
        raise KeyboardInterrupt
    return Run(run_dir)


def load_run(path: str | Path) -> Run:
    """The run in a directory, finished or not. Raises CheckError where there is none.

    >>> import marble_sweep as ms
    >>> ms.load_run("outputs/nowhere")
    Traceback (most recent call last):
    marble_sweep.checks.CheckError: path = outputs/nowhere: must be a run directory, one with a config.yaml
    """
    return Run(path)


def load_runs(*paths: str | Path) -> pd.DataFrame:
    """A row a run at or below `paths`, with the columns of `python -m marble_sweep.compare`.

    Raises CheckError for a path that holds no run.
    """
    return compare_directories(find_runs([Path(path) for path in paths]))


def compare_pairs(*paths: str | Path) -> pd.DataFrame:
    """Whether the settings of the runs at or below `paths` differ, a row a pair, as `compare --pairs` tests them.

    Two paths of single runs compare these two. `difference` is the held-out loss of `setting` - that of `other`, in
    nats per token; `p_corrected` is for all pairs. `attrs["notes"]` says how it was tested and what was left out.

    Raises CheckError for a path that holds no run, and where no pair can be tested.

    >>> import marble_sweep as ms
    >>> ms.compare_pairs("multirun/lr")  # doctest: +SKIP
    """
    comparison = compare_runs([RunFiles.read(path) for path in find_runs([Path(path) for path in paths])])
    pairs = test_pairs(comparison, group_rows(comparison.rows, repeats(comparison)))
    require(bool(pairs.rows), "paths", ", ".join(map(str, paths)), f"runs to compare. {' '.join(pairs.notes)}")
    frame = pd.DataFrame(pairs.rows)
    frame.attrs["notes"] = pairs.notes
    return frame


def inspect(
    path: str | Path,
    tokenizer: str | Path | Tokenizer | None = None,
    *,
    step: int | None = None,
    as_bfloat16: bool = False,
) -> Census:
    """The census of anybody's embedding: black holes, suspected dead rows, distances in lattice cells, as DataFrames.

    `path` is a .safetensors file, the .index.json of a sharded model, a folder that holds them, or a run directory,
    with `:tensor` behind it where the embedding cannot be told by its name. Rows are read in chunks, however large the
    file. `tokenizer` is a tokenizer.json, or the tokenizer; the one beside the file if it is not given. `step` chooses
    a checkpoint of a run; with `as_bfloat16` float32 weights are rounded first, as a run's metrics see them.

    Raises CheckError, in one line, for what cannot be read.

    >>> import marble_sweep as ms
    >>> census = ms.inspect("model.safetensors")  # doctest: +SKIP
    >>> census.black_holes[["hole", "size"]]  # doctest: +SKIP
    """
    return take_census(path, tokenizer, step=step, as_bfloat16=as_bfloat16)


@dataclass(frozen=True)
class Sweep:
    """What a sweep has left."""

    directory: Path
    runs: pd.DataFrame  # a row a run, as load_runs has them


@dataclass(frozen=True)
class Search:
    """What a search for the smallest model has left."""

    directory: Path
    runs: pd.DataFrame  # a row a trial
    summary: dict[str, Any]  # search.json

    @property
    def answer(self) -> dict[str, Any] | None:
        """The smallest certified model: its size, params, margin and proof; None where nothing certified.

        Of several thresholds that for the first one; `answers` has all.
        """
        return next(iter(self.answers.values()))

    @property
    def answers(self) -> dict[str, dict[str, Any] | None]:
        """The smallest certified model for every threshold."""
        return {threshold["threshold"]: threshold["answer"] for threshold in self.summary["thresholds"]}

    def __str__(self) -> str:
        return "\n".join(self.summary["summary_lines"])


def sweep(overrides: Sequence[str], grid: Mapping[str, Sequence[Any]], directory: str | Path | None = None) -> Sweep:
    """Train every combination of the grid, each in a process of its own, as the command line does with --multirun.

    `overrides` are shared by all jobs; hydra/launcher=… among them chooses a launcher. A directory that holds a
    part of the sweep is continued. Raises CheckError for what cannot be; KeyboardInterrupt saves all states first.

    >>> import marble_sweep as ms
    >>> ms.sweep(["experiment=quick"], {"model.num_layers": [2, 4, 6]}).runs  # doctest: +SKIP
    """
    swept = [f"{key}={','.join(map(_value, values))}" for key, values in grid.items()]
    directory = _multirun([*overrides, *swept], directory)
    return Sweep(directory, load_runs(directory))


def search(overrides: Sequence[str] = (), directory: str | Path | None = None) -> Search:
    """Search for the smallest model that beats unigram loss, as hydra/sweeper=smallest does.

    Raises CheckError for what cannot be searched; KeyboardInterrupt saves the state first.

    >>> import marble_sweep as ms
    >>> ms.search(["model.hidden_dim=range(2,9)"]).answer  # doctest: +SKIP
    """
    directory = _multirun(["hydra/sweeper=smallest", *overrides], directory)
    return Search(directory, load_runs(directory), read_json(directory / layout.SEARCH))


@dataclass(frozen=True)
class Frontier:
    """What a frontier has left."""

    directory: Path
    runs: pd.DataFrame  # a row a trial
    summary: dict[str, Any]  # search.json

    @property
    def sizes(self) -> pd.DataFrame:
        """A row a size at its best recipe: its loss with a 95 % interval, and whether it is tuned."""
        return pd.DataFrame(self.summary["sizes"])

    @property
    def law(self) -> dict[str, Any]:
        """E, A and alpha as [value, low, high], and the curve; `refused` says why there is none, else it is None."""
        law: dict[str, Any] = self.summary["law"]
        return law

    def __str__(self) -> str:
        return "\n".join(self.summary["summary_lines"])


def frontier(overrides: Sequence[str] = (), directory: str | Path | None = None) -> Frontier:
    """Find the lowest loss of every size and the law through them, as hydra/sweeper=frontier does.

    Raises CheckError for what cannot be searched; KeyboardInterrupt saves the state first.

    >>> import marble_sweep as ms
    >>> ms.frontier(["model.hidden_dim=2,4,8,16,32"]).law["alpha"]  # doctest: +SKIP
    """
    directory = _multirun(["hydra/sweeper=frontier", *overrides], directory)
    return Frontier(directory, load_runs(directory), read_json(directory / layout.SEARCH))


def _directory_or_new(directory: str | Path | None, folder: str) -> Path:
    """The directory asked for, or a new one in `folder`, named after the time."""
    return Path(directory) if directory is not None else Path(folder, f"{datetime.now():%Y-%m-%d/%H-%M-%S-%f}")


def _value(value: Any) -> str:
    """A value of Python in Hydra's syntax; text is the option of a group, or a text, that it names."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_value, value))}]"
    return override("", value).removeprefix("=") if isinstance(value, str) else str(value)


def _on_tokens(config: Config, tokens: Tensor, directory: Path) -> Config:
    """The config of a run on `tokens`, which are written into its directory."""
    whole = tokens.ndim == 1 and not tokens.is_floating_point()
    require(whole, "tokens", f"{tuple(tokens.shape)} {tokens.dtype}", "(num_tokens,) whole numbers")
    for name, what in ((layout.CONFIG, "run"), (layout.RECORD, layout.RECORD)):
        require(not (directory / name).exists(), "directory", directory, f"a new one: this one holds a {what}")
    directory.mkdir(parents=True, exist_ok=True)
    path = directory.resolve() / layout.TOKENS
    write_tensors(path, {"tokens": tokens.cpu()})
    data = TokensConfig(vocab_size=config.data.vocab_size, val_fraction=config.data.val_fraction, path=str(path))
    return replace(config, data=data)


@contextlib.contextmanager
def _logging_here() -> Iterator[None]:
    """Show what the package logs, as plain lines on standard output, and nowhere else."""
    logger = logging.getLogger("marble_sweep")
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


def _multirun(overrides: Sequence[str], directory: str | Path | None) -> Path:
    """Run the command line in a process of its own, its output shown as it comes; returns the sweep's directory."""
    sweep_dir = _directory_or_new(directory, layout.MULTIRUN)
    command = [sys.executable, "-m", "marble_sweep", "--multirun", *overrides, override("hydra.sweep.dir", sweep_dir)]
    # A session of its own: an interrupt reaches it once, from here.
    last_line = ""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", start_new_session=True
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                print(line, end="", flush=True)
                last_line = line.strip() or last_line
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            print(process.stdout.read(), end="")
            raise
    if process.returncode == EXIT_REFUSED:
        raise CheckError(last_line.removeprefix("marble_sweep: "))
    return sweep_dir
