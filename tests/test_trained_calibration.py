"""benchmarks/trained_calibration.py: its sources, the truth it compares with, and what it counts."""

import math

import numpy as np
import pytest
import torch
from trained_calibration import (
    NUMBERS,
    SEQ_LEN,
    VOCAB_SIZE,
    Round,
    calibrate,
    draw_documents,
    draw_tokens,
    make_source,
    rounds_of,
    table_row,
    true_values,
)

from marble_sweep.data.baselines import measure_baselines
from marble_sweep.model.transformer import Transformer
from marble_sweep.training.evaluation import Evaluator
from marble_sweep.training.precision import POLICIES


def test_tokens_follow_the_chain_or_come_from_frequencies_of_their_own() -> None:
    rng = np.random.default_rng(0)
    cycle = torch.eye(VOCAB_SIZE).roll(1, dims=1)  # token t is followed by t + 1
    fives = torch.eye(VOCAB_SIZE)[[5, 5]]
    first, second = draw_tokens(cycle, torch.tensor([1.0, 0.0]), fives, rng)
    assert first.tolist() == list(range(5, 5 + SEQ_LEN))
    assert second.tolist() == [5] * SEQ_LEN
    half = draw_tokens(cycle, torch.full((2_000,), 0.5), fives[:1].expand(2_000, -1), rng)
    share = (half[:, 1:] == half[:, :-1] + 1).double().mean().item()
    assert abs(share - 0.5) < 5 * 0.5 / math.sqrt(half[:, 1:].numel())


def test_documents_are_contiguous_and_numbered_from_0() -> None:
    documents = draw_documents(256, np.random.default_rng(0))
    assert set(np.diff(documents)) <= {0, 1}
    assert (documents[0], documents[-1] + 1, len(documents)) == (0, len(np.unique(documents)), 256)
    assert 25 <= documents[-1] + 1 <= 30


@pytest.mark.parametrize("of_documents", [True, False])
def test_windows_resemble_their_neighbours(of_documents: bool) -> None:
    """The share of low ids, which a window has by its flavour, is alike in neighbours."""
    windows, documents = make_source(np.random.default_rng(1), of_documents=of_documents).draw(
        2_000, np.random.default_rng(2)
    )
    assert (documents is not None) == of_documents
    low = (windows < VOCAB_SIZE // 2).double().mean(dim=1).numpy()
    assert np.corrcoef(low[:-1], low[1:])[0, 1] > 0.3
    assert abs(np.corrcoef(low[:-500], low[500:])[0, 1]) < 0.15


def test_the_truth_is_what_an_evaluation_measures_without_error() -> None:
    """On the same windows both have the same means, up to the rounding of float32."""
    source = make_source(np.random.default_rng(1), of_documents=True)
    train, windows = (source.draw(100, np.random.default_rng(seed))[0] for seed in (2, 3))
    model = Transformer(VOCAB_SIZE, SEQ_LEN, num_layers=1, hidden_dim=8, num_heads=2, mlp_dim=16, seed=0)
    with torch.no_grad():
        model.embedding.weight *= 20  # far from uniform
    baselines = measure_baselines(train.flatten(), windows, VOCAB_SIZE)
    row, _ = Evaluator(windows, baselines, 0, POLICIES["fp32"], 64).evaluate(model, step=1)
    truth = true_values(model, train.flatten(), windows)
    assert abs(truth["context_gain"]) > 1e-3
    for name in NUMBERS:
        assert row[name] == pytest.approx(truth[name], abs=1e-4)


def test_the_table_counts_intervals_that_hold_and_tails() -> None:
    """With many degrees of freedom 1.96 errors hold and 3 are the tail; without an error nothing is counted."""
    deviations = [0.0, 1.9, -2.1, 3.1, -3.1]
    rounds = [Round("documents", "val_loss", deviation, 1.0, 1e9, 2.0) for deviation in deviations]
    rounds.append(Round("documents", "val_loss", 0.0, math.nan, math.nan, math.nan))
    cells = [cell.strip() for cell in table_row(rounds).strip("|").split("|")]
    assert cells[:2] == ["documents, val_loss", "5 of 6"]
    assert cells[2].startswith("40.0% (")
    assert cells[3] == f"{0.4 / 0.0026998:.1f} (2)"
    assert cells[4:6] == ["20.0%", "2.00"]


def test_few_degrees_of_freedom_widen_the_interval() -> None:
    assert not Round("documents", "val_loss", 2.1, 1.0, 1e9, 1.0).is_within(1.959964)
    assert Round("documents", "val_loss", 2.1, 1.0, 7.0, 1.0).is_within(1.959964)


@pytest.mark.slow
def test_models_are_trained_and_evaluated_the_same_way_every_time() -> None:
    rounds = list(rounds_of(1, 2))
    assert rounds == list(rounds_of(1, 2))
    assert [each.number for each in rounds] == [*NUMBERS, *NUMBERS]
    assert all(each.source == "neighbours" and 0 < each.error < 0.1 for each in rounds)
    told: list[int] = []
    lines = calibrate(2, 1, told.append)
    assert told == [1, 2]
    assert len(lines) == 1 + 2 * len(NUMBERS)
