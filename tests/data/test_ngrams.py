"""Interpolated Kneser-Ney by sorting, against a plain implementation over dictionaries."""

import itertools
import math
from collections import Counter, defaultdict

import pytest
import torch
from torch import Tensor

from marble_sweep.data.baselines import measure_baselines
from marble_sweep.data.batches import eval_windows
from marble_sweep.data.corpus import load_corpus
from marble_sweep.data.ngrams import count_ngrams, ngram_log_probs, share_seen
from marble_sweep.groups import IIDConfig, MarkovConfig

V = 5
Gram = tuple[int, ...]


def tokens(num: int, seed: int = 0, vocab_size: int = V - 1) -> Tensor:
    """Skewed random ids; the last id of the vocabulary never occurs."""
    generator = torch.Generator().manual_seed(seed)
    weights = 1 / torch.arange(1, vocab_size + 1) ** 2
    return torch.multinomial(weights, num, replacement=True, generator=generator).int()


def plain_counts(train: list[int], order: int, highest: int) -> dict[Gram, int]:
    """Occurrences in the highest order, different tokens before in a lower one."""
    if order == highest:
        return Counter(tuple(train[i : i + order]) for i in range(len(train) - order + 1))
    before: dict[Gram, set[int]] = defaultdict(set)
    for i in range(len(train) - order):
        before[tuple(train[i + 1 : i + 1 + order])].add(train[i])
    return {gram: len(tokens_before) for gram, tokens_before in before.items()}


def plain(train: list[int], history: Gram, token: int, highest: int) -> float:
    """p(token | history), of an n-gram whose highest order is `highest`."""
    order = len(history) + 1
    lower = plain(train, history[1:], token, highest) if order > 1 else 1 / V
    counts = plain_counts(train, order, highest)
    after = {gram: count for gram, count in counts.items() if gram[:-1] == history}
    if not after:
        return lower
    once, twice = (sum(count == number for count in counts.values()) for number in (1, 2))
    discount = once / (once + 2 * twice) if once and twice else 0.5
    total = sum(after.values())
    kept = max(after.get((*history, token), 0) - discount, 0)
    return kept / total + discount * len(after) / total * lower


@pytest.mark.parametrize("num_train", [1, 2, 3, 4, 12, 150])
@pytest.mark.parametrize("order", [2, 3, 4])
def test_against_a_plain_loop(order: int, num_train: int) -> None:
    train, scored = tokens(num_train), tokens(24, seed=1, vocab_size=V).view(4, 6)
    log_probs = ngram_log_probs(count_ngrams(train, 4, V), scored, order, V)
    for row, window in enumerate(scored.tolist()):
        for t in range(1, 6):
            highest = min(order, t + 1, num_train)  # no window and no stream has longer ones
            history = tuple(window[t - highest + 1 : t])
            expected = plain(train.tolist(), history, window[t], highest)
            assert log_probs[row, t - 1].item() == pytest.approx(math.log(expected), abs=1e-12)


@pytest.mark.parametrize("num_train", [1, 3, 5, 200])
@pytest.mark.parametrize("order", [2, 3, 4])
def test_distributions_sum_to_one(order: int, num_train: int) -> None:
    """After every history, the unseen ones and those of a token that never occurs among them."""
    histories = torch.tensor([*itertools.product(range(V), repeat=order - 1)])
    windows = torch.cat([histories.repeat_interleave(V, 0), torch.arange(V).repeat(len(histories))[:, None]], dim=1)
    last = ngram_log_probs(count_ngrams(tokens(num_train), 4, V), windows, order, V)[:, -1]
    assert last.exp().view(-1, V).sum(dim=1).tolist() == pytest.approx([1] * len(histories), abs=1e-12)


def test_large_vocabularies_do_not_overflow() -> None:
    """V^4 would be beyond 64 bits."""
    vocab_size = 200_000
    train = torch.arange(vocab_size - 50, vocab_size).repeat(3)
    log_probs = ngram_log_probs(count_ngrams(train, 4, vocab_size), train[:8][None], 4, vocab_size)
    assert log_probs.exp().min().item() > 0.5


def test_longer_ngrams_do_not_beat_the_entropy_of_a_markov_chain() -> None:
    corpus = load_corpus(MarkovConfig(vocab_size=64, num_tokens=400_000, branching=4))
    assert corpus.entropy_rate is not None
    losses = measure_baselines(corpus.train_tokens, eval_windows(corpus.val_tokens, 128, 10_000), 64).per_window()
    for name in ("trigram", "fourgram"):
        error = losses[name].std().item() / math.sqrt(len(losses[name]))
        assert losses[name].mean().item() > corpus.entropy_rate - 4 * error
        assert losses[name].mean().item() == pytest.approx(corpus.entropy_rate, abs=0.05)


def test_longer_ngrams_do_not_beat_the_entropy_of_independent_tokens() -> None:
    corpus = load_corpus(IIDConfig(vocab_size=64, num_tokens=400_000, branching=4))
    assert corpus.entropy_rate is not None
    losses = measure_baselines(corpus.train_tokens, eval_windows(corpus.val_tokens, 128, 10_000), 64).per_window()
    for name in ("bigram", "trigram", "fourgram"):
        assert losses[name].mean().item() > losses["unigram"].mean().item()


def test_a_chain_of_second_order_is_for_the_trigram() -> None:
    """Each token is the sum of the two before it, or, one time in four, any token: the bigram knows nothing of it."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(8, (60_000,), generator=generator)
    is_noise = torch.rand(60_000, generator=generator) < 0.25
    stream = [1, 2]
    for token, replaced in zip(noise.tolist(), is_noise.tolist(), strict=True):
        stream.append(token if replaced else (stream[-1] + stream[-2]) % 8)
    train, held_out = torch.tensor(stream[:50_000]), torch.tensor(stream[50_000:])
    losses = measure_baselines(train, eval_windows(held_out, 100, 1000), 8).per_window()
    likely, unlikely = 0.75 + 0.25 / 8, 0.25 / 8
    entropy = -likely * math.log(likely) - 7 * unlikely * math.log(unlikely)
    first = (math.log(8) - entropy) / 99  # the first of a window's 99 targets has a single token before it
    assert losses["bigram"].mean().item() == pytest.approx(math.log(8), abs=0.02)
    assert losses["trigram"].mean().item() == pytest.approx(entropy + first, abs=0.03)


def test_the_share_of_runs_that_training_has() -> None:
    train = torch.tensor([1, 2, 3, 4, 5, 6])
    held_out = torch.tensor([[2, 3, 4, 5], [6, 5, 4, 3]], dtype=torch.int32)
    assert share_seen(train, held_out, 3) == 0.5
    assert share_seen(train, held_out, 4) == 0.5
    assert share_seen(train, held_out, 1) == 1
    assert math.isnan(share_seen(train, held_out, 5))
    assert math.isnan(share_seen(train[:2], held_out, 3))
