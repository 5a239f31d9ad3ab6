"""How often intervals from clustered errors hold the truth, where dependence between values is planted.

    nice python benchmarks/calibrate_errors.py [--rounds 100000] [--seed 1]

Prints the table of docs/truth.md: for each source the share of rounds in which the 95 % interval holds the truth, how
often the truth is 3 standard errors away or more (as Student's t counts them), as a multiple of the 0.27 % promised,
and the share of rounds in which there is no error. Nothing is trained.
"""

import argparse
import math

from error_sources import TAIL, Source, ar1, documents, simulate

NOT_NOISE = 0.2  # of the variance, where a series is in noise

SOURCES: dict[str, Source] = {
    **{f"AR(1) {rho:g}, {num} windows": ar1(num, rho) for num in (64, 256, 1024) for rho in (0.0, 0.3, 0.6, 0.8, 0.9)},
    **{
        f"AR(1) {rho:g} in noise, {num} windows": ar1(num, rho, NOT_NOISE) for num in (256, 1024) for rho in (0.8, 0.95)
    },
    **{
        f"{num} windows in {how_many} documents, spread {spread:g}, shared {shared:g}": documents(
            num, how_many, spread, shared
        )
        for num, how_many in ((256, 3), (256, 10), (256, 30), (1024, 100))
        for spread in (0.0, 0.5, 1.0)
        for shared in (0.05, 0.2, 0.6)
    },
    **{
        f"{num} windows in 60 documents, spread 0.7, shared 0.3, AR(1) 0.4": documents(num, 60, 0.7, 0.3, 0.4)
        for num in (256, 1024)
    },
}


def row(name: str, source: Source, rounds: int, seed: int) -> list[str]:
    """A source's row of the table."""
    result = simulate(source, rounds, seed)
    if math.isnan(result.held):
        return [name, *[""] * 5, "100.0%"]
    return [
        name,
        f"{result.held:.1%}",
        f"{result.tail / TAIL:.2f}",
        f"{result.factor:.2f}",
        f"{result.df:.1f}",
        f"{result.by_document:.0%}",
        f"{result.refused:.1%}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    heads = ["source", "95 % holds", "3σ tail", "factor", "df", "by document", "no error"]
    print("| " + " | ".join(heads) + " |\n|---|" + "--:|" * (len(heads) - 1))
    for name, source in SOURCES.items():
        print("| " + " | ".join(row(name, source, arguments.rounds, arguments.seed)) + " |", flush=True)


if __name__ == "__main__":
    main()
