"""Which batches wake a run's dead tokens: the text that was trained on where many of them began to move at once.

    python benchmarks/waking_batches.py RUN_DIR [--below 0.1] [--above 0.5] [--chars 160]

A step wakes them where less than `--below` of the dead tokens moved in the step before and more than `--above` in it.
For each: how many moved before and in it, the loss beside the median of the hundred steps around, and how each window
of the batch begins and which of its tokens are the likeliest to be what is unusual: those with the largest share of the
window against their share of the training part.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

import marble_sweep as ms
from marble_sweep.data.batches import Batches, windows
from marble_sweep.data.corpus import load_corpus

AROUND = 50
NUM_TOKENS = 8


def batches_at(batches: Batches, steps: list[int]) -> Iterator[Tensor]:
    """The batch (B, T) of each of the ascending steps."""
    last = 0
    for step in steps:
        for _ in range(step - last - 1):
            next(batches)
        yield next(batches)
        last = step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN_DIR")
    parser.add_argument("--below", type=float, default=0.1)
    parser.add_argument("--above", type=float, default=0.5)
    parser.add_argument("--chars", type=int, default=160)
    arguments = parser.parse_args()
    run = ms.load_run(arguments.run)
    config, metrics = run.config, run.metrics.set_index("step")
    moving = metrics["dead_moving"]
    steps = moving.index[(moving.shift(1) < arguments.below) & (moving > arguments.above)].tolist()
    corpus = load_corpus(config.data)
    counts = torch.bincount(corpus.train_tokens.long(), minlength=len(corpus.dead_mask)).float()
    batches = Batches(windows(corpus.train_tokens, config.trainer.seq_len), config.trainer.batch_size, config.seed)
    print(f"{len(steps)} of {len(moving):,} steps wake the dead tokens")
    for step, batch in zip(steps, batches_at(batches, steps), strict=True):
        usual = metrics["loss"].loc[step - AROUND : step + AROUND].median()
        print(
            f"\nstep {step:,} (epoch {metrics['epoch'][step]:.0f}): {moving[step - 1]:.1%} moved in the step before, "
            f"{moving[step]:.1%} in it; loss {metrics['loss'][step]:.2f}, around it {usual:.2f}"
        )
        for window in batch:
            share = torch.bincount(window, minlength=len(counts)) / len(window)
            unusual = (share - counts / counts.sum()).topk(NUM_TOKENS).indices.tolist()
            words = ", ".join(f"{run.tokenizer.decode([token])!r} {share[token]:.1%}" for token in unusual)
            print(f"  {run.tokenizer.decode(window.tolist())[: arguments.chars]!r}\n    {words}")


if __name__ == "__main__":
    main()
