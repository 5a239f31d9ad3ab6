"""A frontier in words."""

from collections.abc import Mapping
from typing import Any

from marble_sweep.humanize import counted, duration, interval_words
from marble_sweep.searches.outcome import ENDINGS
from marble_sweep.searches.standing import crashes_in_words, data_in_words, trials_in_words

THRESHOLDS = {"unigram": "the best unigram", "oracle": "the oracle unigram", "bigram": "the bigram"}


def frontier_lines(summary: Mapping[str, Any], workers: int) -> list[str]:
    """The staircase, the law, what it predicts, and the cost, in lines."""
    by_name = {row["size"]: row for row in summary["sizes"]}
    lines = [_budget_line(summary)]
    lines += [f"  {_size_line(by_name[name])}" for name in summary["staircase"]]
    measured = [row for row in summary["sizes"] if row["loss"] is not None]
    untuned = [row["size"] for row in measured if not row["tuned"]]
    if untuned:
        lines.append(
            f"Not tuned, and not in the law: {', '.join(untuned)}: their best recipes lack a worse neighbour on "
            "some side, or diverged on a fresh seed."
        )
    lines += _law_lines(summary["law"]) if summary["ended"] != "running" else []
    lines += [_threshold_line(threshold) for threshold in summary["thresholds"]]
    if summary["crashes"]:
        lines.append(f"{crashes_in_words(summary['crashes'])}.")
    together = f" of {workers} workers together" if workers > 1 else ""
    lines.append(
        f"{ENDINGS[summary['ended']]} after {trials_in_words(summary)}, {summary['tokens'] / 1e6:.1f} M tokens and "
        f"{duration(summary['seconds'])}{together}."
    )
    if summary["data"] is not None:
        lines.append(data_in_words(summary["data"]))
    return lines


def _budget_line(summary: Mapping[str, Any]) -> str:
    budget = summary["budget"]
    within = f"{budget['total_steps']:,} steps of {budget['batch_size']} x {budget['seq_len']} tokens"
    tuned = sum(row["tuned"] for row in summary["sizes"])
    sizes = counted(len(summary["sizes"]), "size")
    return (
        f"The lowest held-out losses after {within}: {sizes}, {tuned} of them tuned; no smaller size has a lower "
        "loss than these:"
    )


def _size_line(row: Mapping[str, Any]) -> str:
    settings = " ".join(f"{key.rpartition('.')[2]}={value}" for key, value in row["params"].items())
    certified = [name for name, standing in row["thresholds"].items() if standing == "certified"]
    seeds = counted(len(row["losses"]), "seed")
    beats = f", beats {', '.join(certified)}" if certified else ""
    tuned = "" if row["tuned"] else ", not tuned"
    return f"{row['n_params']:>9,} parameters: {row['loss']:.4f} on {seeds} ({settings}){beats}{tuned}"


def _law_lines(law: Mapping[str, Any]) -> list[str]:
    if law["refused"] is not None:
        return [f"There is no law: {law['refused']}."]
    level, alpha = interval_words(law["E"], ".3f"), interval_words(law["alpha"], ".2f")
    return [
        f"The law of {counted(len(law['sizes']), 'tuned size')}: loss = E + A / parameters^α with E = {level}, α = "
        f"{alpha} and A = {interval_words(law['A'], ',.0f')}; in brackets 95 % intervals. It says nothing outside "
        f"{law['smallest_predicted']:,.0f} to {law['largest_predicted']:,.0f} parameters."
    ]


def _threshold_line(threshold: Mapping[str, Any]) -> str:
    """What was found of a threshold, and what the law predicts."""
    name = THRESHOLDS.get(threshold["threshold"], "a loss")
    loss = "" if threshold["loss"] is None else f" ({threshold['loss']:.3f})"
    answer = threshold["answer"]
    found = (
        "no size beats it" if answer is None else f"{answer['size']} with {answer['n_params']:,} parameters beats it"
    )
    if threshold["predicted"] is None:
        law = "" if threshold["not_predicted"] is None else f"; by the law {threshold['not_predicted']}"
        return f"{name[0].upper()}{name[1:]}{loss}: {found}{law}."
    reached = interval_words(threshold["predicted"], ",.0f")
    return f"{name[0].upper()}{name[1:]}{loss}: {found}; by the law it is reached at {reached} parameters."
