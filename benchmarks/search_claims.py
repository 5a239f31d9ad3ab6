"""What a search says of sizes, and whether two searches contradict each other, from their search.json alone."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from marble_sweep.report.search import with_thresholds
from marble_sweep.searches.pass_rate import Tally, Verdict, interval

# Endings after which there is nothing left to do; an interrupted search, or one that met an error, goes on.
ENDED = ("settled", "undecided", "n_trials", "max_tokens", "max_minutes", "max_failures", "crashed")
EXCLUDED = ("ruled_out", "refuted", "implied", "too_slow")  # statuses that say: not this size
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Claims:
    """The claims of one search."""

    seed: int
    ended: str
    answer: str | None  # the size
    confirmed: bool  # whether that answer is
    statuses: Mapping[str, str]  # of the sizes that it has anything to say of
    params: Mapping[str, int]  # their numbers of parameters
    trials: int
    seconds: float

    def status(self, size: str, num_parameters: int) -> str:
        """`confirmed`, `unconfirmed` (certified on some seed), `excluded`, `undecided`, or `open`: nothing is said."""
        if size == self.answer and self.confirmed:
            return "confirmed"
        status = self.statuses.get(size)
        if status == "certified":
            return "unconfirmed"
        if status in EXCLUDED or (self.ended == "settled" and self._is_below_answer(num_parameters)):
            return "excluded"
        return "undecided" if status == "undecided" else "open"

    def _is_below_answer(self, num_parameters: int) -> bool:
        return self.answer is None or num_parameters < self.params[self.answer]


def claims_of(seed: int, search: Mapping[str, Any]) -> Claims:
    """What a search.json says of its only threshold."""
    search = with_thresholds(dict(search))
    search |= search["thresholds"][0]
    answer, rows = search["answer"], search["frontier"]
    statuses = {row["size"]: row["status"] for row in rows}
    statuses |= dict.fromkeys(search["undecided_below"], "undecided") | dict.fromkeys(
        search["ruled_out_below"], "ruled_out"
    )
    params = {row["size"]: row["n_params"] for row in rows}
    if answer is not None:
        params[answer["size"]] = answer["n_params"]
    return Claims(
        seed=seed,
        ended=search["ended"],
        answer=None if answer is None else answer["size"],
        confirmed=answer is not None and answer["confirmed"],
        statuses=statuses,
        params=params,
        trials=search["trials"],
        seconds=search["seconds"],
    )


def contradictions(first: Claims, second: Claims) -> list[str]:
    """The sizes that one of two searches confirms and the other excludes, each in a sentence.

    Where both have a confirmed answer, the smaller one must not be excluded by the search with the larger one, which
    is the same. A settled search excludes every size below its answer, and all where it has none.
    """
    told = []
    for confirming, other in ((first, second), (second, first)):
        if confirming.answer is None or not confirming.confirmed:
            continue
        if other.status(confirming.answer, confirming.params[confirming.answer]) == "excluded":
            told.append(f"seed {confirming.seed} confirms {confirming.answer}, seed {other.seed} excludes it")
    return told


def upper_bound(count: int, total: int) -> float:
    """The share that so few of `total` independent cases exclude at 95 %, one-sided: Clopper and Pearson's."""
    return interval(Tally(Verdict.OPEN, total, count), 2 * CONFIDENCE - 1)[1] if total else 1.0


@dataclass(frozen=True)
class Agreement:
    """How far searches that differ in their seeds alone agree."""

    searches: Sequence[Claims]  # by seed

    def told(self) -> list[str]:
        """The contradictions between all pairs."""
        return [sentence for pair in itertools.combinations(self.searches, 2) for sentence in contradictions(*pair)]

    def all_pairs(self) -> tuple[int, int]:
        """Contradicting pairs, and pairs. One search is in many of them, so they allow no bound."""
        return count_pairs(list(itertools.combinations(self.searches, 2)))

    def disjoint_pairs(self) -> tuple[int, int]:
        """The same of the first and second search, the third and fourth, …: independent pairs."""
        return count_pairs(list(zip(self.searches[::2], self.searches[1::2], strict=False)))

    def with_the_first(self) -> tuple[int, int]:
        """The same of the first search and every other: given the first, these are independent."""
        return count_pairs([(self.searches[0], other) for other in self.searches[1:]])

    def sizes(self) -> dict[str, Counter[str]]:
        """How many searches say what of every size, the smallest first."""
        params = {size: number for claims in self.searches for size, number in claims.params.items()}
        return {
            size: Counter(claims.status(size, params[size]) for claims in self.searches)
            for size in sorted(params, key=lambda size: (params[size], size))
        }

    def as_json(self) -> dict[str, Any]:
        counts = {
            "all_pairs": self.all_pairs(),
            "disjoint_pairs": self.disjoint_pairs(),
            "with_the_first": self.with_the_first(),
        }
        return {
            **{name: {"contradict": count, "of": total} for name, (count, total) in counts.items()},
            "at_most": {name: upper_bound(*counts[name]) for name in ("disjoint_pairs", "with_the_first")},
            "contradictions": self.told(),
            "sizes": {size: dict(counted) for size, counted in self.sizes().items()},
            "endings": dict(Counter(claims.ended for claims in self.searches)),
            "searches": [
                {
                    "seed": claims.seed,
                    "ended": claims.ended,
                    "answer": claims.answer,
                    "confirmed": claims.confirmed,
                    "trials": claims.trials,
                    "seconds": claims.seconds,
                }
                for claims in self.searches
            ],
        }

    def as_lines(self) -> list[str]:
        """The table of docs/truth.md, and what it comes to."""
        columns = ("confirmed", "unconfirmed", "undecided", "excluded", "open")
        lines = ["| size | " + " | ".join(columns) + " |", "|---|" + "--:|" * len(columns)]
        lines += [
            f"| {size} | {' | '.join(str(told[name]) for name in columns)} |" for size, told in self.sizes().items()
        ]
        endings = Counter(claims.ended for claims in self.searches)
        lines.append("Ended: " + ", ".join(f"{ended} {count}" for ended, count in endings.most_common()))
        lines += self.told()
        count, total = self.all_pairs()
        lines.append(f"{count} of {total} pairs contradict each other.")
        for name, (count, total) in {
            "disjoint pairs (1 and 2, 3 and 4, …)": self.disjoint_pairs(),
            "searches contradict the first one": self.with_the_first(),
        }.items():
            lines.append(f"{count} of {total} {name}: at most {upper_bound(count, total):.1%} at 95 % confidence.")
        return lines


def count_pairs(pairs: Sequence[tuple[Claims, Claims]]) -> tuple[int, int]:
    return sum(bool(contradictions(*pair)) for pair in pairs), len(pairs)
