"""Which windows wake a run's dead tokens: those on whose visits many of them begin to move at once.

    python benchmarks/waking_windows.py RUN_DIR [RUN_DIR ...] [--after 3000] [--windows 3] [--chars 400]

A window of the training part is visited once an epoch, at another step each time and with other windows beside it. For
every window: by how much the share of dead tokens that move rises in the steps that visit it, the median over its
visits after `--after`. Printed for each run: the windows with the largest medians, all their visits, and how they
begin, where this machine has the corpus that the run was trained on.
"""

import argparse
from pathlib import Path

import pandas as pd
import torch

import marble_sweep as ms
from marble_sweep.data.batches import Batches, windows
from marble_sweep.data.corpus import load_corpus
from marble_sweep.loaded_run import Run


def visits(run: Run) -> pd.DataFrame:
    """A row for each window of each step: `step`, `epoch`, `window`, `before` and `rise` of the share that moves."""
    trainer, num_tokens = run.config.trainer, run.metadata["corpus"]["num_train_tokens"]
    numbers = torch.arange(num_tokens // trainer.seq_len)[:, None]
    moving = run.metrics.set_index("step")["dead_moving"]
    batches = Batches(numbers, trainer.batch_size, run.config.seed)
    rows = [
        (step, batches.epoch, int(window), moving.get(step - 1), moving[step] - moving.get(step - 1, 1.0))
        for step in moving.index
        for window in next(batches).flatten()
    ]
    return pd.DataFrame(rows, columns=["step", "epoch", "window", "before", "rise"])


def texts(run: Run) -> "list[str] | None":
    """The text of every window; None where the corpus is another one here."""
    corpus = load_corpus(run.config.data)
    if corpus.sha256 != run.metadata["corpus"]["sha256"]:
        return None
    return [
        run.tokenizer.decode(window.tolist()) for window in windows(corpus.train_tokens, run.config.trainer.seq_len)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR")
    parser.add_argument("--after", type=int, default=3000, metavar="STEP")
    parser.add_argument("--windows", type=int, default=3)
    parser.add_argument("--chars", type=int, default=400)
    arguments = parser.parse_args()
    for path in arguments.runs:
        run = ms.load_run(path)
        table, text = visits(run), texts(run)
        late = table[table["step"] > arguments.after]
        medians = late.groupby("window")["rise"].median().sort_values(ascending=False)
        print(f"{path}: {len(medians):,} windows, {late['step'].nunique():,} steps after {arguments.after:,}")
        for window, median in medians.head(arguments.windows).items():
            own = table[table["window"] == window].iloc[1:]  # in the first epoch all move
            shown = ", ".join(
                f"{row.step:,} ({row.before:.3f} → {row.before + row.rise:.3f})" for row in own.itertuples()
            )
            print(f"  window {window}: {median:+.3f} in the median; at steps {shown}")
            if text is not None:
                print(f"    {text[int(str(window))][: arguments.chars]!r}")
        if text is None:
            print("  this machine has another corpus, so their text is not shown")


if __name__ == "__main__":
    main()
