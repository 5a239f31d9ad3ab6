"""Synthetic token streams of known entropy rate."""

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers

from marble_sweep.groups import IIDConfig, MarkovConfig

TOLERANCE = 1e-13  # total variation at which the power iteration has converged
MAX_ITERATIONS = 100_000


def generate(config: MarkovConfig) -> tuple[NDArray[np.int32], float]:
    """The stream (num_tokens,) and its entropy rate in nats per token. Live tokens are 0 … num_live - 1."""
    rng = np.random.default_rng(config.seed)
    successors, weights = make_chain(config.num_live, config.branching, rng)
    stationary = stationary_distribution(successors, weights)
    if isinstance(config, IIDConfig):
        tokens = rng.choice(config.num_live, size=config.num_tokens, p=stationary)
        return tokens.astype(np.int32), entropy(stationary)
    # All rows share one weight vector, so the slots are drawn at once and only the look-up is sequential.
    slots = rng.choice(config.branching, size=config.num_tokens, p=weights).tolist()
    rows = successors.tolist()
    token = int(rng.choice(config.num_live, p=stationary))
    stream = np.empty(config.num_tokens, dtype=np.int32)
    for step, slot in enumerate(slots):
        stream[step] = token
        token = rows[token][slot]
    return stream, entropy(weights)


def make_chain(
    num_live: int, branching: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Successors (num_live, branching), distinct in each row, and the rows' common weights (branching,).

    Successors are drawn without replacement by popularity 1 / √(id + 1); weights are proportional
    to 1 / (slot + 1). As successors are distinct, the chain's entropy rate is exactly that of the weights.
    """
    popularity = _zipf(num_live, 0.5)  # with the slots' exponent the rarest tokens would hardly ever occur
    rows = []
    for token in range(num_live):
        # A ring through all tokens makes the chain irreducible, one loop aperiodic.
        forced = [(token + 1) % num_live] + ([0] if token == 0 else [])
        drawn = rng.choice(num_live, size=branching, replace=False, p=popularity).tolist()
        free = [successor for successor in drawn if successor not in forced]
        rows.append(free[: branching - len(forced)] + forced)
    return np.array(rows), _zipf(branching, 1)


def stationary_distribution(successors: NDArray[np.int64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The chain's only stationary distribution (num_live,), by power iteration."""
    num_live = len(successors)
    current: NDArray[np.float64] = np.full(num_live, 1 / num_live)
    for _ in range(MAX_ITERATIONS):
        flow = current[:, None] * weights
        updated = np.bincount(successors.ravel(), weights=flow.ravel(), minlength=num_live)
        change = np.abs(updated - current).sum()
        current = updated / updated.sum()
        if change < TOLERANCE:
            break
    return current


def entropy(probabilities: NDArray[np.float64]) -> float:
    """Entropy in nats of a distribution without zeros."""
    return float(-(probabilities * np.log(probabilities)).sum())


def word_tokenizer(vocab_size: int) -> Tokenizer:
    """A tokenizer that names the tokens t0, t1, …, so that a synthetic stream can be read."""
    tokenizer = Tokenizer(models.WordLevel({f"t{token}": token for token in range(vocab_size)}, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def _zipf(num: int, exponent: float) -> NDArray[np.float64]:
    """Probabilities (num,) proportional to rank^-exponent."""
    weights: NDArray[np.float64] = np.arange(1, num + 1, dtype=np.float64) ** -exponent
    weights /= weights.sum()
    return weights
