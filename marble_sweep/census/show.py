"""A census on one screen."""

import textwrap
from collections.abc import Iterator
from typing import Any

import pandas as pd

from marble_sweep.census.vocabulary import NEVER
from marble_sweep.humanize import counted
from marble_sweep.terminal import printable

WIDTH = 120
SHOWN_HOLES, SHOWN_SINGLETONS, SHOWN_IDS, SHOWN_EXPONENTS = 15, 5, 3, 6
SMALLEST_SHARE = 0.0005  # that is not shown as 0.0%
TEXT = 12  # characters of a token's text


def text(
    summary: dict[str, Any],
    black_holes: pd.DataFrame,
    tokens: pd.DataFrame,
    singletons: pd.DataFrame,
    exponents: pd.DataFrame,
) -> str:
    """The summary, the largest black holes and the nearest singletons."""
    lines = {
        "file": summary["file"],
        "tensor": f"{summary['tensor']} ({summary['tensor_choice']}), {summary['num_rows']:,} x {summary['dim']:,} "
        f"{summary['dtype']}{lattice_note(summary)}",
        **values_lines(summary, exponents),
        "identical": f"{summary['num_identical']:,} rows in {counted(summary['num_black_holes'], 'black hole')}"
        if summary["num_identical"]
        else "no two rows are identical",
        **cluster_lines(summary, exponents),
    }
    if summary["num_never_produced"] is not None and len(tokens):
        never, of_all = summary["num_never_produced"], f"{len(tokens):,} tokens of these rows"
        lines["texts"] = f"no text produces {never:,} of the {of_all}" if never else f"a text can produce all {of_all}"
    head = [
        textwrap.fill(printable(line), WIDTH, initial_indent=f"{name:<11} ", subsequent_indent=" " * 12)
        for name, line in lines.items()
    ]
    return "\n".join([*head, *holes_lines(black_holes, tokens), *singleton_lines(singletons)])


def lattice_note(summary: dict[str, Any]) -> str:
    if summary["lattice"] == summary["dtype"]:
        return ""
    return f", on the lattice of {summary['lattice']}"


def values_lines(summary: dict[str, Any], exponents: pd.DataFrame) -> dict[str, str]:
    """The tokenizer's size, rows that are zero or not finite, and the commonest exponents."""
    lines = {}
    if summary["num_tokens"] is not None:
        missing = summary["num_rows"] - summary["num_tokens"]
        lines["tokenizer"] = f"{summary['num_tokens']:,} tokens; {counted(missing, 'row')} beyond them"
    rows = [
        f"{counted(summary[key], 'row')} {what}"
        for key, what in (("num_not_finite", "with NaN or infinity"), ("num_zero_rows", "of zeros"))
        if summary[key]
    ]
    if rows:
        lines["rows"] = ", ".join(rows)
    lines["exponents"] = commonest(exponents, "count")
    return lines


def commonest(exponents: pd.DataFrame, column: str) -> str:
    """The commonest exponents with their shares."""
    normal = exponents[exponents["exponent"].notna()].nlargest(SHOWN_EXPONENTS, column)
    total = exponents[column].sum()
    pairs = zip(normal["exponent"], normal[column], strict=True)
    return ", ".join(
        f"2^{exponent} {count / total:.1%}" for exponent, count in pairs if count / total >= SMALLEST_SHARE
    )


def cluster_lines(summary: dict[str, Any], exponents: pd.DataFrame) -> dict[str, str]:
    """The tight cluster, and how it compares with the dead tokens where they are known."""
    cluster = summary["cluster"]
    if cluster is None:
        lines = {"suspected": "no tight cluster of rows, so no rows are suspected to be dead"}
    else:
        times = cluster["next_distance"] / cluster["radius"] if cluster["radius"] else float("inf")
        lines = {
            "suspected": f"{cluster['num_rows']:,} rows in a tight cluster, probably dead: "
            f"{cluster['num_in_black_holes']:,} in black holes, {cluster['num_singletons']:,} singletons",
            "cluster": f"radius {cluster['radius']:.4g}, the nearest other row is {times:.3g} times as far from the "
            f"centre; in a box of {cluster['box_cells']:,.4g} cells in the widest dimension, "
            f"{cluster['median_cells']:,.4g} in the median",
        }
        lines["its values"] = f"exponents {commonest(exponents, 'cluster_count')}"
    if summary["num_dead"] is not None:
        known = f"{summary['num_dead']:,} tokens are dead in this run"
        lines["dead"] = known if cluster is None else f"{known}, {cluster['num_dead']:,} of them suspected"
    return lines


def holes_lines(black_holes: pd.DataFrame, tokens: pd.DataFrame) -> Iterator[str]:
    """The largest black holes: size, whether suspected, how many tokens no text produces, the first ids."""
    if black_holes.empty:
        return
    has_text = "produced" in tokens
    yield f"\n{'hole':>5} {'rows':>7}{'  no text' if has_text else ''}  suspected  nearest hole        first tokens"
    for row in black_holes.head(SHOWN_HOLES).itertuples():
        members = tokens[tokens["hole"] == row.hole]
        never = f"{members['produced'].isin(NEVER).sum():>9,}" if has_text else ""
        zero = "  (zeros)" if row.is_zero else ""
        suspected = "yes" if row.is_suspected else "no"
        yield f"{row.hole:>5} {row.size:>7,}{never}  {suspected:<9}  {nearest(row):<18}  {first_tokens(members)}{zero}"
    if len(black_holes) > SHOWN_HOLES:
        yield f"      and {len(black_holes) - SHOWN_HOLES:,} more"


def nearest(row: Any) -> str:
    """The nearest other hole, by the dimension that is farthest."""
    return "" if pd.isna(row.nearest_hole) else f"{row.nearest_hole} at {row.linf:,.4g} cells"


def first_tokens(members: pd.DataFrame) -> str:
    more = " …" if len(members) > SHOWN_IDS else ""
    return ", ".join(token(row) for _, row in members.head(SHOWN_IDS).iterrows()) + more


def token(row: "pd.Series[Any]") -> str:
    """A token's id, with its text where it is known."""
    if "text" not in row:
        return str(row["id"])
    cut = row["text"] if len(row["text"]) <= TEXT else f"{row['text'][:TEXT]}…"
    return f"{row['id']} {printable(repr(cut))}"


def singleton_lines(singletons: pd.DataFrame) -> Iterator[str]:
    """The singletons that are nearest to a black hole."""
    near = singletons[singletons["nearest_hole"].notna()].nsmallest(SHOWN_SINGLETONS, "linf")
    if near.empty:
        return
    yield "\nSingletons nearest to a black hole, by the dimension that is farthest"
    for _, row in near.iterrows():
        yield f"{row['linf']:>9,.4g} cells from hole {row['nearest_hole']}: {token(row)}"
    if len(singletons) > len(near):
        yield f"          and {len(singletons) - len(near):,} more"
