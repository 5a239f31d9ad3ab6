"""A cache of its own for every test, and made-up prose."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

Prose = Callable[..., str]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("MARBLE_SWEEP_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def prose() -> Prose:
    """Paragraphs of Zipf-distributed words; no two share a run of eight words."""

    def make(num_paragraphs: int = 60, seed: int = 0, num_words: int = 600) -> str:
        rng = np.random.default_rng(0)
        lengths = rng.integers(2, 9, size=num_words)
        words = ["".join(rng.choice(list("etaoinshrdlucmfw"), size=length)) for length in lengths]
        weights = 1 / np.arange(1, num_words + 1) ** 0.7
        rng = np.random.default_rng(seed + 1)
        drawn = [rng.choice(words, size=30, p=weights / weights.sum()) for _ in range(num_paragraphs)]
        return "\n\n".join(" ".join(paragraph) + "." for paragraph in drawn)

    return make
