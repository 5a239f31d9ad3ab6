"""The success criteria of a run. A criterion is a few checks: a value, a threshold, pass or fail, and a sentence."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from marble_sweep.config import VerdictConfig
from marble_sweep.humanize import finite, perplexity
from marble_sweep.metrics.margin import (
    DECIDING_MARGINS,
    Measured,
    Outcome,
    deciding_column,
    measured,
    outcome_of,
    outcome_with_context,
)
from marble_sweep.runs.renamed import ADDED_COLUMNS, NUM_ALL_WINDOWS, current_name
from marble_sweep.uncertainty.student import student_errors

MIN_LAG = 100  # steps: over fewer, h_mean looks frozen in every model
MIN_STEPS = 4 * MIN_LAG  # of a run: below, the lag is shorter, and a tenth of the run is not 40 steps
# Steps after which dead tokens that have not slowed down count as such. With experiment=quick the share that goes
# farther than a cell, last tenth by first, is 0.25 after 300 steps, 0.81 after 600 and 0.05 after 800.
MIN_STEPS_TO_FREEZE = 1000
UNTIED = (
    "not judged: with model.tied=false no gradient reaches the embedding row of a dead token, "
    "weight decay alone moves it"
)
REGIMES = ["dead_early", "dead_midlife", "dead_late", "dead_frozen"]  # columns whose shares add up to 1
NOTHING_HELD_OUT = "nothing is held out (data.val_fraction = 0)"


@dataclass(frozen=True)
class Check:
    """One measured number against one threshold. `passed` is None where it was not measured, or decides nothing."""

    name: str
    value: float | None
    threshold: float | None
    passed: bool | None
    reading: str  # one sentence
    decides: bool = True  # whether its criterion stands or falls with it
    outcome: str | None = None  # of a number with a standard error: certified, below or undecided

    @property
    def undecided(self) -> bool:
        return self.outcome == Outcome.UNDECIDED


@dataclass(frozen=True)
class Criterion:
    name: str
    checks: list[Check]

    @property
    def passed(self) -> bool | None:
        """True if every deciding check passed, False if one failed, else None: one is undecided or not measured."""
        results = [check.passed for check in self.checks if check.decides]
        if False in results:
            return False
        return None if None in results else True

    @property
    def undecided(self) -> bool:
        """Whether it is neither passed nor failed, and measured: more held-out text would decide it."""
        deciding = [check for check in self.checks if check.decides]
        return self.passed is None and all(check.undecided or check.passed for check in deciding)


@dataclass(frozen=True)
class Verdict:
    """What a run's files say about it.

    To beat a baseline is to have a lower loss *and* to use the context; None where it is undecided or not measured.
    """

    criteria: list[Criterion]
    beats_unigram: bool | None
    beats_oracle: bool | None
    beats_bigram: bool | None

    def as_json(self) -> dict[str, Any]:
        criteria = [
            {
                "name": criterion.name,
                "passed": criterion.passed,
                "checks": [asdict(check) for check in criterion.checks],
            }
            for criterion in self.criteria
        ]
        beats = {name: getattr(self, name) for name in ("beats_unigram", "beats_oracle", "beats_bigram")}
        return beats | {"criteria": criteria}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "Verdict":
        """The verdict that `as_json` made these values of."""
        criteria = [
            Criterion(
                each["name"], [Check(**check | {"name": current_name(check["name"])}) for check in each["checks"]]
            )
            for each in stored["criteria"]
        ]
        return cls(criteria, stored["beats_unigram"], stored["beats_oracle"], stored["beats_bigram"])

    def as_text(self) -> str:
        """The block printed at the end of a run."""
        labels = {True: "pass", False: "FAIL", None: "n/a"}
        answers = {True: "yes", False: "no", None: "n/a"}
        lines = []
        for number, criterion in enumerate(self.criteria, start=1):
            label = "undecided" if criterion.undecided else labels[criterion.passed]
            lines.append(f"{label:<4}  {number}. {criterion.name}")
            for check in criterion.checks:
                mark = "undecided" if check.undecided else (labels if check.decides else answers)[check.passed]
                lines.append(f"        {mark:<4}  {check.reading}")
        return "\n".join(lines)


def judge(
    config: VerdictConfig,
    steps: pd.DataFrame,
    evals: pd.DataFrame,
    lag: int,
    *,
    held_out: bool = True,
    tied: bool = True,
) -> Verdict:
    """Judge a run by its metrics.csv and evals.csv; `lag` is that of the h_autocorr_lag column, in steps.

    Where the run diverged, what came before is judged. `held_out` says whether there is text to evaluate on, `tied`
    whether the token embedding is the head too; else the motion of dead tokens is not judged.
    """
    unmeasured = "the run ended before its first evaluation" if held_out else NOTHING_HELD_OUT
    # The step that diverged is left out, and steps whose weights are NaN.
    steps = steps[np.isfinite(steps["loss"]) & ~(steps[REGIMES].sum(axis=1) == 0) | steps["dead_moving"].isna()]
    final = dict(zip(evals.columns, evals.iloc[-1], strict=True)) if len(evals) else None
    margins = [_margin(config, final, name, unmeasured) for name in _BASELINES]
    gain, top1 = _context_checks(config, final, unmeasured)

    def beaten(name: str) -> bool | None:
        margin = measured(final or {}, f"{DECIDING_MARGINS[name]}_margin")
        outcome = outcome_with_context(margin, measured(final or {}, "context_gain"), config.min_standard_errors)
        return None if outcome is None else outcome.passed

    return Verdict(
        criteria=[
            Criterion(
                "The model beats unigram loss",
                [margins[0], _needs_context(gain), *margins[1:], _target_check(config, steps)],
            ),
            Criterion("Predictions depend on context, usefully", [gain, top1]),
            Criterion("The hidden state changes direction", [_direction_check(config, steps, lag)]),
            Criterion("Dead tokens move, then slow towards the freeze", _dead_checks(config, steps, tied)),
        ],
        beats_unigram=beaten("unigram"),
        beats_oracle=beaten("oracle"),
        beats_bigram=beaten("bigram"),
    )


def last_tenth(values: pd.Series) -> float:
    """The mean over the last tenth of a run, which a single noisy batch does not move."""
    return float(values.tail(max(1, len(values) // 10)).mean())


def first_tenth(values: pd.Series) -> float:
    return float(values.head(max(1, len(values) // 10)).mean())


def in_standard_errors(value: float, error: float) -> float:
    """A value as a multiple of its standard error. One whose error is 0 is infinitely many, unless it is 0 too."""
    if error > 0:
        return value / error
    return math.copysign(math.inf, value) if value else 0.0


_BASELINES = {  # by margin: what it is to, and what it says to be above 0 and not to be
    "tempered": (
        "the best of uniform, fitted and tempered unigram",
        "token frequencies explain less",
        "token frequencies do as well or better",
    ),
    "unigram": (
        "fitted unigram",
        "better than training's frequencies",
        "training's frequencies do as well or better",
    ),
    "oracle": (
        "oracle unigram",
        "no fixed distribution does so well: context or position is used",
        "a fixed distribution does as well or better",
    ),
    "bigram": ("bigram", "better than counts of pairs", "counts of pairs do as well or better"),
    "trigram": ("trigram", "better than counts of threes", "counts of threes do as well or better"),
    "fourgram": ("4-gram", "better than counts of fours", "counts of fours do as well or better"),
}
_DECIDES = "tempered"
_UNDECIDED = "undecided, it may be above or below"


def _margin(config: VerdictConfig, final: dict[str, Any] | None, name: str, unmeasured: str) -> Check:
    label, certified, below = _BASELINES[name]
    decides = name == _DECIDES
    number, outcome, errors_needed = _decided(config, final, f"{name}_margin")
    if final is None or outcome is None:
        reading = f"held-out loss against {label}: {_why_not(final, unmeasured, f'{name}_margin')}"
        return Check(f"{name}_margin_in_se", None, errors_needed, None, reading, decides)
    margin, error, _ = number
    errors = in_standard_errors(margin, error)
    side = "below" if margin > 0 else "above"
    loss = measured(final, "val_loss")[0]
    shown = f"{loss:.3f}" + (f" (perplexity {perplexity(loss):,.1f})" if decides else "")
    reading = (
        f"held-out loss {shown} is {abs(margin):.3f} ± {error:.3f} nats {side} {label} "
        f"({errors:+.1f} standard errors, {errors_needed:.3g} needed{_what_error(final, f'{name}_margin')}): "
        f"{ {Outcome.CERTIFIED: certified, Outcome.BELOW: below}.get(outcome, _UNDECIDED) }"
    )
    return Check(
        f"{name}_margin_in_se", finite(errors), finite(errors_needed), outcome.passed, reading, decides, outcome
    )


def _decided(config: VerdictConfig, final: dict[str, Any] | None, name: str) -> tuple[Measured, Outcome | None, float]:
    """A number of the last evaluation, what it shows, and the standard errors needed for that."""
    number = measured(final or {}, name)
    outcome = outcome_of(number, config.min_standard_errors)
    return number, outcome, student_errors(config.min_standard_errors, number[2])


def _what_error(final: dict[str, Any], name: str) -> str:
    """What the standard error counts, as the end of a sentence; empty for an evaluation of an earlier version."""
    column = deciding_column(final, name)
    clusters, factor = final.get(f"{column}_clusters", math.nan), final.get(f"{column}_se_factor", math.nan)
    if math.isnan(clusters) or math.isnan(factor):
        return ""
    kind = "clusters of whole documents" if final[f"{column}_by_document"] else "blocks of neighbouring windows"
    on = f" on {final[NUM_ALL_WINDOWS]:,.0f} windows" if column != name else ""
    return f"{on} with {clusters:.0f} {kind}; {factor:.1f} times the error of independent windows"


def _why_not(final: dict[str, Any] | None, unmeasured: str, name: str) -> str:
    """Why a number of the last evaluation cannot be judged; `unmeasured` says why there is no evaluation."""
    if final is None:
        return f"not measured: {unmeasured}"
    if not math.isfinite(final["val_loss"]):
        return f"not measured: the held-out loss is {final['val_loss']}"
    if name in ADDED_COLUMNS and math.isnan(final.get(name, math.nan)):
        return "not measured: the run was evaluated by an earlier version"
    if final.get("unigram_margin_clusters", 0) > 1:
        return "not measured: the held-out windows depend on each other over too many of them; hold out more text"
    return "not measured: a single held-out window has no standard error"


def _needs_context(gain: Check) -> Check:
    """The first criterion's own check of the context: without it, a baseline of another domain is beaten by chance."""
    unknown = "undecided" if gain.undecided else "not known"
    readings = {
        True: "the context helps (see 2)",
        False: "the context does not help (see 2): a fixed distribution, or the position, may explain the loss",
        None: f"whether the context helps is {unknown} (see 2)",
    }
    return replace(gain, name="context_used", reading=readings[gain.passed])


def _target_check(config: VerdictConfig, steps: pd.DataFrame) -> Check:
    losses = steps["loss"][np.isfinite(steps["loss"])]
    loss = last_tenth(losses) if len(losses) else None
    below = None if loss is None else loss < config.target_loss
    shown = "not measured" if loss is None else f"{loss:.3f} (last tenth of the run)"
    reading = f"training loss {shown}, target {config.target_loss:g}"
    return Check("training_loss", loss, config.target_loss, below, reading, decides=False)


def _context_checks(config: VerdictConfig, final: dict[str, Any] | None, unmeasured: str) -> tuple[Check, Check]:
    """The gain from the context, which decides, and the share of predictions that the unigram would not make."""
    least = config.min_non_unigram_top1
    number, outcome, errors_needed = _decided(config, final, "context_gain")
    if final is None or outcome is None:
        nothing = _why_not(final, unmeasured, "context_gain")
        return (
            Check("context_gain_in_se", None, errors_needed, None, f"gain from the true context: {nothing}"),
            Check("non_unigram_top1", None, least, None, f"predictions off the unigram: {nothing}", decides=False),
        )
    gain, error, _ = number
    errors = in_standard_errors(gain, error)
    off = final["non_unigram_top1"]
    return (
        Check(
            "context_gain_in_se",
            finite(errors),
            finite(errors_needed),
            outcome.passed,
            f"behind another window's context the same targets cost {gain:+.3f} ± {error:.3f} nats more "
            f"({errors:+.1f} standard errors, {errors_needed:.3g} needed{_what_error(final, 'context_gain')})",
            outcome=outcome,
        ),
        Check(
            "non_unigram_top1",
            off,
            least,
            off >= least,
            f"{off:.1%} of top predictions are none of the unigram's top three ({least:.0%} would be many)",
            decides=False,
        ),
    )


def _direction_check(config: VerdictConfig, steps: pd.DataFrame, lag: int) -> Check:
    threshold = config.min_direction_change
    # Batches alone turn h_mean a little from one step to the next; only what the lag adds is motion.
    change = last_tenth(steps["h_autocorr"]) - last_tenth(steps["h_autocorr_lag"])
    if lag < MIN_LAG or len(steps) <= lag:
        short = f"cannot tell: verdict.direction_lag too short ({MIN_LAG} steps needed)"
        short = _too_short(steps) if len(steps) < MIN_STEPS else short
        return Check("direction_change", None, threshold, None, f"h_mean over {lag} steps: {short}")
    if math.isnan(change):
        return Check("direction_change", None, threshold, None, f"h_mean over {lag} steps: not measured")
    passed = change >= threshold
    meaning = "it still changes direction" if passed else "it has converged to a point"
    reading = f"over {lag} steps h_mean turned by 1 - cos = {change:.4f} beyond batch noise ({threshold:g} needed)"
    return Check("direction_change", change, threshold, passed, f"{reading}: {meaning}")


def _too_short(steps: pd.DataFrame) -> str:
    return f"cannot tell: run too short ({len(steps):,} steps of {MIN_STEPS} needed)"


def _unjudged(config: VerdictConfig, reading: str) -> list[Check]:
    """The checks of dead tokens where there is nothing to judge."""
    return [
        Check("dead_moving_early", None, config.min_dead_moving, None, reading),
        Check("dead_slowdown", None, config.max_dead_slowdown, None, reading),
    ]


def _dead_checks(config: VerdictConfig, steps: pd.DataFrame, tied: bool) -> list[Check]:
    moving = first_tenth(steps["dead_moving"])
    # The mean displacement would be decided by a few weights near zero, where cells are tiny.
    far = steps["dead_early"] + steps["dead_midlife"]
    early, late = first_tenth(far), last_tenth(far)
    if math.isnan(moving):
        return _unjudged(config, "there are no dead tokens")
    if not tied:
        return _unjudged(config, UNTIED)
    if len(steps) < MIN_STEPS:
        return [
            Check("dead_moving_early", moving, config.min_dead_moving, None, f"dead tokens: {_too_short(steps)}"),
            Check("dead_slowdown", None, config.max_dead_slowdown, None, f"their freeze: {_too_short(steps)}"),
        ]
    slowdown = late / early if early > 0 else None
    slowed = None if slowdown is None else slowdown <= config.max_dead_slowdown
    too_early = slowed is False and len(steps) < MIN_STEPS_TO_FREEZE
    short = f"; cannot tell: run too short for the freeze ({MIN_STEPS_TO_FREEZE:,} steps needed)" if too_early else ""
    return [
        Check(
            "dead_moving_early",
            moving,
            config.min_dead_moving,
            moving >= config.min_dead_moving,
            f"{moving:.1%} of dead tokens moved a step in the first tenth ({config.min_dead_moving:.0%} needed)",
        ),
        Check(
            "dead_slowdown",
            slowdown,
            config.max_dead_slowdown,
            None if too_early else slowed,
            f"farther than one cell a step went {early:.1%} of them in the first tenth, {late:.1%} in the last "
            f"(at most {config.max_dead_slowdown:g} of it); {last_tenth(steps['dead_moving']):.1%} still move{short}",
        ),
    ]
