"""The table that benchmarks/step.py prints of a setting."""

import statistics
from typing import Any

TITLES = ("contender", "steps/min", "times notebook", "tokens/s", "share of matmul peak", "peak memory, MiB")


def table(title: str, found: dict[str, Any], *, tokens: int, flops: float) -> str:
    """The rounds of one setting in Markdown; `tokens` and `flops` are those of a step."""
    rounds = found["rounds"]
    lines = [
        f"### {title}",
        "",
        f"| {' | '.join((*TITLES, 'of notebook', 'first step, s', 'beyond importing torch'))} |",
        f"|---{'|---:' * 8}|",
    ]
    notebook = rounds.get("notebook")
    for name, each in rounds.items():

        def median(key: str, rows: list[dict[str, Any]] = each) -> float:
            return statistics.median(row[key] for row in rows)

        seconds = median("seconds_per_step")
        times = memory = "–"
        if notebook:
            pairs = list(zip(each, notebook, strict=True))
            times = f"{statistics.median(its['seconds_per_step'] / row['seconds_per_step'] for row, its in pairs):.2f}"
            memory = f"{statistics.median(row['memory'] / its['memory'] for row, its in pairs):.2f}"
        beyond = statistics.median(row["first_step"] - row["import_torch"] for row in each)
        cells = (
            name,
            f"{60 / seconds:,.1f}",
            times,
            f"{tokens / seconds:,.0f}",
            f"{flops / seconds / median('peak'):.1%}",
            f"{median('memory') / 2**20:,.0f}",
            memory,
            f"{median('first_step'):.1f}",
            f"{beyond:.1f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    parts = dict(found["parts"])
    whole = parts.pop("step")
    shares = ", ".join(f"{name} {1000 * each:.2f} ms ({each / whole:.1%})" for name, each in parts.items())
    return "\n".join([*lines, "", f"A bf16 step of {1000 * whole:.1f} ms: {shares}."])
