import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from marble_sweep.data import baselines
from marble_sweep.data.baselines import (
    bigram_log_probs,
    cached_baselines,
    fit_exponent,
    measure_baselines,
    temper,
    unigram_log_probs,
)
from marble_sweep.data.batches import eval_windows, windows
from marble_sweep.data.corpus import load_corpus
from marble_sweep.groups import IIDConfig, MarkovConfig

V = 7


def tokens(num: int, seed: int = 0, vocab_size: int = V - 1) -> Tensor:
    """Skewed random ids; the last id of the vocabulary never occurs."""
    generator = torch.Generator().manual_seed(seed)
    weights = 1 / torch.arange(1, vocab_size + 1) ** 2
    return torch.multinomial(weights, num, replacement=True, generator=generator).int()


def discount(counts: "Counter[int] | Counter[tuple[int, int]]") -> float:
    once, twice = (sum(count == number for count in counts.values()) for number in (1, 2))
    return once / (once + 2 * twice) if once and twice else 0.5


def plain_unigram(train: list[int], w: int) -> float:
    counts = Counter(train)
    d = discount(counts)
    return max(counts[w] - d, 0) / len(train) + d * len(counts) / len(train) / V


def plain_bigram(train: list[int], v: int, w: int) -> float:
    pairs = Counter(zip(train, train[1:], strict=False))
    from_v = {pair: count for pair, count in pairs.items() if pair[0] == v}
    if not from_v:
        return plain_unigram(train, w)
    d, total = discount(pairs), sum(from_v.values())
    return max(pairs[v, w] - d, 0) / total + d * len(from_v) / total * plain_unigram(train, w)


@pytest.mark.parametrize("num_train", [2, 5, 20, 300])
def test_against_a_plain_loop(num_train: int) -> None:
    train, scored = tokens(num_train), windows(tokens(40, seed=1, vocab_size=V), 8)
    baselines = measure_baselines(train, scored, V)
    targets = Counter(token for window in scored.tolist() for token in window[1:])
    num_targets = sum(targets.values())
    for row, window in enumerate(scored.tolist()):
        pairs = list(zip(window, window[1:], strict=False))
        unigram = -sum(math.log(plain_unigram(train.tolist(), w)) for _, w in pairs) / 7
        oracle = -sum(math.log(targets[w] / num_targets) for _, w in pairs) / 7
        bigram = -sum(math.log(plain_bigram(train.tolist(), v, w)) for v, w in pairs) / 7
        assert baselines.unigram_fitted[row].item() == pytest.approx(unigram, abs=1e-12)
        assert baselines.unigram_oracle[row].item() == pytest.approx(oracle, abs=1e-12)
        assert baselines.bigram[row].item() == pytest.approx(bigram, abs=1e-12)
    assert all(losses.dtype == torch.float64 for losses in baselines.per_window().values())
    assert list(baselines.per_window()) == ["unigram", "oracle", "bigram", "tempered", "trigram", "fourgram"]


@pytest.mark.parametrize("num_train", [2, 3, 10, 500])
def test_distributions_sum_to_one(num_train: int) -> None:
    train = tokens(num_train)
    assert unigram_log_probs(train, V).exp().sum().item() == pytest.approx(1, abs=1e-12)
    contexts = torch.arange(V)[:, None].expand(V, V)  # an unseen one is among them
    targets = torch.arange(V).expand(V, V)
    sums = bigram_log_probs(train, contexts, targets, V).exp().sum(dim=1)
    assert sums.tolist() == pytest.approx([1] * V, abs=1e-12)


def test_unseen_events_keep_some_probability() -> None:
    train = tokens(500)
    assert unigram_log_probs(train, V).isfinite().all()
    assert bigram_log_probs(train, torch.tensor([0, V - 1]), torch.tensor([V - 1, 0]), V).isfinite().all()


def test_no_fixed_distribution_beats_the_oracle() -> None:
    scored = windows(tokens(400, seed=1, vocab_size=V), 8)
    oracle = measure_baselines(tokens(50), scored, V).unigram_oracle.mean().item()
    for seed in range(50):
        train = tokens(30 + 10 * seed, seed=seed)
        assert oracle <= measure_baselines(train, scored, V).unigram_fitted.mean().item()
    own = measure_baselines(scored[:, 1:].flatten(), scored, V).unigram_fitted.mean().item()
    assert oracle <= own < oracle + 0.01


def test_bigram_reaches_the_entropy_rate_of_a_markov_chain() -> None:
    corpus = load_corpus(MarkovConfig(vocab_size=64, num_tokens=400_000, branching=4))
    baselines = measure_baselines(corpus.train_tokens, eval_windows(corpus.val_tokens, 128, 10_000), 64)
    assert corpus.entropy_rate is not None
    assert baselines.bigram.mean().item() == pytest.approx(corpus.entropy_rate, abs=0.02)
    assert baselines.unigram_fitted.mean().item() > corpus.entropy_rate + 1


def test_bigram_is_no_better_than_unigram_on_iid_tokens() -> None:
    corpus = load_corpus(IIDConfig(vocab_size=64, num_tokens=400_000, branching=4))
    baselines = measure_baselines(corpus.train_tokens, eval_windows(corpus.val_tokens, 128, 10_000), 64)
    assert baselines.unigram_fitted.mean().item() == pytest.approx(corpus.entropy_rate, abs=0.02)
    assert baselines.bigram.mean().item() >= baselines.unigram_fitted.mean().item()


@pytest.mark.parametrize("power", [0.0, 0.3, 0.7, 1.0, 1.9])
def test_the_exponent_is_the_best_of_a_fine_grid(power: float) -> None:
    """Targets drawn from a power of the training frequencies; the loss by a plain sum in float64."""
    fitted = unigram_log_probs(tokens(500), V)
    generator = torch.Generator().manual_seed(1)
    targets = torch.multinomial((power * fitted).exp(), 3000, replacement=True, generator=generator)
    values, counts = fitted.tolist(), Counter(targets.tolist())

    def plain_loss(exponent: float) -> float:
        log_total = math.log(sum(math.exp(exponent * value) for value in values))
        return sum(count * (log_total - exponent * values[token]) for token, count in counts.items()) / 3000

    exponent = fit_exponent(fitted, targets)
    best = min((number / 100 for number in range(301)), key=plain_loss)
    assert exponent == pytest.approx(best, abs=0.01)
    assert exponent == pytest.approx(power, abs=0.15)
    assert plain_loss(exponent) <= min(plain_loss(best), plain_loss(0.0), plain_loss(1.0)) + 1e-12
    assert -temper(fitted, exponent)[targets].mean().item() == pytest.approx(plain_loss(exponent), abs=1e-12)
    assert temper(fitted, exponent).exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_no_power_helps_where_the_rarest_are_the_most_frequent() -> None:
    """The best exponent would be negative: it is 0, the uniform distribution."""
    fitted = unigram_log_probs(tokens(500), V)
    targets = torch.full((50,), int(fitted.argmin()))
    assert fit_exponent(fitted, targets) == 0
    assert -temper(fitted, 0.0)[targets].mean().item() == pytest.approx(math.log(V), abs=1e-12)


def test_a_single_target_ends_the_search_for_an_exponent() -> None:
    fitted = unigram_log_probs(tokens(500), V)
    targets = torch.full((50,), int(fitted.argmax()))
    assert 0 <= -temper(fitted, fit_exponent(fitted, targets))[targets].mean().item() < 1e-9


def test_the_tempered_unigram_is_the_best_of_three_and_never_below_the_oracle() -> None:
    scored = windows(tokens(400, seed=1, vocab_size=V), 8)
    for seed in range(30):
        baselines = measure_baselines(tokens(30 + 10 * seed, seed=seed), scored, V)
        best = min(baselines.unigram_fitted.mean().item(), baselines.uniform)
        assert baselines.unigram_oracle.mean().item() <= baselines.unigram_tempered.mean().item() <= best + 1e-12


def test_the_gap_between_domains() -> None:
    """It is that of the samples' noise within one, and the divergence of the two distributions between two."""
    train, same, other = tokens(20_000), tokens(8_000, seed=1), 5 - tokens(8_000, seed=2)
    assert measure_baselines(train, windows(same, 8), V).domain_gap == pytest.approx(0, abs=0.01)
    probabilities = unigram_log_probs(train, V)[:6].exp()
    divergence = (probabilities * (probabilities / probabilities.flip(0)).log()).sum().item()
    assert measure_baselines(train, windows(other, 8), V).domain_gap == pytest.approx(divergence, abs=0.1)
    assert math.isnan(measure_baselines(train[:7], windows(same, 8), V).domain_gap)


def test_baselines_are_measured_once_for_a_corpus_and_its_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    train, held_out = tokens(500), eval_windows(tokens(2000, seed=1), 60, 7)
    measured = measure_baselines(train, held_out, V)
    calls = []

    def counted(*arguments: Tensor | int) -> baselines.Baselines:
        calls.append(arguments)
        return measure_baselines(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(baselines, "measure_baselines", counted)
    for _ in range(2):
        kept = cached_baselines("the corpus", train, held_out, V)
        for name, values in vars(measured).items():
            assert torch.equal(torch.as_tensor(getattr(kept, name)).double(), torch.as_tensor(values).double())
    assert len(calls) == 1
    cached_baselines("another", train, held_out, V)
    cached_baselines("the corpus", train, held_out[:-1], V)
    cached_baselines("the corpus", train, held_out[:, :-1], V)
    cached_baselines("the corpus", train, held_out.flip(0), V)  # a search confirms on others than it looks at
    assert len(calls) == 5
