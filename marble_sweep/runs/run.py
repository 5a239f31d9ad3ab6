"""What a run directory holds, read cheaply, whether the run has finished, is running or has crashed."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from marble_sweep.renamed_keys import with_current_keys
from marble_sweep.runs import layout
from marble_sweep.runs.damage import (
    NUMBER,
    OR_NULL,
    TEXT,
    WHOLE,
    Damage,
    DamageError,
    Kinds,
    keep_sound,
    read_json,
    read_yaml,
)
from marble_sweep.runs.renamed import ADDED_SETTINGS, with_added_columns
from marble_sweep.runs.status import DONE, RunStatus
from marble_sweep.runs.steps import StepFile, read_evals
from marble_sweep.terminal import printable

PARAMETERS: Kinds = {  # of config.yaml: what every run has
    "model.num_layers": WHOLE,
    "model.hidden_dim": WHOLE,
    "model.num_heads": WHOLE + OR_NULL,
    "optimizer.lr": NUMBER,
    "trainer.total_steps": WHOLE,
    "seed": WHOLE,
    "optimizer.name": TEXT,
    "schedule.name": TEXT,
    "precision.name": TEXT,
    "data.name": TEXT,
}
CONFIG_KINDS: Kinds = {
    **PARAMETERS,
    "model.name": TEXT,
    "verdict.min_standard_errors": NUMBER,
    "trainer.num_evals": WHOLE,
}
BASELINES = ("unigram_fitted", "unigram_tempered", "unigram_oracle", "bigram")
# Of a run whose record was analysed: what a comparison shows of it.
LIFECYCLE_NUMBERS = ("freeze_median", "freeze_last", "half_freeze_step", "n_frozen", "n_stragglers", "lift_off_step")
METADATA_KINDS: Kinds = {
    "status": TEXT,
    "reason": TEXT + OR_NULL,
    "field": TEXT + OR_NULL,
    "name": TEXT + OR_NULL,
    "num_layers": WHOLE + OR_NULL,
    "hidden_dim": WHOLE + OR_NULL,
    "num_heads": WHOLE + OR_NULL,
    "n_params": WHOLE + OR_NULL,
    "vocab_size": WHOLE + OR_NULL,
    "h_autocorr_lag": WHOLE + OR_NULL,
    "step": WHOLE + OR_NULL,
    "seconds": NUMBER + OR_NULL,
    "steps_per_minute": NUMBER + OR_NULL,
    "lifecycle": dict.fromkeys(LIFECYCLE_NUMBERS, WHOLE + OR_NULL),
    "corpus": {"sha256": TEXT + OR_NULL, "entropy_rate": NUMBER + OR_NULL},
    "baselines": dict.fromkeys(BASELINES, NUMBER + OR_NULL),
    "last_evaluation": {
        "step": WHOLE + OR_NULL,
        "val_loss": NUMBER + OR_NULL,
        "unigram_margin": NUMBER + OR_NULL,
        "unigram_margin_se": NUMBER + OR_NULL,
        "tempered_margin": NUMBER + OR_NULL,
        "tempered_margin_se": NUMBER + OR_NULL,
        "all_tempered_margin": NUMBER + OR_NULL,
        "all_tempered_margin_se": NUMBER + OR_NULL,
    },
}
Content = TypeVar("Content")


@dataclass(frozen=True)
class Run:
    """One run directory. Small files are read at once, metrics.csv on demand.

    Damaged files are left out and listed in `damages`: reading never fails.
    """

    path: Path
    config: dict[str, Any]  # dotted key: value
    metadata: dict[str, Any]
    evals: list[dict[str, float]]  # the rows of evals.csv
    small_damages: tuple[Damage, ...] = ()  # of all files but metrics.csv

    @classmethod
    def read(cls, path: Path) -> "Run":
        """Read the run in `path`. A missing file counts as empty; half a last row does not count."""
        damages: list[Damage] = []
        config, metadata = _read_config(path, damages), _read_metadata(path, damages)
        evals = read_sound_evals(path, damages)
        _read_if_there(path / layout.VERDICT, read_json, damages)
        return cls(path, config, metadata, evals, tuple(damages))

    @property
    def damages(self) -> list[Damage]:
        """The damaged files, with a reason each."""
        damages = list(self.small_damages)
        if self.steps.damage:
            damages.append(Damage(layout.METRICS, self.steps.damage))
        elif self.recorded_status in DONE and self.steps.num_rows < (self.metadata.get("step") or 0):
            rows, step = self.steps.num_rows, self.metadata["step"]
            damages.append(Damage(layout.METRICS, f"has rows up to step {rows}; the run went to step {step}"))
        measured = (self.metadata.get("last_evaluation") or {}).get("step") or 0
        if self.evals_until < measured and not any(damage.file == layout.EVALS for damage in damages):
            reason = f"has rows up to step {self.evals_until}; the run was evaluated at step {measured}"
            damages.append(Damage(layout.EVALS, reason))
        return damages

    @property
    def evals_until(self) -> int:
        """The step of the last evaluation, 0 where there is none."""
        return max(self.eval_at, default=0)

    @property
    def recorded_status(self) -> str:
        """The status in metadata.json; `started` before that file is written."""
        return str(self.metadata.get("status") or RunStatus.STARTED)

    @property
    def status(self) -> str:
        """The recorded status; `damaged` where a file is damaged."""
        return RunStatus.DAMAGED if self.damages else self.recorded_status

    @property
    def name(self) -> str:
        """The model's name, as 4L128D; the directory's where neither metadata nor config has one."""
        return str(self.metadata.get("name") or self.config.get("model.name") or self.path.name)

    @property
    def baselines(self) -> dict[str, float]:
        """Loss in nats per token of `unigram_fitted`, `unigram_tempered`, `unigram_oracle`, `bigram`, where known."""
        losses: dict[str, Any] = self.metadata.get("baselines") or {}
        return {name: losses[name] for name in BASELINES if losses.get(name) is not None}

    @property
    def corpus(self) -> dict[str, Any]:
        return self.metadata.get("corpus") or {}

    @functools.cached_property
    def eval_at(self) -> dict[int, dict[str, float]]:
        """The evaluations by step."""
        return {int(row["step"]): row for row in self.evals}

    @functools.cached_property
    def steps(self) -> StepFile:
        return StepFile(self.path / layout.METRICS)


def damage_lines(runs: Sequence[Run]) -> list[str]:
    """A line for every damaged file."""
    return [printable(f"damaged: {run.path}: {damage.file}: {damage.reason}") for run in runs for damage in run.damages]


def _read_if_there(path: Path, reader: Callable[[Path], Content], damages: list[Damage]) -> Content | None:
    """What a file holds; None where it is missing or damaged. Damage is added to `damages`."""
    try:
        return reader(path)
    except FileNotFoundError:
        return None
    except DamageError as error:
        damages.append(Damage(path.name, str(error)))
        return None


def _read_config(path: Path, damages: list[Damage]) -> dict[str, Any]:
    before = len(damages)
    settings = _read_if_there(path / layout.CONFIG, read_yaml, damages)
    if settings is None:
        if len(damages) == before:
            damages.append(Damage(layout.CONFIG, "is missing"))
        return {}
    config, reasons = keep_sound(ADDED_SETTINGS | with_current_keys(settings), CONFIG_KINDS)
    if missing := [key for key in PARAMETERS if key not in settings]:
        reasons.append(f"must have {', '.join(missing)}")
    damages += [Damage(layout.CONFIG, reason) for reason in reasons]
    return config


def _read_metadata(path: Path, damages: list[Damage]) -> dict[str, Any]:
    content = _read_if_there(path / layout.METADATA, read_json, damages)
    if content is None:
        return {}
    metadata, reasons = keep_sound(content, METADATA_KINDS)
    if content.get("status") is None:
        reasons.append("must have a status")
    damages += [Damage(layout.METADATA, reason) for reason in reasons]
    if metadata.get("last_evaluation"):
        metadata["last_evaluation"] = with_added_columns(metadata["last_evaluation"], None)
    return metadata


def read_sound_evals(path: Path, damages: list[Damage] | None = None) -> list[dict[str, float]]:
    """The rows of evals.csv of the run in `path`; none where the file is missing or damaged.

    Damage is added to `damages`.
    """
    return _read_if_there(path / layout.EVALS, read_evals, [] if damages is None else damages) or []
