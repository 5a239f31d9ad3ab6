"""The success criteria of a run. A criterion is a few checks: a value, a threshold, pass or fail, and a sentence."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from marble_sweep.config import VerdictConfig
from marble_sweep.metrics.margin import beats, degrees_of_freedom
from marble_sweep.runs.renamed import current_name
from marble_sweep.uncertainty.student import student_errors

MIN_LAG = 100  # steps: over fewer, h_mean looks frozen in every model


@dataclass(frozen=True)
class Check:
    """One measured number against one threshold. `passed` is None where it could not be measured."""

    name: str
    value: float | None
    threshold: float | None
    passed: bool | None
    reading: str  # one sentence
    decides: bool = True  # whether its criterion stands or falls with it


@dataclass(frozen=True)
class Criterion:
    name: str
    checks: list[Check]

    @property
    def passed(self) -> bool | None:
        """True if every deciding check passed, False if one failed, else None: one could not be measured."""
        results = [check.passed for check in self.checks if check.decides]
        if False in results:
            return False
        return None if None in results else True


@dataclass(frozen=True)
class Verdict:
    """What a run's files say about it. `beats_unigram` is None where nothing was held out."""

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
        lines = []
        for number, criterion in enumerate(self.criteria, start=1):
            lines.append(f"{labels[criterion.passed]:<4}  {number}. {criterion.name}")
            for check in criterion.checks:
                mark = labels[check.passed] if check.decides else {True: "yes", False: "no", None: "n/a"}[check.passed]
                lines.append(f"        {mark:<4}  {check.reading}")
        return "\n".join(lines)


def judge(config: VerdictConfig, steps: pd.DataFrame, evals: pd.DataFrame, lag: int) -> Verdict:
    """Judge a run by its metrics.csv and evals.csv; `lag` is that of the h_autocorr_lag column, in steps.

    Where the run diverged, what came before is judged.
    """
    # The step that diverged is left out, and steps whose weights are NaN.
    shares = ["dead_early", "dead_midlife", "dead_late", "dead_frozen"]
    steps = steps[np.isfinite(steps["loss"]) & ~(steps[shares].sum(axis=1) == 0) | steps["dead_moving"].isna()]
    final = dict(zip(evals.columns, evals.iloc[-1], strict=True)) if len(evals) else None
    margins = {name: _margin(config, final, name) for name in ("unigram", "oracle", "bigram")}
    return Verdict(
        criteria=[
            Criterion("The model beats unigram loss", [*_loss_checks(config, steps, margins)]),
            Criterion("Predictions depend on context, usefully", _context_checks(config, final)),
            Criterion("The hidden state changes direction", [_direction_check(config, steps, lag)]),
            Criterion("Dead tokens move, then slow towards the freeze", _dead_checks(config, steps)),
        ],
        beats_unigram=margins["unigram"].passed,
        beats_oracle=margins["oracle"].passed,
        beats_bigram=margins["bigram"].passed,
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


def finite(value: float) -> float | None:
    """The value, or None for NaN and infinities, which JSON does not have."""
    return value if math.isfinite(value) else None


_BASELINES = {
    "unigram": ("fitted unigram", "it learnt more than word frequencies", "no more than word frequencies is shown"),
    "oracle": ("oracle unigram", "context is proven to be used", "use of context is not proven by loss alone"),
    "bigram": ("bigram", "it uses more than one token of context", "use of more than one token is not shown"),
}


def _margin(config: VerdictConfig, final: dict[str, Any] | None, name: str) -> Check:
    label, won, lost = _BASELINES[name]
    passed, errors_needed = _beats(config, final, f"{name}_margin")
    if final is None or passed is None:
        reading = f"held-out loss against {label}: {_not_measured(final)}"
        return Check(f"{name}_margin_in_se", None, errors_needed, None, reading, decides=name == "unigram")
    margin, error = final[f"{name}_margin"], final[f"{name}_margin_se"]
    errors = in_standard_errors(margin, error)
    side = "below" if margin > 0 else "above"
    reading = (
        f"held-out loss {final['val_loss']:.3f} is {abs(margin):.3f} ± {error:.3f} nats {side} {label} "
        f"({errors:+.1f} standard errors, {errors_needed:.3g} needed{_what_error(final, f'{name}_margin')}): "
        f"{won if passed else lost}"
    )
    return Check(
        f"{name}_margin_in_se", finite(errors), finite(errors_needed), passed, reading, decides=name == "unigram"
    )


def _beats(config: VerdictConfig, final: dict[str, Any] | None, name: str) -> tuple[bool | None, float]:
    """Whether a column of the last evaluation is above 0 for certain, and the standard errors needed for that."""
    if final is None:
        return None, config.min_standard_errors
    df = degrees_of_freedom(final, name)
    errors_needed = student_errors(config.min_standard_errors, df)
    return beats(final[name], final[f"{name}_se"], config.min_standard_errors, df), errors_needed


def _what_error(final: dict[str, Any], name: str) -> str:
    """What the standard error counts, as the end of a sentence; empty for an evaluation of an earlier version."""
    clusters, factor = final.get(f"{name}_clusters", math.nan), final.get(f"{name}_se_factor", math.nan)
    if math.isnan(clusters) or math.isnan(factor):
        return ""
    kind = "clusters of whole documents" if final[f"{name}_by_document"] else "blocks of neighbouring windows"
    return f" with {clusters:.0f} {kind}; {factor:.1f} times the error of independent windows"


def _not_measured(final: dict[str, Any] | None) -> str:
    """Why the last evaluation, if there is one, cannot be judged."""
    if final is not None and not math.isfinite(final["val_loss"]):
        return f"not measured (the held-out loss is {final['val_loss']})"
    if final is not None and final.get("unigram_margin_clusters", 0) > 1:
        return "not measured (the held-out windows depend on each other over too many of them; hold out more text)"
    return "not measured (no evaluation of two held-out windows or more)"


def _loss_checks(config: VerdictConfig, steps: pd.DataFrame, margins: dict[str, Check]) -> list[Check]:
    losses = steps["loss"][np.isfinite(steps["loss"])]
    loss = last_tenth(losses) if len(losses) else None
    below = None if loss is None else loss < config.target_loss
    shown = "not measured" if loss is None else f"{loss:.3f} (last tenth of the run)"
    reading = f"training loss {shown}, target {config.target_loss:g}"
    target = Check("training_loss", loss, config.target_loss, below, reading, decides=False)
    return [margins["unigram"], margins["oracle"], margins["bigram"], target]


def _context_checks(config: VerdictConfig, final: dict[str, Any] | None) -> list[Check]:
    passed, errors_needed = _beats(config, final, "context_gain")
    if final is None or passed is None:
        nothing = _not_measured(final)
        return [
            Check("context_gain_in_se", None, errors_needed, None, f"gain from the true context: {nothing}"),
            Check(
                "non_unigram_top1", None, config.min_non_unigram_top1, None, f"predictions off the unigram: {nothing}"
            ),
        ]
    gain, error = final["context_gain"], final["context_gain_se"]
    errors = in_standard_errors(gain, error)
    off = final["non_unigram_top1"]
    return [
        Check(
            "context_gain_in_se",
            finite(errors),
            finite(errors_needed),
            passed,
            f"behind another window's context the same targets cost {gain:+.3f} ± {error:.3f} nats more "
            f"({errors:+.1f} standard errors, {errors_needed:.3g} needed{_what_error(final, 'context_gain')})",
        ),
        Check(
            "non_unigram_top1",
            off,
            config.min_non_unigram_top1,
            off >= config.min_non_unigram_top1,
            f"{off:.1%} of top predictions are none of the unigram's top three "
            f"({config.min_non_unigram_top1:.0%} needed)",
        ),
    ]


def _direction_check(config: VerdictConfig, steps: pd.DataFrame, lag: int) -> Check:
    threshold = config.min_direction_change
    # Batches alone turn h_mean a little from one step to the next; only what the lag adds is motion.
    change = last_tenth(steps["h_autocorr"]) - last_tenth(steps["h_autocorr_lag"])
    if math.isnan(change) or lag < MIN_LAG:
        short = f"; a run of {4 * MIN_LAG} steps is needed" if lag < MIN_LAG else ""
        return Check("direction_change", None, threshold, None, f"h_mean over {lag} steps: not measured{short}")
    passed = change >= threshold
    meaning = "it still changes direction" if passed else "it has converged to a point"
    reading = f"over {lag} steps h_mean turned by 1 - cos = {change:.4f} beyond batch noise ({threshold:g} needed)"
    return Check("direction_change", change, threshold, passed, f"{reading}: {meaning}")


def _dead_checks(config: VerdictConfig, steps: pd.DataFrame) -> list[Check]:
    moving = first_tenth(steps["dead_moving"])
    # The mean displacement would be decided by a few weights near zero, where cells are tiny.
    far = steps["dead_early"] + steps["dead_midlife"]
    early, late = first_tenth(far), last_tenth(far)
    if math.isnan(moving):
        nothing = "there are no dead tokens"
        return [
            Check("dead_moving_early", None, config.min_dead_moving, None, nothing),
            Check("dead_slowdown", None, config.max_dead_slowdown, None, nothing),
        ]
    slowdown = late / early if early > 0 else None
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
            None if slowdown is None else slowdown <= config.max_dead_slowdown,
            f"farther than one cell a step went {early:.1%} of them in the first tenth, {late:.1%} in the last "
            f"(at most {config.max_dead_slowdown:g} of it); {last_tenth(steps['dead_moving']):.1%} still move",
        ),
    ]
