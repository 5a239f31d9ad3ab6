"""Baselines without a model: unigram and bigram losses on held-out windows.

All losses are in nats per token over the targets x[:, 1:] of held-out windows (num_windows, T),
after the contexts x[:, :-1], as one mean per window, so that differences can be paired by window.
Smoothing is interpolated absolute discounting (Ney, Essen and Kneser 1994).
"""

import hashlib
from dataclasses import dataclass, fields

import torch
from safetensors.torch import load, save
from torch import Tensor

from marble_sweep.data.cache import cached, content_key

FILE = "baselines.safetensors"


@dataclass(frozen=True)
class Baselines:
    """Mean losses of each held-out window, (num_windows,) float64, and the fitted unigram."""

    unigram_fitted: Tensor  # under smoothed training frequencies
    unigram_oracle: Tensor  # under the held-out targets' own frequencies: no fixed distribution does better
    bigram: Tensor  # under smoothed training frequencies of pairs
    unigram_log_probs: Tensor  # (V,) float64, of unigram_fitted

    def per_window(self) -> dict[str, Tensor]:
        """The losses by the short name that columns and plots use."""
        return {"unigram": self.unigram_fitted, "oracle": self.unigram_oracle, "bigram": self.bigram}


def cached_baselines(corpus_sha256: str, train_tokens: Tensor, eval_windows: Tensor, vocab_size: int) -> Baselines:
    """What measure_baselines gives; measured once per machine, for the trials of a search share a corpus.

    `corpus_sha256` is the hash of the corpus that train_tokens are of.
    """
    # Sums in float64 depend on the instructions that torch uses in their last bits.
    arithmetic = torch.__version__, torch.backends.cpu.get_cpu_capability()
    scored = hashlib.sha256(eval_windows.numpy().tobytes()).hexdigest(), list(eval_windows.shape)
    kept = [field.name for field in fields(Baselines)]
    key = content_key("baselines", kept, corpus_sha256, *scored, vocab_size, *arithmetic)

    def build() -> dict[str, bytes]:
        return {FILE: save(vars(measure_baselines(train_tokens, eval_windows, vocab_size)))}

    return Baselines(**load(cached("baselines", key, build)[FILE]))


def measure_baselines(train_tokens: Tensor, eval_windows: Tensor, vocab_size: int) -> Baselines:
    """Fit on (num_train,) tokens and measure on (num_windows, T) windows, both on the CPU."""
    eval_windows = eval_windows.long()
    contexts, targets = eval_windows[:, :-1], eval_windows[:, 1:]
    fitted = unigram_log_probs(train_tokens, vocab_size)
    counts = torch.bincount(targets.flatten(), minlength=vocab_size).double()
    oracle = torch.log(counts / counts.sum())
    return Baselines(
        unigram_fitted=-fitted[targets].mean(dim=1),
        unigram_oracle=-oracle[targets].mean(dim=1),
        bigram=-bigram_log_probs(train_tokens, contexts, targets, vocab_size).mean(dim=1),
        unigram_log_probs=fitted,
    )


def unigram_log_probs(train_tokens: Tensor, vocab_size: int) -> Tensor:
    """Smoothed training frequencies as log-probabilities, (V,) float64:

    p(w) = max(c(w) - d, 0) / N + d · |{w: c(w) > 0}| / N · 1 / V
    """
    counts = torch.bincount(train_tokens, minlength=vocab_size).double()
    discount = _discount(counts)
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
    discount = _discount(counts)
    firsts = pairs // vocab_size
    context_counts = torch.bincount(firsts, weights=counts, minlength=vocab_size)[contexts]
    successors = torch.bincount(firsts, minlength=vocab_size).double()[contexts]  # a float times int64 is float32

    codes = contexts * vocab_size + targets
    indices = torch.searchsorted(pairs, codes).clamp(max=len(pairs) - 1)
    pair_counts = torch.where(pairs[indices] == codes, counts[indices], 0.0)
    smoothed = ((pair_counts - discount).clamp(min=0) + discount * successors * unigram) / context_counts
    return torch.log(torch.where(context_counts > 0, smoothed, unigram))


def _discount(counts: Tensor) -> float:
    """d = n1 / (n1 + 2 · n2), with n1 and n2 the number of events seen once and twice; 0.5 where one is 0."""
    once, twice = (counts == 1).sum().item(), (counts == 2).sum().item()
    return once / (once + 2 * twice) if once and twice else 0.5
