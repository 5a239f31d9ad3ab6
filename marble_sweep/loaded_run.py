"""A run in Python: its numbers as DataFrames, its model, its plots."""

import base64
import functools
import html
import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
import torch
from tokenizers import Tokenizer
from torch import Tensor

from marble_sweep.checks import CheckError, require
from marble_sweep.config import Config
from marble_sweep.model.transformer import Transformer
from marble_sweep.report.plots import draw_figures
from marble_sweep.runs import layout
from marble_sweep.runs.damage import DamageError, read_json
from marble_sweep.runs.removed import require_kept
from marble_sweep.runs.run import Run as RunFiles
from marble_sweep.sample import generate_text, load_model, naming, read_config, read_tensors, read_tokenizer
from marble_sweep.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from marble_sweep.lifecycle.result import Lifecycle

NOTEBOOK_DPI = 80


class Snapshots(NamedTuple):
    """The embedding and the mean hidden state, every trainer.checkpoint_interval steps."""

    steps: Tensor  # (n,) int64, from step 0
    W: Tensor  # (n, V, D) bfloat16
    h_mean: Tensor  # (n, D) float32


class Run:
    """One run directory. Files are read on access, so a run can be looked at while it trains.

    >>> import marble_sweep as ms
    >>> run = ms.load_run("outputs/2026-11-25/13-07-38-462237")  # doctest: +SKIP
    >>> run.metrics["loss"].tail(3)  # doctest: +SKIP
    """

    def __init__(self, path: str | Path) -> None:
        """Raises ValueError where `path` holds no run."""
        self.path = Path(path)
        is_run = (self.path / layout.CONFIG).is_file()
        require(is_run, "path", self.path, "a run directory, one with a config.yaml")

    @property
    def status(self) -> str:
        """`finished`, `running`, `interrupted`, `diverged`, `failed`, …; `started` before metadata.json is written."""
        return RunFiles.read(self.path).status

    @functools.cached_property
    def config(self) -> Config:
        """The checked config."""
        return read_config(self.path)

    @property
    def metadata(self) -> dict[str, Any]:
        """metadata.json; empty before it is written. docs/run_directory.md names its keys."""
        return RunFiles.read(self.path).metadata

    @property
    def verdict(self) -> Verdict | None:
        """The success criteria, with a sentence for every check; None before the run has ended."""
        path = self.path / layout.VERDICT
        try:
            with naming(path, DamageError, ValueError, KeyError, TypeError):
                return Verdict.from_json(read_json(path))
        except FileNotFoundError:
            return None

    @property
    def metrics(self) -> pd.DataFrame:
        """metrics.csv, a row a training step, with the step as a column."""
        return self._table(layout.METRICS, lambda run: run.steps.table())

    @property
    def evals(self) -> pd.DataFrame:
        """evals.csv, a row a held-out evaluation; losses and margins in nats per token."""
        return self._table(layout.EVALS, lambda run: pd.DataFrame(run.evals))

    @property
    def snapshots(self) -> Snapshots:
        """The embedding over the run.

        Raises FileNotFoundError before the first step, ValueError where it was removed (search.keep).
        """
        require_kept(self.path / layout.SNAPSHOTS)
        saved = read_tensors(self.path / layout.SNAPSHOTS, "steps", "W", "h_mean")
        return Snapshots(saved["steps"], saved["W"].view(torch.bfloat16), saved["h_mean"])

    @property
    def dead_mask(self) -> Tensor:
        """(V,) bool: the tokens that never occur in the training split."""
        require_kept(self.path / layout.SNAPSHOTS)
        return read_tensors(self.path / layout.SNAPSHOTS, "dead_mask")["dead_mask"].bool()

    @property
    def tokenizer(self) -> Tokenizer:
        return read_tokenizer(self.path, self.config.data.vocab_size)

    def model(self) -> Transformer:
        """The trained model on the CPU, in the dtype it was trained in. Raises ValueError where there is none."""
        return load_model(self.path)

    def generate(self, prompt: str, num_tokens: int = 100, *, temperature: float = 1.0, seed: int = 0) -> str:
        """The prompt and the model's continuation; temperature 0 always takes the most probable token."""
        return generate_text(self.model(), self.tokenizer, prompt, num_tokens, temperature, seed)

    def lifecycle(self, quiet_window: int | None = None) -> "Lifecycle":
        """The life of the tokens of the run's record: DataFrames `tokens`, `steps`, `epochs`, `holes`, and a summary.

        A freeze counts where the record goes on for `quiet_window` steps without motion. docs/lifecycle.md has its
        default, and every other rule. Nothing is written. Raises ValueError where the run has no record.

        >>> life = run.lifecycle()  # doctest: +SKIP
        >>> life.tokens.nlargest(5, "last_motion")[["token", "text", "last_motion"]]  # doctest: +SKIP
        """
        from marble_sweep.lifecycle.of_run import analyse_run, open_record  # late: Zarr

        return analyse_run(self.path, open_record(self.path), quiet_window=quiet_window)

    def figures(self) -> "dict[str, Figure]":
        """The plots as Matplotlib figures: `loss`, `lattice`, `hidden`; none before the first step."""
        return draw_figures(self.path)

    def _table(self, name: str, read: Callable[[RunFiles], pd.DataFrame]) -> pd.DataFrame:
        """A CSV file of the run. Raises FileNotFoundError where there is none, ValueError where it is damaged."""
        path = self.path / name
        run = RunFiles.read(self.path)
        for damage in run.damages:
            if damage.file == name:
                raise CheckError(f"{path}: {damage.reason}")
        path.stat()
        table = read(run)
        return table.astype({"step": "int64"}) if "step" in table else table  # no columns before the header is written

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}): {RunFiles.read(self.path).name}, {self.status}"

    def _repr_html_(self) -> str:
        """The verdict and the plots, for a notebook."""
        verdict = self.verdict
        text = repr(self) if verdict is None else f"{self!r}\n\n{verdict.as_text()}"
        return f"<pre>{html.escape(text)}</pre>" + "".join(map(_image, self.figures().values()))


def _image(figure: "Figure") -> str:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=NOTEBOOK_DPI)
    return f'<img src="data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}">'
