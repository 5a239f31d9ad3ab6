"""Does the verdict say "beats unigram" where no context was learnt, and do its intervals hold the truth?

    nice python benchmarks/negative_controls.py [--rounds 1000] [--models 200] [--sets 10]

Every round has a vocabulary with frequencies of its own, a training part of independent tokens, and two held-out parts:
one of the same source (iid), one of another (shift). Five predictors that have no use of the context are judged on
each. Printed are the verdicts that pass criterion 1, those that do without criterion 2, and those whose loss is below
the fitted unigram and the oracle by 3 standard errors. Then models are trained, and each is evaluated on several
held-out sets of a source whose windows depend on each other (trained_calibration.py): how often the 95 % interval
holds the model's true value, and how often that is 3 standard errors away, as a multiple of the 0.27 % promised.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable

import pandas as pd
import torch
from torch import Tensor, nn
from trained_calibration import calibrate

from marble_sweep.config import VerdictConfig
from marble_sweep.data.baselines import Baselines, measure_baselines
from marble_sweep.metrics.step import MEASURED
from marble_sweep.model.transformer import Transformer
from marble_sweep.training.evaluation import Evaluator
from marble_sweep.training.precision import POLICIES
from marble_sweep.verdict import Verdict, judge

VOCAB_SIZE, SEQ_LEN, NUM_WINDOWS, NUM_TRAIN = 50, 17, 64, 4_000
NOISE = 0.3  # standard deviation of logits that depend on the context and have nothing to do with the target
STEPS = pd.DataFrame([dict.fromkeys(["loss", "h_autocorr", "h_autocorr_lag", *MEASURED], 0.5)])  # of a run; no matter


class TablePredictor(Transformer):
    """Predicts the next token from the position and the current token by a table (T, V, V) of log-probabilities."""

    def __init__(self, table: Tensor) -> None:
        seq_len, vocab_size, _ = table.shape
        super().__init__(vocab_size, seq_len, num_layers=0, hidden_dim=vocab_size, num_heads=1, mlp_dim=1, seed=0)
        self.table = table.float()
        with torch.no_grad():
            self.embedding.weight.copy_(torch.eye(vocab_size))  # so that the hidden state is the logits

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table[torch.arange(tokens.shape[1]), tokens]


def verdict_of(model: nn.Module, windows: Tensor, baselines: Baselines) -> Verdict:
    """What a run that ended with this model on these held-out windows (num_windows, T) would be told."""
    assert isinstance(model, Transformer)
    row, _ = Evaluator(windows, baselines, 0, POLICIES["fp32"], len(windows)).evaluate(model, step=1)
    return judge(VerdictConfig(), STEPS, pd.DataFrame([row]), lag=1)


def is_below(verdict: Verdict, name: str) -> bool:
    """Whether the loss is below a baseline by the standard errors needed, whatever the context is worth."""
    checks = {check.name: check for criterion in verdict.criteria for check in criterion.checks}
    return checks[f"{name}_margin_in_se"].passed is True


def everywhere(log_probs: Tensor, seq_len: int) -> Tensor:
    """A table of the same (V,) distribution after every token at every position."""
    return log_probs.expand(seq_len, len(log_probs), -1)


def smoothed(tokens: Tensor, vocab_size: int) -> Tensor:
    """Log-frequencies (V,) of tokens, one added to each."""
    counts = torch.bincount(tokens.flatten(), minlength=vocab_size).double() + 1
    return torch.log(counts / counts.sum())


def held_out_frequencies(train: Tensor, windows: Tensor, generator: torch.Generator) -> Transformer:
    """The best fixed distribution, which no model could know."""
    return TablePredictor(everywhere(smoothed(windows[:, 1:], VOCAB_SIZE), SEQ_LEN))


def positions_alone(train: Tensor, windows: Tensor, generator: torch.Generator) -> Transformer:
    """The frequencies at each position of these very windows: far below the oracle, and without any context."""
    rows = [smoothed(windows[:, t], VOCAB_SIZE) for t in (*range(1, SEQ_LEN), 0)]
    return TablePredictor(torch.stack(rows)[:, None].expand(-1, VOCAB_SIZE, -1))


def noisy_context(train: Tensor, windows: Tensor, generator: torch.Generator) -> Transformer:
    """The best fixed distribution, disturbed by what the current token is."""
    noise = NOISE * torch.randn(VOCAB_SIZE, VOCAB_SIZE, generator=generator)
    table = (smoothed(windows[:, 1:], VOCAB_SIZE) + noise).log_softmax(-1)
    return TablePredictor(table.expand(SEQ_LEN, -1, -1))


def memorised_pairs(train: Tensor, windows: Tensor, generator: torch.Generator) -> Transformer:
    """The pairs of the training part, whose tokens are independent."""
    pairs = torch.bincount(train[:-1] * VOCAB_SIZE + train[1:], minlength=VOCAB_SIZE**2).view(VOCAB_SIZE, -1)
    table = torch.log((pairs + 1) / (pairs + 1).sum(dim=1, keepdim=True))
    return TablePredictor(table.expand(SEQ_LEN, -1, -1))


def untrained(train: Tensor, windows: Tensor, generator: torch.Generator) -> Transformer:
    seed = int(torch.randint(2**31, (), generator=generator))
    return Transformer(VOCAB_SIZE, SEQ_LEN, num_layers=1, hidden_dim=8, num_heads=2, mlp_dim=16, seed=seed)


PREDICTORS: dict[str, Callable[[Tensor, Tensor, torch.Generator], Transformer]] = {
    "held-out frequencies": held_out_frequencies,
    "positions alone": positions_alone,
    "noisy context": noisy_context,
    "memorised pairs": memorised_pairs,
    "untrained": untrained,
}


def zipf(generator: torch.Generator) -> Tensor:
    """Frequencies (V,) of a random exponent, in a random order."""
    exponent = 0.5 + torch.rand((), generator=generator, dtype=torch.float64)
    weights = torch.arange(1, VOCAB_SIZE + 1, dtype=torch.float64) ** -exponent
    return (weights / weights.sum())[torch.randperm(VOCAB_SIZE, generator=generator)]


def sources(generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """Training tokens (num_train,), and the held-out windows (num_windows, T) by the kind of control."""

    def draw(frequencies: Tensor, *shape: int) -> Tensor:
        num = int(torch.tensor(shape).prod())
        return torch.multinomial(frequencies, num, replacement=True, generator=generator).view(shape)

    frequencies = zipf(generator)
    train = draw(frequencies, NUM_TRAIN)
    held_out = {"iid": draw(frequencies, NUM_WINDOWS, SEQ_LEN), "shift": draw(zipf(generator), NUM_WINDOWS, SEQ_LEN)}
    return train, held_out


def count_passes(num_rounds: int) -> dict[tuple[str, str], Counter[str]]:
    """By control and predictor: how many verdicts pass criterion 1, and how many are below two baselines."""
    passes: dict[tuple[str, str], Counter[str]] = {}
    for number in range(num_rounds):
        generator = torch.Generator().manual_seed(number)
        train, held_out = sources(generator)
        for control, windows in held_out.items():
            baselines = measure_baselines(train, windows, VOCAB_SIZE)
            for name, predictor in PREDICTORS.items():
                verdict = verdict_of(predictor(train, windows, generator), windows, baselines)
                counts = passes.setdefault((control, name), Counter())
                counts["beats unigram"] += verdict.criteria[0].passed is True
                counts["without context"] += verdict.criteria[0].passed is True and not verdict.criteria[1].passed
                counts["below fitted"] += is_below(verdict, "unigram")
                counts["below oracle"] += is_below(verdict, "oracle")
        show_progress("rounds", number + 1)
    return passes


def show_progress(what: str, number: int) -> None:
    if number % 20 == 0:
        print(f"{number:,} {what}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--sets", type=int, default=10, help="held-out sets of every model")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    columns = ("beats unigram", "without context", "below fitted", "below oracle")
    print(f"of {arguments.rounds:,} rounds", *columns, sep=" | ")
    for (control, name), counts in count_passes(arguments.rounds).items():
        print(f"{control}, {name}", *(counts[column] for column in columns), sep=" | ", flush=True)
    calibrated = calibrate(arguments.models, arguments.sets, lambda number: show_progress("models", number))
    print("\n".join(["", *calibrated]))


if __name__ == "__main__":
    main()
