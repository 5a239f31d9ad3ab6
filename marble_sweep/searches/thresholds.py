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


def trial_settings(config: Config, plan: Proposal) -> dict[str, Value]:
    """What a trial has set besides what is searched and its seed.

    A confirmation is evaluated on text that the search never looks at.
    """
    is_confirmation = plan.seed and config.trainer.eval_part == "search"
    settings: dict[str, Value] = {"trainer.eval_part": "confirm"} if is_confirmation else {}
    if (names := config.search.thresholds) is not None:
        settings["certify.thresholds"] = f"[{','.join(names)}]"
        if plan.threshold:
            settings["certify.threshold"] = plan.threshold
    return settings


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
