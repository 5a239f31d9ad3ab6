"""What fresh seeds show about recipes and sizes, for search.json and in words."""

from collections.abc import Mapping, Sequence
from typing import Any

from marble_sweep.humanize import baselines_in_words, counted
from marble_sweep.searches.fresh_seeds import Recipe
from marble_sweep.searches.pass_rate import PassRate, Standard, Tally, Verdict, interval, quick_bound
from marble_sweep.searches.seeds import trial_seed
from marble_sweep.searches.strategy import SearchState

MAX_NAMED = 3  # undecided or crashed sizes in a sentence; search.json has all


def percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def ruled_out_status(standard: Standard) -> str:
    """The status of a size that does not certify, as far as the standard shows it."""
    return "ruled_out" if isinstance(standard, PassRate) else "refuted"


def status_of(state: SearchState, size: int) -> str:
    """certified, ruled_out, too_slow, implied, undecided, crashed, open or untried.

    In the quick form refuted stands for ruled_out. A size is too_slow where the speed of some recipe helped to rule it
    out, and open where it was tried and is neither ruled out nor undecided.
    """
    if state.certified(size):
        return "certified"
    if size in state.refuted:
        return ruled_out_status(state.standard) if size in state.refuted_by_loss else "too_slow"
    if state.implied(size):
        return "implied"
    if size in state.undecided:
        return "undecided"
    if size in state.crashed:
        return "crashed"
    return "open" if size in state.by_size else "untried"


def standing(state: SearchState, size: int) -> str:
    """How far a certified size is confirmed, as `certified on 5 of 6 seeds, at least 16 to go`."""
    record = state.certified(size)
    assert record is not None
    tally = state.fresh.tally((size, record.recipe))
    seeds = f" on {tally.passed} of {counted(tally.seeds, 'seed')}" if tally.seeds else ""
    if seeds and tally.verdict == Verdict.ACCEPTED:
        return f"confirmed{seeds}"
    left = state.fresh.seeds_to_accept((size, record.recipe)) if seeds else 0
    return f"certified{seeds}{f', at least {left} to go' if left else ''}"


def standard_json(standard: Standard, confidence: float) -> dict[str, Any]:
    """What an answer has to show, and for the quick form what it does show."""
    if isinstance(standard, PassRate):
        return {"pass_rate": standard.rate, "confidence": confidence}
    shown = quick_bound(standard, confidence) if standard else 0.0
    return {"confirm_seeds": standard, "shows_pass_rate": shown, "confidence": confidence}


def tested_recipe(state: SearchState, seed: int, confidence: float, size: int, recipe: Recipe) -> dict[str, Any]:
    """What the fresh seeds of a recipe show; `seeds` are those that count, derived from the search's `seed`."""
    params, tally = state.space.params(size, recipe), state.fresh.tally((size, recipe))
    tested: dict[str, Any] = {
        "size": str(state.space.sizes[size]),
        "params": params,
        "verdict": str(tally.verdict),
        "passed": tally.passed,
        "undecided": tally.undecided,
        "seeds": [trial_seed(seed, params, index) for index in range(1, tally.seeds + 1)],
        "interval": list(interval(tally, confidence)),
    }
    if isinstance(state.standard, PassRate):
        number = state.fresh.number((size, recipe))
        tested |= {"number": number, "level": state.standard.level(number)}
        tested["max_seeds"] = state.standard.design(number).max_seeds
    return tested


def tested_recipes(state: SearchState, seed: int, confidence: float) -> list[dict[str, Any]]:
    """Every recipe that was trained on fresh seeds, in the order of its test."""
    return [tested_recipe(state, seed, confidence, *candidate) for candidate in state.fresh.results]


def evidence(standard: Standard, tally: Tally, confidence: float) -> str:
    """What fresh seeds show about an answer, as `certified on 34 of 35 fresh seeds: …`."""
    if standard == 0:
        return "not confirmed: search.confirm_seeds = 0"
    accepted = tally.verdict == Verdict.ACCEPTED
    if not isinstance(standard, PassRate):
        text = f"certified on {tally.passed} of {counted(standard, 'fresh seed')}"
        shown = f"a pass rate above {percent(quick_bound(standard, confidence))} at {percent(confidence)} confidence"
        so_far = f"certified on {tally.passed} of {counted(tally.seeds, 'fresh seed')}, of {standard} asked for"
        return f"{text}, the quick form: it shows {shown}" if accepted else f"not confirmed: {so_far}"
    text = f"certified on {tally.passed} of {counted(tally.seeds, 'fresh seed')}"
    if accepted:
        return f"{text}: a pass rate above {percent(standard.rate)} at {percent(confidence)} confidence"
    return f"not confirmed: {text}" if tally.seeds else "not confirmed: no fresh seed has ended"


def undecided_line(tested: Sequence[dict[str, Any]], sizes: Sequence[str]) -> str | None:
    """The undecided sizes, each with the recipe that came closest: its certified seeds and its interval."""
    if not sizes:
        return None
    named = []
    for size in sizes[:MAX_NAMED]:
        recipes = [recipe for recipe in tested if recipe["size"] == size and recipe["verdict"] == Verdict.UNDECIDED]
        closest = max(recipes, key=lambda recipe: recipe["interval"])
        low, high = map(percent, closest["interval"])
        named.append(
            f"{size} (certified on {closest['passed']} of {counted(len(closest['seeds']), 'seed')}: {low} to {high})"
        )
    more = f" and {len(sizes) - MAX_NAMED} more" if len(sizes) > MAX_NAMED else ""
    return f"Undecided, with the interval of its pass rate: {', '.join(named)}{more}."


def ruled_out_words(tested: Sequence[dict[str, Any]], sizes: Sequence[str]) -> str:
    """As `ruled out with 9 recipes on 41 seeds`."""
    recipes = [recipe for recipe in tested if recipe["size"] in sizes]
    seeds = sum(len(recipe["seeds"]) for recipe in recipes)
    return f"ruled out with {counted(len(recipes), 'recipe')} on {counted(seeds, 'fresh seed')}"


def trials_in_words(summary: Mapping[str, Any]) -> str:
    """How many trials a search has trained, and how many runs it has reused."""
    reused = f", {counted(summary['reused'], 'reused run')}" if summary["reused"] else ""
    return f"{counted(summary['trials'], 'trial')}{reused}"


def data_in_words(data: Mapping[str, Any]) -> str:
    """The baselines that the trials were judged by, and what they were measured on."""
    dropped = data["corpus"]["num_duplicates_dropped"]
    without = f"; {counted(dropped, 'held-out paragraph')} that training has too left out" if dropped else ""
    return f"Baselines of the search's trials: {baselines_in_words(data['baselines'])}{without}."


def crashes_in_words(crashes: Sequence[Mapping[str, Any]]) -> str:
    """As `2 sizes crashed: 0L4D (trials 3 and 4: RuntimeError: …), 1L2D (…)`."""
    named = []
    for crash in crashes[:MAX_NAMED]:
        *others, last = map(str, crash["trials"])
        numbers = f"{', '.join(others)} and {last}" if others else last
        reason = " ".join((crash["reason"] or "no reason is known").split())
        named.append(f"{crash['size']} (trial{'s' if others else ''} {numbers}: {reason})")
    more = f" and {len(crashes) - MAX_NAMED} more" if len(crashes) > MAX_NAMED else ""
    return f"{counted(len(crashes), 'size')} crashed: {', '.join(named)}{more}"
