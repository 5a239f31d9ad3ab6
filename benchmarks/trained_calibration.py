"""Do the intervals around a trained model's margin and context gain hold the truth? On sources that are known.

A tiny model is trained by the project's own loop on tokens of a planted source. Then held-out sets of 256 windows are
drawn from that source again and again, and evaluated as a run evaluates them. The model's own true margin and gain are
means over so many fresh windows that their error hardly matters, by a plain calculation. negative_controls.py prints
the table.
"""

import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from error_sources import NORMAL_95, TAIL, TAIL_ERRORS, Documents, autoregressive, needed_errors
from safetensors.torch import save_file
from torch import Tensor

from marble_sweep.config import Config
from marble_sweep.data.baselines import fit_exponent, measure_baselines, temper, unigram_log_probs
from marble_sweep.groups import TokensConfig
from marble_sweep.hydra_app.compose import compose_config
from marble_sweep.loaded_run import Run
from marble_sweep.model.transformer import Transformer
from marble_sweep.run import run
from marble_sweep.searches.pass_rate import Tally, Verdict, interval
from marble_sweep.training.evaluation import Evaluator
from marble_sweep.training.precision import POLICIES

VOCAB_SIZE, SEQ_LEN = 50, 17
NUM_TRAIN, NUM_HELD_OUT, NUM_TRUTH = 1_000, 256, 25_600  # windows; the truth has 100 times those of a held-out set
WINDOWS_A_DOCUMENT = 8.5  # in the mean: 30 documents are held out
SIZE_SPREAD = 0.5  # standard deviation of the logarithm of documents' sizes
SPREAD = 1.5  # of what windows differ in, in logits
NEIGHBOURS = 0.8  # correlation of neighbouring windows where there are no documents
NUMBERS = ("val_loss", "tempered_margin", "context_gain")
TRAINING = (
    *("data=tokens", "data.path=ids.safetensors", f"data.vocab_size={VOCAB_SIZE}", f"trainer.seq_len={SEQ_LEN}"),
    *("precision=fp32", "optimizer.lr=0.03", "trainer.batch_size=16", "trainer.checkpoint_interval=1000"),
    *("device.num_threads=1", "device.matmul=float32", "device.head=float32"),
    *("certify.stop=true", "trainer.num_evals=1"),  # a run that may stop draws no plots, and looks once, at its end
)
MODELS = ("0L3D", "1L4D")


@dataclass(frozen=True)
class Source:
    """Windows of tokens that follow a chain common to all text, or come from frequencies of their own.

    By `of_documents`, how far windows do one or the other, and these frequencies, are those of their document; or else
    they drift from window to window.
    """

    transitions: Tensor  # (V, V) probabilities
    of_documents: bool

    def draw(self, num_windows: int, rng: np.random.Generator) -> tuple[Tensor, Documents]:
        """Tokens (num_windows, T), and the documents (num_windows,) where there are any."""
        if self.of_documents:
            documents = draw_documents(num_windows, rng)
            kind, flavour = (rng.standard_normal(documents[-1] + 1)[documents] for _ in range(2))
        else:
            documents = None
            kind, flavour = (autoregressive(rng, num_windows, NEIGHBOURS) for _ in range(2))
        follows = 1 / (1 + np.exp(-SPREAD * kind))  # the share of tokens that follow the chain
        ranks = np.linspace(-1, 1, VOCAB_SIZE)
        weights = np.exp(SPREAD * flavour[:, None] * ranks)
        own = torch.tensor(weights / weights.sum(axis=1, keepdims=True)).float()
        return draw_tokens(self.transitions, torch.tensor(follows).float(), own, rng), documents


def draw_documents(num_windows: int, rng: np.random.Generator) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The document of each window; sizes are log-normal."""
    sizes = np.exp(SIZE_SPREAD * rng.standard_normal(max(2, round(num_windows / WINDOWS_A_DOCUMENT))))
    ends = np.round(np.cumsum(sizes) / sizes.sum() * num_windows)
    documents = np.searchsorted(ends, np.arange(num_windows), side="right")
    return np.unique(documents, return_inverse=True)[1].astype(np.int64)


def draw_tokens(transitions: Tensor, follows: Tensor, own: Tensor, rng: np.random.Generator) -> Tensor:
    """(num_windows, T) tokens; a window's first ones come from its `own` frequencies (num_windows, V)."""
    token = torch.searchsorted(own.cumsum(1), torch.tensor(rng.random((len(own), 1), dtype=np.float32))).clamp(
        max=VOCAB_SIZE - 1
    )[:, 0]
    tokens = [token]
    for _ in range(SEQ_LEN - 1):
        probabilities = follows[:, None] * transitions[token] + (1 - follows[:, None]) * own
        uniform = torch.tensor(rng.random((len(own), 1), dtype=np.float32))
        token = torch.searchsorted(probabilities.cumsum(1), uniform).clamp(max=VOCAB_SIZE - 1)[:, 0]
        tokens.append(token)
    return torch.stack(tokens, dim=1)


def make_source(rng: np.random.Generator, *, of_documents: bool) -> Source:
    """Half of the time a token is followed by a favourite of its own, and otherwise by one of a few."""
    weights = np.exp(2 * rng.standard_normal((VOCAB_SIZE, VOCAB_SIZE)))
    return Source(torch.tensor(weights / weights.sum(axis=1, keepdims=True)).float(), of_documents)


@cache
def config_of(model: str) -> Config:
    return compose_config([*TRAINING, f"model.num_layers={model[0]}", f"model.hidden_dim={model[2]}"])


def train(tokens: Tensor, model: str, seed: int, steps: int) -> Transformer:
    """A model that the project's own loop has trained on a stream of tokens, a tenth of which it holds out."""
    with tempfile.TemporaryDirectory() as folder:
        save_file({"tokens": tokens}, Path(folder, "ids.safetensors"))
        config = config_of(model)
        data = TokensConfig(vocab_size=VOCAB_SIZE, path=str(Path(folder, "ids.safetensors")))
        trainer = replace(config.trainer, total_steps=steps)
        run(replace(config, data=data, seed=seed, trainer=trainer), Path(folder, "run"), show=False)
        return Run(Path(folder, "run")).model()


@torch.no_grad()
def true_values(model: Transformer, train_tokens: Tensor, windows: Tensor) -> dict[str, float]:
    """The means of NUMBERS over many windows (num_windows, T), as their definitions have them."""
    targets, shift = windows[:, 1:], len(windows) // 2
    log_probs = (model(windows)[:, :-1] @ model.embedding.weight.T).double().log_softmax(-1)
    loss = -log_probs.gather(-1, targets[..., None]).mean().item()
    other = -log_probs.roll(-shift, 0).gather(-1, targets[..., None]).mean().item()
    fitted = unigram_log_probs(train_tokens, VOCAB_SIZE)
    tempered = -temper(fitted, fit_exponent(fitted, targets))[targets].mean().item()
    return {"val_loss": loss, "tempered_margin": tempered - loss, "context_gain": other - loss}


@dataclass(frozen=True)
class Round:
    """A number of one evaluation."""

    source: str
    number: str
    deviation: float  # from the truth, in nats
    error: float  # NaN: none was given
    df: float
    factor: float

    def is_within(self, errors: float) -> bool:
        """Whether the truth is nearer than so many standard errors of a normal distribution."""
        return abs(self.deviation) < needed_errors(errors, self.df) * self.error


def rounds_of(number: int, sets: int) -> Iterator[Round]:
    """Train the `number`-th model, and evaluate it on so many held-out sets."""
    rng = np.random.default_rng(number)
    of_documents, model_name = number % 2 == 0, MODELS[number // 2 % 2]
    source = make_source(rng, of_documents=of_documents)
    train_tokens = source.draw(NUM_TRAIN, rng)[0].flatten()
    model = train(train_tokens, model_name, seed=number, steps=int(rng.integers(20, 200)))
    truth = true_values(model, train_tokens, source.draw(NUM_TRUTH, rng)[0])
    for _ in range(sets):
        windows, documents = source.draw(NUM_HELD_OUT, rng)
        baselines = measure_baselines(train_tokens, windows, VOCAB_SIZE)
        row, _ = Evaluator(windows, baselines, 0, POLICIES["fp32"], NUM_HELD_OUT, documents).evaluate(model, step=1)
        for name in NUMBERS:
            deviation, parts = row[name] - truth[name], (row[f"{name}_{part}"] for part in ("se", "df", "se_factor"))
            yield Round("documents" if of_documents else "neighbours", name, deviation, *parts)


def share(count: int, total: int) -> str:
    """A share with its 95 % interval, of Clopper and Pearson."""
    low, high = interval(Tally(Verdict.OPEN, total, count), 0.95)
    return f"{count / total:.1%} ({low:.1%} to {high:.1%})"


def table_row(rounds: list[Round]) -> str:
    """What became of the intervals of a number."""
    given = [each for each in rounds if not math.isnan(each.error)]
    held = sum(each.is_within(NORMAL_95) for each in given)
    far = sum(not each.is_within(TAIL_ERRORS) for each in given)
    naive = sum(abs(each.deviation) < NORMAL_95 * each.error / each.factor for each in given)
    cells = (
        f"{rounds[0].source}, {rounds[0].number}",
        f"{len(given):,} of {len(rounds):,}",
        share(held, len(given)),
        f"{far / len(given) / TAIL:.1f} ({far})",
        f"{naive / len(given):.1%}",
        f"{np.mean([each.factor for each in given]):.2f}",
        f"{np.median([each.df for each in given]):.1f}",
    )
    return f"| {' | '.join(cells)} |"


HEADS = ("source, number", "have an error", "95 % holds", "3σ tail (rounds)", "naive 95 % holds", "factor", "df")


def calibrate(models: int, sets: int, told: Callable[[int], None]) -> list[str]:
    """The table's lines; `told` hears of every model that has been evaluated."""
    by_row: dict[tuple[str, str], list[Round]] = {}
    for number in range(models):
        for each in rounds_of(number, sets):
            by_row.setdefault((each.source, each.number), []).append(each)
        told(number + 1)
    head = f"| {' | '.join(HEADS)} |\n|---|{'--:|' * (len(HEADS) - 1)}"
    return [head, *(table_row(by_row[key]) for key in sorted(by_row))]
