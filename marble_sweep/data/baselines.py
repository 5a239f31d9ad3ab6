"""Baselines without a model: what counting tokens predicts on held-out windows.

All losses are in nats per token over the targets x[:, 1:] of held-out windows (num_windows, T),
after the contexts x[:, :-1], as one mean per window, so that differences can be paired by window.
Unigram and bigram are smoothed by interpolated absolute discounting (Ney, Essen and Kneser 1994), longer ones as
ngrams.py says.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from marble_sweep.data.batches import eval_windows as spaced_windows
from marble_sweep.data.cache import cached, content_key
from marble_sweep.data.ngrams import count_ngrams, estimate_discount, ngram_log_probs, share_seen

FILE = "baselines.safetensors"
NUMBERS = ("exponent", "domain_gap", "oracle_flattery", "run_length", "share_seen")  # the fields that are no tensors
VERSION = 2  # of what is cached: raise it whenever the same tokens would have other baselines
MAX_ORDER = 4  # of the n-grams
RUN_NATS = 50.0  # of unigram loss: 8 tokens of a vocabulary of 10,000, 11 of one of 400
MAX_EXPONENT = 2.0**10  # of the tempered unigram, where nothing but its most frequent token is held out
HALVINGS = 60  # of the interval that the exponent lies in: as many as a float64 can tell apart


@dataclass(frozen=True)
class Baselines:
    """Mean losses of each held-out window, (num_windows,) float64, and the fitted unigram."""

    unigram_fitted: Tensor  # under smoothed training frequencies
    unigram_tempered: Tensor  # under the best power of these: never worse than they are, nor than uniform
    unigram_oracle: Tensor  # under the held-out targets' own frequencies: no fixed distribution does better
    bigram: Tensor  # under smoothed training frequencies of pairs
    trigram: Tensor
    fourgram: Tensor
    unigram_log_probs: Tensor  # (V,) float64, of unigram_fitted
    exponent: float  # of the tempered unigram: 1 is the fitted one, 0 is uniform
    domain_gap: float  # nats by which fitted - oracle is more on these windows than on as many of training
    oracle_flattery: float  # nats by which the oracle is at least too low because it knows its own targets
    run_length: float  # tokens that are worth RUN_NATS: some five words
    share_seen: float  # of the runs of so many held-out tokens, those that also occur in training

    def per_window(self) -> dict[str, Tensor]:
        """The losses by the short name that columns and plots use."""
        return {
            "unigram": self.unigram_fitted,
            "oracle": self.unigram_oracle,
            "bigram": self.bigram,
            "tempered": self.unigram_tempered,
            "trigram": self.trigram,
            "fourgram": self.fourgram,
        }

    @property
    def uniform(self) -> float:
        """The loss of the uniform distribution, ln V."""
        return math.log(len(self.unigram_log_probs))


def cached_baselines(corpus_sha256: str, train_tokens: Tensor, eval_windows: Tensor, vocab_size: int) -> Baselines:
    """What measure_baselines gives; measured once per machine, for the trials of a search share a corpus.

    `corpus_sha256` is the hash of the corpus that train_tokens are of.
    """
    # Sums in float64 depend on the instructions that torch uses in their last bits.
    arithmetic = torch.__version__, torch.backends.cpu.get_cpu_capability()
    scored = hashlib.sha256(eval_windows.numpy().tobytes()).hexdigest(), list(eval_windows.shape)
    key = content_key("baselines", VERSION, corpus_sha256, *scored, vocab_size, *arithmetic)

    def build() -> dict[str, bytes]:
        baselines = measure_baselines(train_tokens, eval_windows, vocab_size)
        return {FILE: save({name: torch.as_tensor(value).double() for name, value in vars(baselines).items()})}

    tensors = load(cached("baselines", key, build)[FILE])
    values: dict[str, Any] = {name: tensor.item() if name in NUMBERS else tensor for name, tensor in tensors.items()}
    return Baselines(**values)


def measure_baselines(train_tokens: Tensor, eval_windows: Tensor, vocab_size: int) -> Baselines:
    """Fit on (num_train,) tokens and measure on (num_windows, T) windows, both on the CPU."""
    eval_windows = eval_windows.long()
    contexts, targets = eval_windows[:, :-1], eval_windows[:, 1:]
    fitted = unigram_log_probs(train_tokens, vocab_size)
    exponent = fit_exponent(fitted, targets)
    unigram_fitted = -fitted[targets].mean(dim=1)
    run_length = math.ceil(RUN_NATS / max(1.0, unigram_fitted.mean().item()))
    ngrams = count_ngrams(train_tokens, MAX_ORDER, vocab_size)
    return Baselines(
        unigram_fitted=unigram_fitted,
        unigram_tempered=-temper(fitted, exponent)[targets].mean(dim=1),
        unigram_oracle=-oracle_log_probs(targets, vocab_size)[targets].mean(dim=1),
        bigram=-bigram_log_probs(train_tokens, contexts, targets, vocab_size).mean(dim=1),
        trigram=-ngram_log_probs(ngrams, eval_windows, 3, vocab_size).mean(dim=1),
        fourgram=-ngram_log_probs(ngrams, eval_windows, 4, vocab_size).mean(dim=1),
        unigram_log_probs=fitted,
        exponent=exponent,
        oracle_flattery=oracle_flattery(targets),
        run_length=run_length,
        share_seen=share_seen(train_tokens, eval_windows, run_length),
        domain_gap=_gap_to_oracle(fitted, targets) - _gap_within_training(fitted, train_tokens, eval_windows),
    )


def oracle_log_probs(targets: Tensor, vocab_size: int) -> Tensor:
    """The targets' own frequencies as log-probabilities, (V,) float64; -inf for tokens that are not among them."""
    counts = torch.bincount(targets.flatten(), minlength=vocab_size).double()
    return torch.log(counts / counts.sum())


def oracle_flattery(targets: Tensor) -> float:
    """By how many nats the oracle's loss is too low because it knows its own targets: (K - 1) / 2N.

    N targets have K different tokens. The first term of the bias of an entropy that is estimated from frequencies
    (Miller, "Note on the bias of information estimates", 1955); rare tokens make the bias larger.
    """
    return (len(torch.unique(targets)) - 1) / (2 * targets.numel())


def temper(log_probs: Tensor, exponent: float) -> Tensor:
    """The distribution raised to a power >= 0 and normalised, as log-probabilities (V,)."""
    return torch.log_softmax(exponent * log_probs, dim=0)


def fit_exponent(log_probs: Tensor, targets: Tensor) -> float:
    """The exponent >= 0 with which the tempered distribution (V,) has the lowest loss on `targets`.

    The loss is convex in it, with the derivative E[log p] under the tempered distribution less the targets' mean
    log p: 0 where both agree. Neither 0 (uniform) nor 1 (as fitted) has a lower loss than the exponent returned.
    """
    mean = log_probs[targets].mean().item()

    def slope(exponent: float) -> float:
        return float((temper(log_probs, exponent).exp() * log_probs).sum()) - mean

    low, high = 0.0, 1.0
    while high < MAX_EXPONENT and slope(high) < 0:
        low, high = high, 2 * high
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)

    def loss(exponent: float) -> float:
        return -temper(log_probs, exponent)[targets].mean().item()

    return min((low, 0.0, 1.0), key=loss)


def _gap_to_oracle(log_probs: Tensor, targets: Tensor) -> float:
    """By how many nats a distribution does worse on targets than their own frequencies."""
    difference = oracle_log_probs(targets, len(log_probs)) - log_probs
    return difference[targets].mean().item()


def _gap_within_training(log_probs: Tensor, train_tokens: Tensor, like: Tensor) -> float:
    """The same on as many windows of training; NaN where that is shorter than a window."""
    num_windows, seq_len = like.shape
    if len(train_tokens) < seq_len:
        return math.nan
    return _gap_to_oracle(log_probs, spaced_windows(train_tokens, seq_len, num_windows)[:, 1:].long())


def unigram_log_probs(train_tokens: Tensor, vocab_size: int) -> Tensor:
    """Smoothed training frequencies as log-probabilities, (V,) float64:

    p(w) = max(c(w) - d, 0) / N + d · |{w: c(w) > 0}| / N · 1 / V
    """
    counts = torch.bincount(train_tokens, minlength=vocab_size).double()
    discount = estimate_discount(counts)
    left_over = discount * (counts > 0).double().sum()
    return torch.log(((counts - discount).clamp(min=0) + left_over / vocab_size) / counts.sum())


def bigram_log_probs(train_tokens: Tensor, contexts: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
    """log p(target | context), float64 in the shape of `contexts` and `targets`:

    p(w|v) = max(c(v,w) - d, 0) / c(v) + d · |{w: c(v,w) > 0}| / c(v) · p(w);  p(w) where v is unseen
    """
    train_tokens, contexts, targets = train_tokens.long(), contexts.long(), targets.long()
    unigram = unigram_log_probs(train_tokens, vocab_size)[targets].exp()
    # Seen pairs as sorted codes v·V + w; a table of all pairs would have 10^8 entries.
    pairs, counts = torch.unique(train_tokens[:-1] * vocab_size + train_tokens[1:], return_counts=True)
    counts = counts.double()
    discount = estimate_discount(counts)
    firsts = pairs // vocab_size
    context_counts = torch.bincount(firsts, weights=counts, minlength=vocab_size)[contexts]
    successors = torch.bincount(firsts, minlength=vocab_size).double()[contexts]  # a float times int64 is float32

    codes = contexts * vocab_size + targets
    indices = torch.searchsorted(pairs, codes).clamp(max=len(pairs) - 1)
    pair_counts = torch.where(pairs[indices] == codes, counts[indices], 0.0)
    smoothed = ((pair_counts - discount).clamp(min=0) + discount * successors * unigram) / context_counts
    return torch.log(torch.where(context_counts > 0, smoothed, unigram))
