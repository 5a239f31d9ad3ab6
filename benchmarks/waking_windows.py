"""Which windows wake a run's dead tokens: those on whose visits many of them begin to move at once.

    python benchmarks/waking_windows.py RUN_DIR [RUN_DIR ...] [--after 3000] [--windows 3] [--chars 400]

A window of the training part is visited once an epoch, at another step each time and with other windows beside it. For
every window: by how much the share of dead tokens that move rises in the steps that visit it, the median over its
visits after `--after`. Printed for each run: the windows with the largest medians, all their visits and, where this
machine has the corpus that the run was trained on, how they begin and how much probability the model that the run ended
with gives to dead tokens, the mean over the window; beside it the median of that for some windows drawn at random.
"""

import argparse
import statistics
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

import marble_sweep as ms
from marble_sweep.data.batches import Batches, Windows, windows
from marble_sweep.data.corpus import load_corpus
from marble_sweep.loaded_run import Run
from marble_sweep.model.transformer import Transformer

SAMPLE = 200  # windows drawn at random


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


def train_windows(run: Run) -> Windows | None:
    """The windows (num_windows, T) of the training part; None where the corpus is another one here."""
    corpus = load_corpus(run.config.data)
    is_the_runs = corpus.sha256 == run.metadata["corpus"]["sha256"]
    return windows(corpus.train_tokens, run.config.trainer.seq_len) if is_the_runs else None


@torch.no_grad()
def dead_probability(model: Transformer, is_dead: Tensor, window: Tensor) -> float:
    """How much probability the model gives to dead tokens, the mean over the positions of a window (T,)."""
    logits = (model(window[None].long())[0] @ model.head_weight.T).float()
    return float(logits.softmax(dim=-1)[:, is_dead].sum(dim=-1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR")
    parser.add_argument("--after", type=int, default=3000, metavar="STEP")
    parser.add_argument("--windows", type=int, default=3)
    parser.add_argument("--chars", type=int, default=400)
    arguments = parser.parse_args()
    for path in arguments.runs:
        run = ms.load_run(path)
        table, cut = visits(run), train_windows(run)
        if cut is not None:
            model, generator = run.model(), torch.Generator().manual_seed(0)
            sample = cut[torch.randperm(len(cut), generator=generator)[:SAMPLE]]
            usual = statistics.median(dead_probability(model, run.dead_mask, window) for window in sample)
        late = table[table["step"] > arguments.after]
        medians = late.groupby("window")["rise"].median().sort_values(ascending=False)
        print(f"{path}: {len(medians):,} windows, {late['step'].nunique():,} steps after {arguments.after:,}")
        for window, median in medians.head(arguments.windows).items():
            own = table[table["window"] == window].iloc[1:]  # in the first epoch all move
            shown = ", ".join(
                f"{row.step:,} ({row.before:.3f} → {row.before + row.rise:.3f})" for row in own.itertuples()
            )
            print(f"  window {window}: {median:+.3f} in the median; at steps {shown}")
            if cut is not None:
                [own_window] = cut[torch.tensor([int(str(window))])]
                probability = dead_probability(model, run.dead_mask, own_window)
                print(f"    dead tokens have a probability of {probability:.2e}, usually {usual:.2e}")
                print(f"    {run.tokenizer.decode(own_window.tolist())[: arguments.chars]!r}")
        if cut is None:
            print("  this machine has another corpus, so their text is not shown")


if __name__ == "__main__":
    main()
