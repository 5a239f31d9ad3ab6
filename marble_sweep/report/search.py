"""search.json, which a search writes beside its trials."""

from collections.abc import Sequence
from typing import Any

from marble_sweep.runs import layout
from marble_sweep.runs.damage import NUMBER, OR_NULL, TEXT, WHOLE, DamageError, Kinds, is_kind, keep_sound, read_json
from marble_sweep.runs.renamed import with_current_names
from marble_sweep.runs.run import Run
from marble_sweep.terminal import printable

COST: Kinds = {"cost": NUMBER, "n_params": WHOLE}  # earlier versions have no cost
DRAWN: Kinds = {"status": TEXT, "n_params": WHOLE, "margin": NUMBER + OR_NULL, "margin_se": NUMBER + OR_NULL}
# Of a frontier.
SIZE: Kinds = {"size": TEXT, "n_params": WHOLE, "loss": NUMBER + OR_NULL}
THRESHOLD: Kinds = {"threshold": TEXT, "loss": NUMBER + OR_NULL}
# What a search may minimise other than n_params, which every row of a comparison has.
COST_COLUMNS = ("non_embedding", "flops_per_token", "seconds_per_step")
# What search.json says of every threshold.
OF_A_THRESHOLD = (
    *("threshold", "answer", "smaller_unconfirmed", "tested_recipes", "undecided_below", "ruled_out_below"),
    *("largest_refuted_below", "sizes_below", "crashes", "frontier"),
)


def read_search(runs: Sequence[Run]) -> tuple[dict[str, Any] | None, list[str]]:
    """The search.json of the search that all these runs are trials of, reused or not, and a line for a damaged one.

    None where the runs are not trials of one search, or the file is damaged.
    """
    directories = [run.path.resolve() for run in runs]
    folders = dict.fromkeys(directory.parent for directory in directories)
    damages = []
    for folder in folders:
        path = folder / layout.SEARCH
        try:
            summary = with_thresholds(with_current_names(read_json(path)))
            _require_lines(summary)
        except FileNotFoundError:
            continue
        except DamageError as error:
            damages.append(printable(f"damaged: {path}: {error}"))
            continue
        reused = summary.get("reused_runs")
        named = set(map(str, reused)) if isinstance(reused, list) else set()
        if all(directory.parent == folder or str(directory) in named for directory in directories):
            return summary, []
    return None, damages if len(folders) == 1 else []


def with_thresholds(summary: dict[str, Any]) -> dict[str, Any]:
    """search.json in this version's form: an earlier one had what concerns its only threshold beside the rest."""
    if "version" in summary:
        return summary
    shared = {name: value for name, value in summary.items() if name not in OF_A_THRESHOLD}
    return shared | {"version": 1, "thresholds": [{name: summary[name] for name in OF_A_THRESHOLD if name in summary}]}


def cost_column(summary: dict[str, Any], runs: Sequence[Run]) -> tuple[str, list[float | None]] | None:
    """What a search has minimised other than parameters, and that of the size of each run; None where it has not.

    A run whose size search.json does not name, as it may be damaged, has None.
    """
    name, thresholds = summary.get("minimise"), summary.get("thresholds")
    if not isinstance(name, str) or name not in COST_COLUMNS or not isinstance(thresholds, list):
        return None
    frontiers = [threshold.get("frontier") for threshold in thresholds if isinstance(threshold, dict)]
    rows = [row for frontier in frontiers if isinstance(frontier, list) for row in frontier]
    sizes = [row for row in rows if _is_sound(row, {"cost": NUMBER}) and isinstance(row.get("params"), dict)]

    def cost(run: Run) -> float | None:
        config = run.config
        for size in sizes:
            if all(config.get(key, config.get(f"{key}.name")) == value for key, value in size["params"].items()):
                return float(size["cost"])
        return None

    return name, [cost(run) for run in runs]


def can_be_drawn(summary: dict[str, Any]) -> bool:
    """Whether search.json holds what its plots show."""
    if summary.get("question") == "frontier":
        return _has_sizes_and_law(summary)
    thresholds, errors = summary.get("thresholds"), summary.get("standard_errors_each_evaluation")
    is_list = isinstance(thresholds, list) and len(thresholds) > 0
    return is_list and all(_is_whole(threshold) for threshold in summary["thresholds"]) and is_kind(errors, NUMBER)


def _is_whole(threshold: Any) -> bool:
    """Whether an entry of `thresholds` holds what its plot shows."""
    if not isinstance(threshold, dict):
        return False
    rows, answer = threshold.get("frontier"), threshold.get("answer")
    return (
        isinstance(rows, list)
        and all(_is_sound(row, DRAWN) and _has_cost(row) for row in rows)
        and all(is_kind(row.get("margin_df"), NUMBER + OR_NULL) for row in rows)  # earlier versions have none
        and (answer is None or (_is_sound(answer, {"n_params": WHOLE, "size": TEXT}) and _has_cost(answer)))
        and (answer is None or "confirmed" in answer)
        and "threshold" in threshold
    )


def _has_cost(size: dict[str, Any]) -> bool:
    return not keep_sound(size, COST)[1] and size.get("cost", size["n_params"]) > 0


def _has_sizes_and_law(summary: dict[str, Any]) -> bool:
    """Whether the search.json of a frontier holds what its plot shows."""
    sizes, thresholds, law = (summary.get(name) for name in ("sizes", "thresholds", "law"))
    if not (isinstance(sizes, list) and isinstance(thresholds, list) and isinstance(law, dict)):
        return False
    is_law = law.get("refused") is not None or all(_is_interval(law.get(name)) for name in ("E", "alpha"))
    curve = law.get("curve", [])
    return (
        is_law
        and all(_is_sound(row, SIZE) and row["n_params"] > 0 for row in sizes)
        and all(_is_interval(row.get("interval"), 2) and isinstance(row.get("tuned"), bool) for row in sizes)
        and all(_is_sound(row, THRESHOLD) and _is_interval(row.get("predicted")) for row in thresholds)
        and isinstance(summary.get("staircase"), list)
        and isinstance(curve, list)
        and all(row is not None and _is_interval(row, 4) for row in curve)
    )


def _is_interval(value: Any, length: int = 3) -> bool:
    """Whether it is null, or so many numbers, any of which may be null."""
    is_list = isinstance(value, list) and len(value) == length
    return value is None or (is_list and all(is_kind(number, NUMBER + OR_NULL) for number in value))


def _is_sound(row: Any, kinds: Kinds) -> bool:
    return isinstance(row, dict) and kinds.keys() <= row.keys() and not keep_sound(row, kinds)[1]


def _require_lines(summary: dict[str, Any]) -> None:
    lines = summary.get("summary_lines")
    if not isinstance(lines, list) or not lines or not all(isinstance(line, str) for line in lines):
        raise DamageError("must have summary_lines, a list of sentences")
