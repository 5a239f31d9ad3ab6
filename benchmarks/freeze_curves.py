"""Draw how many dead tokens move, run by run: the picture in docs/findings.md.

    python benchmarks/freeze_curves.py RUN_DIR [RUN_DIR ...] --around STEP --out FILE.png

The upper panel has the share of dead tokens that move in a step, mean of 100 steps, on a logarithmic scale, with 0.0001
for what is less; the lower one every step from 30 before `--around` to 80 after it. At most six runs.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

MEAN_OF, LEAST = 100, 1e-4
BEFORE, AFTER = 30, 80
# Of Okabe and Ito: colour-blind readers can tell them apart.
COLOURS = ("#D55E00", "#E69F00", "#0072B2", "#56B4E9", "#000000", "#999999")


def draw(axes: Axes, values: pd.Series, name: str, colour: str) -> None:
    axes.plot(values.index.to_numpy(), values.to_numpy(), label=name, color=colour, linewidth=1.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR")
    parser.add_argument("--around", type=int, required=True, metavar="STEP")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    arguments = parser.parse_args()
    if len(arguments.runs) > len(COLOURS):
        parser.error(f"{len(arguments.runs)} runs: must be at most {len(COLOURS)}")
    figure, (whole, near) = plt.subplots(2, 1, figsize=(8, 7), layout="constrained")
    for run, colour in zip(arguments.runs, COLOURS, strict=False):
        moving = pd.read_csv(run / "metrics.csv", index_col="step")["dead_moving"]
        draw(whole, moving.rolling(MEAN_OF).mean().clip(lower=LEAST), run.resolve().name, colour)
        draw(near, moving.loc[arguments.around - BEFORE : arguments.around + AFTER], run.resolve().name, colour)
    whole.set(yscale="log", ylim=(LEAST, 1.3), xlabel="step", ylabel=f"dead tokens moving, mean of {MEAN_OF} steps")
    near.set(xlabel="step", ylabel="dead tokens moving in a step", ylim=(-0.03, 1.05))
    near.axvline(arguments.around, color="#BBBBBB", linewidth=1, zorder=0)
    figure.legend(*whole.get_legend_handles_labels(), fontsize="small", ncols=3, loc="outside upper center")
    figure.savefig(arguments.out, dpi=120)


if __name__ == "__main__":
    main()
