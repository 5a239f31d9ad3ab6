"""How long an evaluation takes to score tokens: each token's loss, and the most probable one instead of it.

    python benchmarks/scores.py [--widths 3 16 64 128] [--vocab 10000] [--rounds 9] [--threads 1 2]

A batch of 16 windows of 128 tokens, each against two targets (its own and that of another context), bfloat16 operands.
One thread is what a trial of a search has where as many run at once as there are cores. Contenders take turns: torch's
own `cross_entropy` and `argmax` over the batch's float32 logits; the same chunk by chunk, as this package scores
without a C compiler; and with one. Figures are medians over rounds, a ratio is the median of the rounds' ratios.
"""

import argparse
import statistics
import time
from collections.abc import Callable

from marble_sweep.process import keep_freed_memory, shorten_openmp_spin

shorten_openmp_spin()  # before torch is loaded, as the command line does

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from replay_tables import markdown  # noqa: E402
from torch import Tensor  # noqa: E402

from marble_sweep.model import products  # noqa: E402
from marble_sweep.model.loss import token_losses  # noqa: E402
from marble_sweep.model.products import Products  # noqa: E402

NUM_TARGETS = 2
NUM_ROWS = 16 * 127
WARM_UPS = 2

Score = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


@torch.no_grad()
def by_torch(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    logits = hidden.float() @ weight.float().T
    losses = [F.cross_entropy(logits, targets[:, place], reduction="none") for place in range(NUM_TARGETS)]
    return torch.stack(losses, dim=1), logits.argmax(1)


def by_head(head: str) -> Score:
    def score(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        with products.using(Products(matmul="float32", head=head)):
            return token_losses(hidden, weight, targets)

    return score


CONTENDERS: dict[str, Score] = {
    "torch": by_torch,
    "without a compiler": by_head("float32_as_bf16"),
    "compiled": by_head("float32_compiled"),
}


def measure(width: int, vocab_size: int, rounds: int) -> list[list[str]]:
    """A row for each contender."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(NUM_ROWS, width, generator=generator).bfloat16()
    weight = (0.3 * torch.randn(vocab_size, width, generator=generator)).bfloat16()
    targets = torch.randint(vocab_size, (NUM_ROWS, NUM_TARGETS), generator=generator)
    for score in CONTENDERS.values():
        for _ in range(WARM_UPS):
            score(hidden, weight, targets)
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for number in range(rounds):
        names = list(CONTENDERS)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            started = time.perf_counter()
            CONTENDERS[name](hidden, weight, targets)
            seconds[name].append(time.perf_counter() - started)
    rows = []
    for name, taken in seconds.items():
        ratios = [peer / own for peer, own in zip(seconds["torch"], taken, strict=True)]
        figures = f"{1000 * statistics.median(taken):.1f} ms", f"{statistics.median(ratios):.2f}"
        rows.append([str(width), name, *figures, f"{min(ratios):.2f} to {max(ratios):.2f}"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[3, 16, 64, 128])
    parser.add_argument("--vocab", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    keep_freed_memory()  # as the command line does
    table = [["threads", "width", "contender", "a batch", "times torch's speed", "over the rounds"]]
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for width in arguments.widths:
            table += [[str(threads), *row] for row in measure(width, arguments.vocab, arguments.rounds)]
    print(markdown(table))


if __name__ == "__main__":
    main()
