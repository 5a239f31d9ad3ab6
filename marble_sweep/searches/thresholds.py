"""Several thresholds in one study: the trials as every one of them sees them.

A trial is trained for one threshold and ends as soon as that is decided. Its evaluations tell of the other thresholds
too. Where they leave one of them open, the trial does not count for it: if that threshold asks for the same trial, it
is continued from its saved state.
"""

from collections.abc import Sequence
from dataclasses import replace

from marble_sweep.config import Config
from marble_sweep.runs.status import RunStatus
from marble_sweep.searches.space import Value
from marble_sweep.searches.strategy import Proposal
from marble_sweep.searches.trial_record import STALE, TrialRecord


def thresholds_of(config: Config) -> list[str]:
    """The thresholds of a search, in the order in which they are searched."""
    return config.search.thresholds or [config.certify.threshold]


def settings_for(config: Config, threshold: str) -> dict[str, Value]:
    """What a trial for one of several thresholds has set; nothing where a search has one alone."""
    names = config.search.thresholds
    if names is None:
        return {}
    return {"certify.threshold": threshold, "certify.thresholds": f"[{','.join(names)}]"}


def trial_settings(config: Config, plan: Proposal) -> dict[str, Value]:
    """What a trial has set besides what is searched and its seed.

    A confirmation is evaluated on text that the search never looks at.
    """
    is_confirmation = plan.seed and config.trainer.eval_part == "search"
    part: dict[str, Value] = {"trainer.eval_part": "confirm"} if is_confirmation else {}
    return part | settings_for(config, plan.threshold)


def as_seen_by(threshold: str, records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The records as the search for one of several thresholds sees them.

    Of a configuration that was trained further for another threshold, the first record that decides counts.
    """
    seen, decided = [], set()
    for record in records:
        configuration = record.size, record.recipe, record.seed
        if configuration in decided:
            continue
        is_own = record.threshold == threshold
        if record.outcome in (RunStatus.RUNNING, STALE, RunStatus.FAILED):
            if is_own or record.outcome != STALE:  # whoever it was for retries it
                seen.append(record if is_own else replace(record, margins={}))
        elif (standing := record.standings[threshold]).outcome is not None:
            decided.add(configuration)
            seen.append(replace(record, outcome=standing.outcome, margins=standing.margins))
    return seen


def is_easier(first: str, second: str, records: Sequence[TrialRecord]) -> bool:
    """Whether the first threshold is a loss as high as the second one or higher, by the first trial that tells."""
    for record in records:
        losses = [record.standings[name].loss for name in (first, second) if name in record.standings]
        if len(losses) == 2 and losses[0] is not None and losses[1] is not None:
            return losses[0] >= losses[1]
    return False
