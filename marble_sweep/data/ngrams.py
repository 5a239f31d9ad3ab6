"""Interpolated Kneser-Ney n-grams of higher order, by sorting: no loop over tokens, no table of all n-grams.

    p_k(w | h) = (max(c(h,w) - d, 0) + d · |{w: c(h,w) > 0}| · p_{k-1}(w | h')) / Σ_w c(h,w);  p_{k-1}(w | h') for new h

h has k - 1 tokens, h' is h without its first one, and p_0 = 1 / V. In the highest order c counts occurrences; below, it
counts the different tokens that stand before (h,w), because a lower order is only asked where the higher one knows
little. d is estimated from the counts of its order. Kneser and Ney, "Improved backing-off for m-gram language
modeling", ICASSP 1995; interpolated as by Chen and Goodman, "An empirical study of smoothing techniques for language
modeling", Computer Speech and Language 13, 1999, who found it the best of those that they compared.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

HASH_BASE = 0x5851F42D4C957F2D  # odd, with its bits spread


def estimate_discount(counts: Tensor) -> float:
    """d = n1 / (n1 + 2 · n2), with n1 and n2 the number of events seen once and twice; 0.5 where one is 0."""
    once, twice = (counts == 1).sum().item(), (counts == 2).sum().item()
    return once / (once + 2 * twice) if once and twice else 0.5


@dataclass(frozen=True)
class NGrams:
    """The different k-grams of a token stream, as sorted codes context · V + token.

    A context is the index of a (k-1)-gram, so that codes stay small whatever V and k are. For k = 1 it is 0.
    """

    codes: Tensor  # (num_ngrams,) int64, sorted
    counts: Tensor  # (num_ngrams,) float64: occurrences
    num_before: Tensor  # (num_ngrams,) float64: the different tokens that stand before them; empty in the highest order
    num_contexts: int  # the different (k-1)-grams; 1 for k = 1

    def find(self, contexts: Tensor, tokens: Tensor, vocab_size: int) -> Tensor:
        """The index of each k-gram; -1 for one that is not there, as where its context (-1) is not."""
        codes = contexts * vocab_size + tokens
        indices = torch.searchsorted(self.codes, codes).clamp(max=len(self.codes) - 1)
        return torch.where((self.codes[indices] == codes) & (contexts >= 0), indices, -1)


def count_ngrams(train_tokens: Tensor, max_order: int, vocab_size: int) -> list[NGrams]:
    """The k-grams of (num_train,) tokens for k = 1 … `max_order`, as far as the stream is long enough for them."""
    tokens = train_tokens.long()
    contexts = torch.zeros_like(tokens)  # of the k-grams that end at tokens k - 1, k, …
    suffixes = tokens  # the indices of the (k-1)-grams that end at tokens k - 2, k - 1, …
    orders: list[NGrams] = []
    num_contexts = 1
    for order in range(1, min(max_order, len(tokens)) + 1):
        ending = tokens[order - 1 :]
        codes, indices, counts = torch.unique(
            contexts * vocab_size + ending, sorted=True, return_inverse=True, return_counts=True
        )
        if orders:
            # A k-gram is one different token before its last k - 1, which end at the same place.
            suffix_of = torch.empty(len(codes), dtype=torch.int64)
            suffix_of[indices] = suffixes[1:]
            num_before = torch.bincount(suffix_of, minlength=len(orders[-1].codes)).double()
            orders[-1] = replace(orders[-1], num_before=num_before)
        orders.append(NGrams(codes, counts.double(), torch.empty(0), num_contexts))
        suffixes, contexts, num_contexts = indices, indices[:-1], len(codes)
    return orders


def ngram_log_probs(orders: list[NGrams], windows: Tensor, order: int, vocab_size: int) -> Tensor:
    """log p(x[:, t] | the order - 1 tokens before it in its window), (num_windows, T - 1) float64 for t = 1 … T - 1.

    `orders` are those of count_ngrams. The first targets of a window have fewer tokens before them, and are predicted
    by the n-gram of as many: a model sees no more either.
    """
    windows = windows.long()
    indices = [torch.zeros_like(windows)]  # of the k-grams that end at a token, for k = 0, 1, …
    for ngrams in orders[:order]:
        indices.append(ngrams.find(_one_earlier(indices[-1], len(indices)), windows, vocab_size))
    log_probs = torch.empty(windows.shape, dtype=torch.float64)
    for highest in range(1, len(indices)):
        log_probs[:, highest - 1 :] = _log_probs(orders[:highest], indices, vocab_size)[:, highest - 1 :]
    return log_probs[:, 1:]


def _one_earlier(indices: Tensor, order: int) -> Tensor:
    """By token, the (order - 1)-gram that ends before it; -1 where the window has none."""
    return indices if order == 1 else torch.nn.functional.pad(indices[:, :-1], (1, 0), value=-1)


def _log_probs(orders: list[NGrams], indices: list[Tensor], vocab_size: int) -> Tensor:
    """Of every token after its context, under the n-gram whose highest order is the last of `orders`."""
    probs = torch.full(indices[0].shape, 1 / vocab_size, dtype=torch.float64)
    for order, ngrams in enumerate(orders, start=1):
        counts = ngrams.counts if order == len(orders) else ngrams.num_before
        discount = estimate_discount(counts)
        firsts = ngrams.codes // vocab_size
        totals = torch.bincount(firsts, weights=counts, minlength=ngrams.num_contexts)
        successors = torch.bincount(firsts, weights=(counts > 0).double(), minlength=ngrams.num_contexts)
        contexts, found = _one_earlier(indices[order - 1], order), indices[order]
        total = torch.where(contexts >= 0, totals[contexts], 0.0)
        count = torch.where(found >= 0, counts[found], 0.0)
        smoothed = ((count - discount).clamp(min=0) + discount * successors[contexts] * probs) / total
        probs = torch.where(total > 0, smoothed, probs)  # a context that is not there has the index -1, and no say
    return probs.log()


def share_seen(train_tokens: Tensor, windows: Tensor, length: int) -> float:
    """The share of the runs of `length` tokens within windows (num_windows, T) that also occur in (num_train,) tokens.

    NaN where no window or the training part is so long. Runs are compared by a 64-bit hash.
    """
    if min(len(train_tokens), windows.shape[1]) < length:
        return math.nan
    return torch.isin(_hashes(windows, length), _hashes(train_tokens, length)).double().mean().item()


def _hashes(tokens: Tensor, length: int) -> Tensor:
    """Of every run of `length` tokens along the last dimension: a polynomial modulo 2^64."""
    hashes = torch.zeros(1, dtype=torch.int64)
    for start in range(length):
        stop = tokens.shape[-1] - length + start + 1
        hashes = hashes * HASH_BASE + tokens[..., start:stop].long() + 1
    return hashes
