"""The keys of earlier versions: refused on a command line with the new one, mapped where a file has them."""

from collections.abc import Mapping
from typing import Any

RENAMED_KEYS = {
    "trainer.eval_interval": "trainer.num_evals, the number of evaluations of a run",
    "certify.looks": "trainer.num_evals, with trainer.eval_spacing=geometric",
    "search.min_steps_per_minute": "certify.min_steps_per_minute",
    "verdict.min_off_unigram": "verdict.min_non_unigram_top1",
}


def with_current_keys(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted key, as any version saved them, under the keys of this one.

    An interval between evaluations that does not divide the run becomes the nearest number of evaluations. What is
    damaged stays as it is.
    """
    current = dict(settings)
    if "verdict.min_off_unigram" in current:
        current["verdict.min_non_unigram_top1"] = current.pop("verdict.min_off_unigram")
    looks, interval = current.get("certify.looks", 0), current.get("trainer.eval_interval", 0)
    total_steps = current.get("trainer.total_steps")
    is_saved = "certify.looks" in current or "trainer.eval_interval" in current
    if not is_saved or not all(type(number) is int and number >= 0 for number in (looks, interval, total_steps)):
        return current
    for key in ("certify.looks", "trainer.eval_interval"):
        current.pop(key, None)
    linear = max(1, round(total_steps / interval)) if interval else 1
    current["trainer.num_evals"] = looks or linear
    current["trainer.eval_spacing"] = "geometric" if looks else "linear"
    return current
