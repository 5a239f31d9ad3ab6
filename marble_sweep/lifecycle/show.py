"""A lifecycle on one screen."""

import textwrap
from collections.abc import Iterator
from typing import Any

import pandas as pd

from marble_sweep.lifecycle.freeze import CONSTANT_LR, MAX_THAWED
from marble_sweep.lifecycle.result import Lifecycle
from marble_sweep.lifecycle.sentences import UNTIED, diverged_sentence, last_transition
from marble_sweep.terminal import printable

WIDTH, INDENT = 120, 12
SHOWN_STRAGGLERS, SHOWN_EPOCHS = 12, 10
TEXT = 16  # characters of a token's text
WHAT = {  # by kind of record
    "dead": "norms of the dead tokens' motion",
    "tracers": "positions of some tokens",
    "full": "positions of all tokens",
}


def text(life: Lifecycle) -> str:
    """What the record says, in lines of at most WIDTH characters."""
    lines = [("recorded", record_line(life.summary))]
    if (step := life.summary.get("diverged_step")) is not None:
        lines.append(("ends early", diverged_sentence(life.summary["kind"], step, life.summary["last_step"])))
    if life.summary.get("tied") is False:
        lines.append(("untied", UNTIED))
    lines += [*motion_lines(life), *cloud_lines(life), *masters_lines(life)]
    return "\n".join(
        textwrap.fill(printable(line), WIDTH, initial_indent=f"{name:<{INDENT - 1}} ", subsequent_indent=" " * INDENT)
        for name, line in lines
    )


def record_line(summary: dict[str, Any]) -> str:
    every = "every step" if summary["every"] == 1 else f"every {summary['every']:,} steps"
    return (
        f"{summary['kind']} ({WHAT[summary['kind']]}), {summary['num_tokens']:,} tokens, {summary['n_dead']:,} "
        f"of them dead; steps {summary['first_step']:,} to {summary['last_step']:,}, {every}"
    )


def motion_lines(life: Lifecycle) -> Iterator[tuple[str, str]]:
    """Phases, freezing, pauses, the learning rate and the stragglers."""
    summary = life.summary
    number = {key: at(value) for key, value in summary.items() if value is None or isinstance(value, int)}
    if summary["last_motion"] is not None:
        yield "phases", phases_line(summary, number)
    yield "frozen", frozen_line(summary, number)
    if summary["half_freeze_step"] is not None:
        span = "step" if summary["every"] == 1 else f"transition ({summary['every']:,} steps)"
        yield "half", f"from step {number['half_freeze_step']} on, at most half of the dead tokens move in any {span}"
    window = f"a freeze counts behind {number['quiet_window']} steps without motion"
    if summary["n_thawed"] > MAX_THAWED * summary["n_dead"]:
        window += f", and that is too few here: {number['n_thawed']} tokens moved again after that many"
    yield "window", f"{window}; the longest pause that ended in motion was {number['longest_pause']} steps"
    if summary["n_frozen_constant_lr"] is not None:
        yield (
            "rate",
            f"{number['n_frozen_constant_lr']} froze at {CONSTANT_LR:.0%} or more of the highest learning rate until "
            f"then, {number['n_frozen_decayed_lr']} under a lower one",
        )
    if summary["n_stragglers"]:
        yield "stragglers", straggler_line(life.tokens)


def phases_line(summary: dict[str, Any], number: dict[str, str]) -> str:
    """When the phases end, in the median of the tokens that have them."""
    parts = [
        f"{phase} ends at step {number[key]}"
        for phase, key in (("early (jumps of many cells)", "early_median"), ("midlife", "midlife_median"))
        if summary[key] is not None
    ]
    medians = [f"{' and '.join(parts)}, in the median of the dead tokens that have it"] if parts else []
    return "; ".join([*medians, f"the last motion of all is at step {number['last_motion']}"])


def frozen_line(summary: dict[str, Any], number: dict[str, str]) -> str:
    """How many dead tokens froze, by when, and what the others do."""
    parts = [f"{number['n_frozen']} of {number['n_dead']} dead tokens"]
    if summary["freeze_median"] is not None:
        parts.append(f"half of all by step {number['freeze_median']}")
    if summary["freeze_last"] is not None:
        parts.append(f"the last at step {number['freeze_last']}")
    if summary["n_not_moving"]:
        parts.append(f"{number['n_not_moving']} not moving since fewer than {number['quiet_window']} steps")
    if summary["n_moving"]:
        parts.append(f"{number['n_moving']} moving in {last_transition(summary)}")
    return ", ".join(parts)


def straggler_line(tokens: pd.DataFrame) -> str:
    """The stragglers that moved last first."""
    stragglers = tokens[tokens["is_straggler"]].sort_values("last_motion", ascending=False)
    shown_first = stragglers.head(SHOWN_STRAGGLERS)
    shown = [
        f"{token}{f' {short(text)}' if text else ''} (step {last:,.0f})"
        for token, text, last in shown_first[["token", "text", "last_motion"]].to_numpy().tolist()
    ]
    more = f" and {len(stragglers) - len(shown):,} more" if len(stragglers) > len(shown) else ""
    return f"{len(stragglers):,}: {', '.join(shown)}{more}"


def cloud_lines(life: Lifecycle) -> Iterator[tuple[str, str]]:
    """Where the cloud is at the end, its epochs, its black holes; nothing where the record has no positions."""
    if not life.axis.size:
        return
    summary, end = life.summary, life.steps.iloc[-1]
    yield (
        "cloud",
        f"at the end {end['centroid_norm']:.4g} from the origin, {end['centroid_along']:.4g} along −h̄ and "
        f"{end['centroid_across']:.4g} across; radius {end['radius']:.4g} ({end['spread_along']:.4g} along, "
        f"{end['spread_across']:.4g} across)"
        + (f"; {end['live_distance']:.4g} from the live tokens' centroid" if pd.notna(end["live_distance"]) else ""),
    )
    if summary["lift_off_step"] is None:
        yield "lift-off", "the origin is inside the cloud's radius at the end"
    else:
        yield "lift-off", f"the origin is outside the cloud's radius from step {at(summary['lift_off_step'])} on"
    epochs = [
        f"{row.kind} {row.start:,}–{row.end:,} ({row.radius_start:.4g} → {row.radius_end:.4g})"
        for row in life.epochs.head(SHOWN_EPOCHS).itertuples()
    ]
    if epochs:
        more = f" and {len(life.epochs) - SHOWN_EPOCHS} more" if len(life.epochs) > SHOWN_EPOCHS else ""
        yield "radius", ", ".join(epochs) + more
    yield "identical", holes(summary)


def holes(summary: dict[str, Any]) -> str:
    if not summary["n_black_holes"]:
        return "no two dead rows are identical at the end"
    number, largest = summary["n_black_holes"], f"{summary['largest_black_hole']:,} identical dead rows"
    if number == 1:
        return f"at the end a black hole of {largest}"
    return f"at the end {number:,} black holes, the largest of {largest}"


def masters_lines(life: Lifecycle) -> Iterator[tuple[str, str]]:
    """How the float32 master weights move, where the record has them."""
    if "n_masters_moving" in life.summary:
        moving, last = life.summary["n_masters_moving"], at(life.summary["masters_last_motion"])
        yield (
            "masters",
            f"all above is the weights rounded to bfloat16; the float32 masters of {moving:,} of "
            f"{life.summary['n_dead']:,} dead tokens change in {last_transition(life.summary)} (last change of all at "
            f"step {last})",
        )


def at(step: int | None) -> str:
    return "none" if step is None else f"{step:,}"


def short(text: str) -> str:
    """A token's text in quotes."""
    return repr(text if len(text) <= TEXT else f"{text[:TEXT]}…")
