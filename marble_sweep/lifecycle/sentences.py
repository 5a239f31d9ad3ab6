"""What a lifecycle comes to, in sentences for the head of the page."""

from collections.abc import Mapping
from typing import Any

from marble_sweep.lifecycle.freeze import MAX_THAWED
from marble_sweep.lifecycle.recorded import NORMS_ALONE
from marble_sweep.lifecycle.result import Lifecycle

UNTIED = (
    "The head has weights of its own (model.tied=false), so dead rows of the embedding get no gradient: only weight "
    "decay moves them, and that they freeze says nothing of gradients."
)


def describe(lifecycle: Lifecycle) -> list[str]:
    """Sentences that hold as they stand; what is not known is left out."""
    summary = lifecycle.summary
    first, last, total = (int(summary[key]) for key in ("first_step", "last_step", "n_dead"))
    diverged_step = summary.get("diverged_step")
    sentences = [
        None if diverged_step is None else diverged_sentence(summary["kind"], diverged_step, last),
        f"{total:,} dead tokens were recorded from step {first:,} to {last:,}. {counts(summary, total)}",
        UNTIED if summary.get("tied") is False else None,
        thaw_sentence(summary),
        time_sentence(summary, "freeze_median", "Half of them were frozen by step {}."),
        time_sentence(summary, "last_motion", "The last motion of any of them was at step {}."),
        time_sentence(
            summary,
            "lift_off_step",
            "From step {} on, the origin is farther from their centroid than the radius of their cloud.",
        ),
        masters_sentence(summary, total),
    ]
    return [sentence for sentence in sentences if sentence]


def diverged_sentence(kind: str, diverged_step: int, last_step: int) -> str:
    """Where a record stops being finite, and what that means for the rest."""
    what = "changes of weights" if kind == NORMS_ALONE else "weights"
    return (
        f"The run diverged: at step {diverged_step:,}, {what} are NaN or infinite. Everything here ends at step "
        f"{last_step:,}, the last recorded step before."
    )


def last_transition(summary: Mapping[str, Any]) -> str:
    """What a record shows last; one of every k-th step shows k steps at once."""
    every = summary["every"]
    return "the last step" if every == 1 else f"the last transition ({every:,} steps)"


def counts(summary: Mapping[str, Any], total: int) -> str:
    """How many are frozen, how many are undecided, and by which rule."""
    frozen, still, moving = (int(summary.get(key) or 0) for key in ("n_frozen", "n_not_moving", "n_moving"))
    quiet = int(summary["quiet_window"])
    return (
        f"{moving:,} moved in {last_transition(summary)}, {still:,} stood still for fewer than {quiet:,} steps, and "
        f"{frozen:,} ({frozen / max(1, total):.1%}) for that long or longer, which counts as frozen."
    )


def thaw_sentence(summary: Mapping[str, Any]) -> str | None:
    """A warning where the rule for a freeze is seen to fail."""
    if summary.get("n_thawed", 0) <= MAX_THAWED * summary["n_dead"]:
        return None
    return f"That is too short here: {summary['n_thawed']:,} stood still for that long and moved again."


def time_sentence(summary: Mapping[str, Any], key: str, sentence: str) -> str | None:
    value = summary.get(key)
    return None if value is None else sentence.format(f"{int(value):,}")


def masters_sentence(summary: Mapping[str, Any], total: int) -> str | None:
    moving = summary.get("n_masters_moving")
    if moving is None:
        return None
    return (
        "All this is said of the weights as bfloat16 shows them: their float32 masters changed in "
        f"{last_transition(summary)} for {moving:,} of the {total:,}."
    )
