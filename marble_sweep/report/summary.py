"""Many runs, one row each: what differs between them and what they reached, all at the same step.

A run that certify.stop may end early, as a trial of a search, is shown at its own last evaluation instead.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marble_sweep.humanize import perplexity, some_of
from marble_sweep.metrics.margin import (
    DECIDING_MARGINS,
    DECISIONS,
    Outcome,
    deciding_column,
    errors_needed,
    measured,
    outcome_with_context,
)
from marble_sweep.report.search import cost_column, read_search
from marble_sweep.report.twins import twin_notes
from marble_sweep.runs.run import LIFECYCLE_NUMBERS, Run, damage_lines
from marble_sweep.runs.status import STOPPED, UNFINISHED, RunStatus
from marble_sweep.training.schedule import evaluation_steps

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]  # column: value, None where it is unknown

# Parameters that every row has, under their short names. `seed` is not a parameter: its values are repeats.
ALWAYS = {
    "model.num_layers": "num_layers",
    "model.hidden_dim": "hidden_dim",
    "model.num_heads": "num_heads",
    "optimizer.lr": "lr",
    "trainer.total_steps": "total_steps",
    "seed": "seed",
}
NOT_PARAMETERS = {"model.name", "experiment_name", "notes", "resume"}  # derived, or free text
STOPPING_NOTE = (
    "Runs that certify.stop may end early are shown at their own last evaluation, whose step is in the table: "
    "their losses at different steps do not rank them."
)
PARTS_NOTE = "Runs of different trainer.eval_part are evaluated on different held-out windows: do not rank them."
EARLIER_NOTE = (
    "Runs of an earlier version did not measure the tempered unigram: their val_margin is to the fitted one, and "
    "whether they beat unigram is not known."
)
SAMPLED_NOTE = (
    "Baselines of a stream on the disk are counted on a sample of it: bigram, trigram and 4-gram are too high, and "
    "beats_bigram says less than it seems."
)
MEASURED = (
    "n_params",
    "val_loss",
    "val_loss_se",
    "perplexity",
    "unigram_loss",
    "val_margin",
    "val_margin_se",
    "val_margin_df",
    "val_margin_se_factor",
    "unigram_outcome",
    "beats_unigram",
    "oracle_loss",
    "oracle_margin",
    "oracle_margin_se",
    "oracle_margin_df",
    "oracle_margin_se_factor",
    "oracle_outcome",
    "beats_oracle",
    "bigram_loss",
    "bigram_margin",
    "bigram_margin_se",
    "bigram_margin_df",
    "bigram_margin_se_factor",
    "bigram_outcome",
    "beats_bigram",
    "bits_per_byte",
    "accuracy",
    "final_loss",
    "dead_moving",
    "freeze_step",
    *LIFECYCLE_NUMBERS,
    "steps_per_minute",
    "vocab_size",
    "corpus_sha256",
)


@dataclass(frozen=True)
class Comparison:
    """Runs and their rows, in the same order."""

    runs: list[Run]
    rows: list[Row]
    varied: list[str]  # the columns of parameters that differ, without `seed`
    step: int | None  # of the comparison; None where the runs share no measured step, or some may stop early
    notes: list[str]  # sentences that a reader must know before comparing numbers
    comparable: bool  # whether losses in nats per token may be ranked

    @property
    def stopping(self) -> bool:
        """Whether certify.stop may end some of the runs early: those are shown at their own last evaluation."""
        return any(map(may_stop, self.runs))

    @property
    def thresholds(self) -> list[str]:
        """The baselines other than unigram that runs which may stop early are certified against."""
        thresholds = {str(run.config.get("certify.threshold")) for run in self.runs if may_stop(run)}
        return [name for name in ("oracle", "bigram") if name in thresholds]

    @property
    def damages(self) -> list[str]:
        """A line for every damaged file."""
        return damage_lines(self.runs)

    @property
    def objective(self) -> str:
        """The column by which runs are ranked."""
        if not self.comparable:
            return "bits_per_byte"
        return "val_loss" if any(row["val_loss"] is not None for row in self.rows) else "final_loss"


def compare_directories(directories: Sequence[Path]) -> "pd.DataFrame":
    """A row a run, as in `compare_runs`."""
    import pandas as pd  # late: the table in a terminal does without

    return pd.DataFrame(compare_runs([Run.read(path) for path in directories]).rows)


def compare_runs(runs: Sequence[Run]) -> Comparison:
    """Measure all runs at the last step that all of them have been evaluated at.

    Runs that certify.stop may end early do not count for that step, and are measured at their own last evaluation.
    """
    keys = _differing(runs)
    columns = _short_names(keys)
    others = [run for run in runs if not may_stop(run)]
    step = common_step(others)
    rows = [_row(run, columns, None if may_stop(run) else step) for run in runs]
    varied = [columns[key] for key in keys if key != "seed"]
    other_rows = [row for run, row in zip(runs, rows, strict=True) if not may_stop(run)]
    notes = _step_notes(others, other_rows, step)
    if len(others) < len(runs):
        notes.insert(0, STOPPING_NOTE)
        step = None
    if len({eval_part(run) for run in runs}) > 1:
        notes.append(PARTS_NOTE)
    if any(_lacks_tempered(run.evals[-1]) for run in runs if run.evals):
        notes.append(EARLIER_NOTE)
    if any(run.corpus.get("num_sampled_tokens") is not None for run in runs):
        notes.append(SAMPLED_NOTE)
    notes += twin_notes(runs, {key: columns[key] for key in keys})
    _add_costs(runs, rows)
    corpus_notes = _corpus_notes(runs, rows)
    return Comparison(list(runs), rows, varied, step, notes + corpus_notes, not corpus_notes)


def _add_costs(runs: Sequence[Run], rows: Sequence[Row]) -> None:
    """Add what the search minimised whose trials these are, where that is not the number of parameters."""
    search, _ = read_search(runs)
    if search is not None and (costs := cost_column(search, runs)) is not None:
        name, values = costs
        for row, value in zip(rows, values, strict=True):
            row[name] = value


def may_stop(run: Run) -> bool:
    """Whether the run may end at any of its evaluations."""
    return run.config.get("certify.stop") is True


def eval_part(run: Run) -> str:
    """Which part of the held-out windows the run was evaluated on."""
    return str(run.config.get("trainer.eval_part", "all"))


def holds_nothing_out(run: Run) -> bool:
    """Whether the run trains on all of its data, so that there is nothing to evaluate it on."""
    return run.config.get("data.val_fraction") == 0


def common_step(runs: Sequence[Run]) -> int | None:
    """The last step that all runs were evaluated at, or reached where none has an evaluation.

    Runs that diverged or failed count only where there are no others, and runs without evaluations likewise.
    """
    evaluated = [run for run in runs if run.evals]
    sound = [run for run in evaluated if run.status not in STOPPED] or evaluated
    if sound:
        return max(set.intersection(*(set(run.eval_at) for run in sound)), default=None)
    reached = [run.steps.last_step for run in runs if run.status not in STOPPED]
    return min((step for step in reached if step), default=None)


def _differing(runs: Sequence[Run]) -> list[str]:
    """The config keys that have more than one value among the runs that have them."""
    values: dict[str, set[str]] = {}
    for run in runs:
        for key, value in run.config.items():
            values.setdefault(key, set()).add(repr(value))
    return [key for key in values if len(values[key]) > 1 and key not in NOT_PARAMETERS]


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """A column name by config key, those of ALWAYS included.

    The name is the key's last part, or the group's name for the choice of a group; the whole key where that is
    ambiguous.
    """
    columns = dict(ALWAYS)
    short = {key: key.removesuffix(".name").rpartition(".")[2] for key in keys}
    taken = {*ALWAYS.values(), *MEASURED, "run", "name", "status", "reason", "damage", "step", "n", "runs", "seeds"}
    counts = Counter(short.values())
    for key in keys:
        is_unique = short[key] not in taken and counts[short[key]] == 1
        columns.setdefault(key, short[key] if is_unique else key if key not in taken else f"config.{key}")
    return columns


def _row(run: Run, columns: dict[str, str], step: int | None) -> Row:
    last = max(run.eval_at, default=None)
    at = step if step is not None else last  # without a common step, at the run's own last evaluation
    held_out = {} if at is None else run.eval_at.get(at, {})
    trained = {} if at is None else run.steps.row(at)
    metadata, baselines = run.metadata, run.baselines
    parameters = {column: _plain(run.config.get(key)) for key, column in columns.items()}
    for column in ("num_layers", "hidden_dim", "num_heads"):  # the heads in metadata.json are those really used
        parameters[column] = metadata.get(column, parameters[column])
    row: Row = {"run": str(run.path), "name": run.name, "status": run.status, "reason": metadata.get("reason")}
    row |= {"step": at if held_out or trained else None}
    row |= parameters | dict.fromkeys(MEASURED)
    row |= {
        "n_params": metadata.get("n_params"),
        "unigram_loss": baselines.get("unigram_tempered", baselines.get("unigram_fitted")),
        "oracle_loss": baselines.get("unigram_oracle"),
        "bigram_loss": baselines.get("bigram"),
        "final_loss": trained.get("loss"),
        "dead_moving": trained.get("dead_moving"),
        "freeze_step": run.steps.step_after_last("dead_moving", at) if trained and at is not None else None,
        **{name: (metadata.get("lifecycle") or {}).get(name) for name in LIFECYCLE_NUMBERS},
        "steps_per_minute": metadata.get("steps_per_minute"),
        "vocab_size": metadata.get("vocab_size"),
        "corpus_sha256": run.corpus.get("sha256"),
    }
    if held_out:
        row |= _held_out_columns(run, held_out)
    row["damage"] = "; ".join(f"{damage.file}: {damage.reason}" for damage in run.damages) or None
    return {column: None if isinstance(value, float) and math.isnan(value) else value for column, value in row.items()}


def _held_out_columns(run: Run, held_out: dict[str, float]) -> Row:
    """What an evaluation says: the loss, and for each baseline the margin and what that shows."""
    errors = _errors_needed(run)
    row: Row = {column: held_out.get(column) for column in ("val_loss", "val_loss_se", "bits_per_byte", "accuracy")}
    row["perplexity"] = perplexity(held_out.get("val_loss", math.nan))
    for column, name in (("val", "unigram"), ("oracle", "oracle"), ("bigram", "bigram")):
        of_earlier_version = name == "unigram" and _lacks_tempered(held_out)
        source = f"{name if of_earlier_version else DECIDING_MARGINS[name]}_margin"
        margin = measured(held_out, source)
        outcome = outcome_with_context(margin, measured(held_out, "context_gain"), errors)
        if of_earlier_version and outcome == Outcome.CERTIFIED:
            outcome = None
        row[f"{column}_margin"], row[f"{column}_margin_se"], df = margin
        row[f"{column}_margin_df"] = df if math.isfinite(df) else None
        row[f"{column}_margin_se_factor"] = held_out.get(f"{deciding_column(held_out, source)}_se_factor")
        row[f"{name}_outcome"] = outcome and str(outcome)
        row[f"beats_{name}"] = outcome and outcome.passed
    return row


def _lacks_tempered(held_out: dict[str, float]) -> bool:
    """Whether a row of evals.csv, of an earlier version, knows of the fitted unigram alone.

    Without a finite loss no margin is a number in any version.
    """
    margin, loss = (held_out.get(name, math.nan) for name in ("tempered_margin", "val_loss"))
    return math.isnan(margin) and math.isfinite(loss) and "unigram_margin" in held_out


def _errors_needed(run: Run) -> float:
    """How many standard errors the run's margins need."""
    config = run.config
    single = config.get("verdict.min_standard_errors", 3.0)
    if not may_stop(run):
        return single
    total_steps, num_evals = config.get("trainer.total_steps", 1), config.get("trainer.num_evals", 1)
    steps = evaluation_steps(total_steps, num_evals, config.get("trainer.eval_spacing", "linear"))
    return errors_needed(single, len(steps) * DECISIONS)


def _plain(value: Any) -> Any:
    """A config value as one cell."""
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def _step_notes(runs: Sequence[Run], rows: Sequence[Row], step: int | None) -> list[str]:
    runs = [run for run in runs if run.status != RunStatus.DAMAGED]  # damaged runs have lines of their own
    rows = [row for row in rows if row["status"] != RunStatus.DAMAGED]
    if not runs:
        return []
    evaluated = [run for run in runs if run.evals]
    if step is None:
        note = "There is no step at which all runs have an evaluation."
        return [f"{note} Each is shown at its own last evaluation: do not rank them."] if evaluated else []
    notes = []
    ends = {max(run.eval_at, default=run.steps.last_step) for run in (evaluated or runs)}
    if max(ends) > step:
        reached = "have an evaluation" if evaluated else "have reached"
        notes.append(f"Runs of different lengths: all are compared at step {step:,}, the last that all {reached}.")
        behind = [
            f"{run.path} ({run.status})"
            for run in (evaluated or runs)
            if run.status in UNFINISHED and max(run.eval_at, default=0) == step
        ]
        if behind:
            notes.append(f"Not beyond it yet: {some_of(behind)}. --filter status==finished leaves them out.")
    without = [f"{row['run']} ({row['status']})" for row in rows if row["val_loss"] is None]
    if without and evaluated:
        notes.append(f"No evaluation at step {step:,}: {some_of(without)}.")
    return notes


def _corpus_notes(runs: Sequence[Run], rows: Sequence[Row]) -> list[str]:
    """Why losses in nats per token must not be ranked, where they must not."""
    corpora = {row["corpus_sha256"] for row in rows} - {None}
    vocabularies = {row["vocab_size"] for row in rows} - {None}
    unigram_losses: dict[str, set[float]] = {}
    for run, row in zip(runs, rows, strict=True):
        if row["unigram_loss"] is not None:
            unigram_losses.setdefault(eval_part(run), set()).add(round(row["unigram_loss"], 6))
    most = max(map(len, unigram_losses.values()), default=0)
    instead = "losses in nats per token do not rank them; compare bits_per_byte, or each margin to its own unigram."
    if len(vocabularies) > 1 or len(corpora) > 1:
        what = f"{len(corpora)} corpora" if len(corpora) > 1 else f"{len(vocabularies)} vocabularies"
        return [f"Warning: runs on {what}: {instead}"]
    if most > 1:
        return [f"Warning: runs were evaluated on {most} different sets of windows: {instead}"]
    return []
