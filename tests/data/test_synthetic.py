import math

import numpy as np
import pytest
import torch

from marble_sweep.data.corpus import load_corpus
from marble_sweep.data.synthetic import entropy, generate, make_chain, stationary_distribution
from marble_sweep.groups import IIDConfig, MarkovConfig


@pytest.mark.parametrize(("num_live", "branching"), [(2, 2), (3, 2), (4, 2), (5, 5), (40, 2), (200, 8)])
def test_chain_is_irreducible_and_aperiodic_with_distinct_successors(num_live: int, branching: int) -> None:
    for seed in range(500 if num_live < 10 else 5):
        successors, weights = make_chain(num_live, branching, np.random.default_rng(seed))
        assert successors.shape == (num_live, branching)
        assert all(len(set(row)) == branching for row in successors.tolist())
        assert weights == pytest.approx(weights[0] / np.arange(1, branching + 1))
        assert weights.sum() == pytest.approx(1)
        transitions = np.zeros((num_live, num_live))
        np.put_along_axis(transitions, successors, weights[None], axis=1)
        # Some power without a zero is the definition of both.
        assert (np.linalg.matrix_power(transitions, 4 * num_live**2) > 0).all()


def test_stationary_distribution_is_the_eigenvector() -> None:
    successors, weights = make_chain(50, 4, np.random.default_rng(3))
    transitions = np.zeros((50, 50))
    np.put_along_axis(transitions, successors, weights[None], axis=1)
    stationary = stationary_distribution(successors, weights)
    assert stationary.sum() == pytest.approx(1, abs=1e-14)
    assert stationary @ transitions == pytest.approx(stationary, abs=1e-13)


def test_conditional_entropy_of_the_stream_is_the_entropy_rate() -> None:
    config = MarkovConfig(vocab_size=64, num_tokens=400_000, branching=4)
    stream, rate = generate(config)
    pairs = np.bincount(stream[:-1].astype(np.int64) * 64 + stream[1:], minlength=64 * 64) / (len(stream) - 1)
    joint = entropy(pairs[pairs > 0])
    first = entropy(pairs.reshape(64, 64).sum(axis=1)[: config.num_live])
    weights = np.array([12, 6, 4, 3]) / 25
    assert rate == pytest.approx(-(weights * np.log(weights)).sum(), abs=1e-12)
    assert joint - first == pytest.approx(rate, abs=0.005)


def test_iid_has_the_same_frequencies_and_no_context() -> None:
    markov, _ = generate(MarkovConfig(vocab_size=64, num_tokens=400_000, branching=4))
    iid, rate = generate(IIDConfig(vocab_size=64, num_tokens=400_000, branching=4))
    frequencies = np.bincount(iid, minlength=64) / len(iid)
    assert frequencies == pytest.approx(np.bincount(markov, minlength=64) / len(markov), abs=0.004)
    assert entropy(frequencies[frequencies > 0]) == pytest.approx(rate, abs=0.003)
    pairs = np.bincount(iid[:-1].astype(np.int64) * 64 + iid[1:], minlength=64 * 64) / (len(iid) - 1)
    assert entropy(pairs[pairs > 0]) == pytest.approx(2 * rate, abs=0.01)


@pytest.mark.parametrize("config_type", [MarkovConfig, IIDConfig])
def test_corpus(config_type: type[MarkovConfig]) -> None:
    config = config_type(vocab_size=100, num_tokens=20_000, branching=4)
    corpus = load_corpus(config)
    assert (len(corpus.train_tokens), len(corpus.val_tokens)) == (18_000, 2_000)
    assert corpus.train_tokens.dtype == corpus.val_tokens.dtype == torch.int32
    assert corpus.dead_mask.nonzero().flatten().tolist() == list(range(63, 100))
    assert corpus.val_bytes.tolist() == [0] * 2_000
    assert corpus.description.startswith(f"{config.name}: 63 live tokens")
    ids = corpus.train_tokens[:9].tolist()
    text = corpus.tokenizer.decode(ids)
    assert text == " ".join(f"t{token}" for token in ids)
    assert corpus.tokenizer.encode(text).ids == ids
    assert corpus.tokenizer.get_vocab_size() == 100
    assert load_corpus(config).sha256 == corpus.sha256
    other = config_type(vocab_size=100, num_tokens=20_000, branching=4, seed=1)
    assert load_corpus(other).sha256 != corpus.sha256


def test_entropy_of_a_fair_coin() -> None:
    assert entropy(np.array([0.5, 0.5])) == pytest.approx(math.log(2))


def test_split_that_leaves_a_side_empty() -> None:
    config = MarkovConfig(vocab_size=100, num_tokens=4, branching=2, val_fraction=0.1)
    complaint = (
        "data.num_tokens = 4: must be long enough for data.val_fraction = 0.1 to leave something on both sides; "
    )
    with pytest.raises(ValueError, match=f"^{complaint}"):
        load_corpus(config)
    everything = load_corpus(MarkovConfig(vocab_size=100, num_tokens=4, branching=2, val_fraction=0))
    assert (len(everything.train_tokens), len(everything.val_tokens)) == (4, 0)
