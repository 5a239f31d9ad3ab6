"""Every column of evals.csv against a plain float64 recomputation, window by window."""

import math

import numpy as np
import pytest
import torch
from bounds import BFLOAT16, gamma
from torch import Tensor

from marble_sweep.data.baselines import Baselines, measure_baselines
from marble_sweep.model.transformer import Transformer
from marble_sweep.training.evaluation import EVAL_COLUMNS, AllWindows, Evaluator, mean_columns
from marble_sweep.training.precision import POLICIES

VOCAB, SEQ_LEN, NUM_WINDOWS = 20, 6, 7


NUM_BYTES = 83  # of the targets


def example(num_windows: int = NUM_WINDOWS) -> tuple[Transformer, Tensor, Baselines]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, VOCAB, (500,), generator=generator)
    held_out = torch.randint(0, VOCAB, (num_windows, SEQ_LEN), generator=generator, dtype=torch.int32)
    model = Transformer(VOCAB, SEQ_LEN, num_layers=1, hidden_dim=8, num_heads=2, mlp_dim=16, seed=3)
    with torch.no_grad():
        model.embedding.weight.mul_(20)  # so that predictions differ between contexts
    return model, held_out, measure_baselines(tokens, held_out, VOCAB)


def log_probs_of(model: Transformer, windows: Tensor) -> Tensor:
    with torch.no_grad():
        hidden = model(windows.long())[:, :-1].double()
    return (hidden @ model.embedding.weight.double().T).log_softmax(-1)  # (num_windows, T - 1, V)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_every_column_equals_a_plain_recomputation(batch_size: int) -> None:
    model, held_out, baselines = example()
    evaluator = Evaluator(held_out, baselines, NUM_BYTES, POLICIES["fp32"], batch_size)
    row, window_losses = evaluator.evaluate(model, step=12)
    assert tuple(row) == EVAL_COLUMNS
    of_all = {name: row.pop(name) for name in EVAL_COLUMNS if name.startswith("all_")}
    assert all(map(math.isnan, of_all.values())), "these are of AllWindows"

    log_probs = log_probs_of(model, held_out)
    losses, swapped, hits, off, nats = [], [], [], [], 0.0
    favourites = sorted(range(VOCAB), key=lambda token: -baselines.unigram_log_probs[token].item())[:3]
    lender = {index: (index - NUM_WINDOWS // 2) % NUM_WINDOWS for index in range(NUM_WINDOWS)}
    for index in range(NUM_WINDOWS):
        targets = held_out[index, 1:].tolist()
        losses.append(-sum(log_probs[index, t, target].item() for t, target in enumerate(targets)) / len(targets))
        others = [log_probs[lender[index], t, target].item() for t, target in enumerate(targets)]
        swapped.append(-sum(others) / len(targets))
        predicted = log_probs[index].argmax(-1).tolist()
        hits += [guess == target for guess, target in zip(predicted, targets, strict=True)]
        off += [guess not in favourites for guess in predicted]
        nats += losses[-1] * len(targets)

    def expected(name: str, values: list[float]) -> dict[str, float]:
        mean = sum(values) / len(values)
        variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
        # Each of so few windows is a block of its own.
        blocks = {f"{name}_df": len(values) - 1, f"{name}_se_factor": 1, f"{name}_clusters": len(values)}
        return {name: mean, f"{name}_se": math.sqrt(variance / len(values)), f"{name}_by_document": 0} | blocks

    truth: dict[str, float] = {"step": 12} | expected("val_loss", losses)
    for name, baseline in (
        ("unigram_margin", baselines.unigram_fitted),
        ("oracle_margin", baselines.unigram_oracle),
        ("bigram_margin", baselines.bigram),
        ("tempered_margin", baselines.unigram_tempered),
        ("trigram_margin", baselines.trigram),
        ("fourgram_margin", baselines.fourgram),
    ):
        truth |= expected(name, [one - loss for one, loss in zip(baseline.tolist(), losses, strict=True)])
    truth |= expected("context_gain", [other - loss for other, loss in zip(swapped, losses, strict=True)])
    truth |= {"accuracy": sum(hits) / len(hits), "non_unigram_top1": sum(off) / len(off)}
    truth |= {"bits_per_byte": nats / math.log(2) / NUM_BYTES}
    # The hidden states come from batches of another size, so from kernels that may add up in another order: some 100
    # roundings on the way through the layers, then the head's, on logits of up to 4.
    tolerance = 4 * gamma(100 + 8 + VOCAB)
    assert row == pytest.approx(truth, rel=0, abs=tolerance)
    assert window_losses.tolist() == pytest.approx(losses, rel=0, abs=tolerance)


def test_another_windows_context_is_never_ones_own() -> None:
    model, held_out, baselines = example(num_windows=2)
    row, _ = Evaluator(held_out, baselines, NUM_BYTES, POLICIES["fp32"], 2).evaluate(model, step=1)
    assert row["context_gain"] != 0


def test_a_single_window_has_no_spread_and_no_other_context() -> None:
    model, held_out, baselines = example(num_windows=1)
    row, _ = Evaluator(held_out, baselines, NUM_BYTES, POLICIES["fp32"], 2).evaluate(model, step=1)
    undefined = {name for name, value in row.items() if math.isnan(value) and not name.startswith("all_")}
    errors = {name for name in EVAL_COLUMNS if name.endswith(("_se", "_df", "_se_factor"))}
    errors -= {name for name in errors if name.startswith("all_")}
    assert undefined == errors | {"context_gain"}


def test_tokens_without_bytes_have_no_bits_per_byte() -> None:
    model, held_out, baselines = example()
    row, _ = Evaluator(held_out, baselines, 0, POLICIES["fp32"], 4).evaluate(model, step=1)
    assert math.isnan(row["bits_per_byte"])


def test_no_random_number_is_drawn() -> None:
    model, held_out, baselines = example()
    before = torch.get_rng_state()
    Evaluator(held_out, baselines, NUM_BYTES, POLICIES["mixed"], 4).evaluate(model, step=1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("precision", ["bf16", "mixed"])
def test_bfloat16_stays_close_to_float64(precision: str) -> None:
    model, held_out, baselines = example()
    policy = POLICIES[precision]
    model.to(policy.param_dtype)
    row, _ = Evaluator(held_out, baselines, NUM_BYTES, policy, 4).evaluate(model, step=1)
    exact = -log_probs_of(model.float(), held_out).gather(-1, held_out[:, 1:, None].long()).mean().item()
    # Eight roundings on the way: two sums, two norms, and four products, of logits about 1 in size.
    assert row["val_loss"] == pytest.approx(exact, abs=gamma(8, BFLOAT16))
    assert row["val_loss"] != pytest.approx(exact, abs=1e-9)


def test_an_error_counts_documents_where_they_are_known() -> None:
    model, held_out, baselines = example(num_windows=60)
    documents = np.repeat(np.arange(20), 3)
    plain, clustered = (
        Evaluator(held_out, baselines, NUM_BYTES, POLICIES["fp32"], 8, numbers).evaluate(model, step=1)[0]
        for numbers in (None, documents)
    )
    of_errors = ("_se", "_df", "_se_factor", "_clusters", "_by_document")
    names = [name for name in EVAL_COLUMNS if not name.endswith(of_errors) and not name.startswith("all_")]
    assert [plain[name] for name in names] == [clustered[name] for name in names]
    assert plain["unigram_margin_by_document"] == 0
    assert clustered["unigram_margin_by_document"] == 1
    assert clustered["unigram_margin_clusters"] == 20

    values = torch.randn(20, generator=torch.Generator().manual_seed(0)).double()
    columns = mean_columns("val_loss", values.repeat_interleave(3), documents)
    assert columns["val_loss"] == pytest.approx(values.mean().item())
    assert columns["val_loss_se"] == pytest.approx(values.std().item() / math.sqrt(20))
    assert columns["val_loss_se_factor"] == pytest.approx(math.sqrt(59 / 19))


def test_with_all_windows_each_evaluated_one_counts_the_mean_of_its_stretch() -> None:
    """Window 0 stands for three windows, 3 for one, 4 for two and 6 for one."""
    model, held_out, baselines = example()
    evaluator = Evaluator(held_out, baselines, NUM_BYTES, POLICIES["fp32"], 3)
    stretches = torch.tensor([0, 0, 0, 1, 2, 2, 3])
    built = []

    def build() -> Evaluator:
        built.append(evaluator)
        return evaluator

    row = AllWindows(build, stretches).evaluate(model)
    assert len(built) == 1
    log_probs = log_probs_of(model, held_out).gather(-1, held_out[:, 1:, None].long())[..., 0]
    margins = baselines.unigram_tempered + log_probs.mean(dim=1)
    means = torch.stack([margins[:3].mean(), margins[3], margins[4:6].mean(), margins[6]])
    assert row["all_windows"] == NUM_WINDOWS
    assert row["all_tempered_margin"] == pytest.approx(means.mean().item(), abs=4 * gamma(100 + 8 + VOCAB))
    error = means.std().item() / 2
    assert row["all_tempered_margin_se"] == pytest.approx(error, abs=4 * gamma(100 + 8 + VOCAB))
    assert row["all_tempered_margin_clusters"] == 4, "an error counts evaluated windows, not all"
    naive = margins.std().item() / math.sqrt(NUM_WINDOWS)
    factor = row["all_tempered_margin_se"] / naive
    assert row["all_tempered_margin_se_factor"] == pytest.approx(factor, rel=1e-3), "and is compared with all of them"


def test_where_every_stretch_is_one_window_all_windows_are_the_evaluated_ones() -> None:
    model, held_out, baselines = example(num_windows=60)
    documents = np.repeat(np.arange(20), 3)
    evaluator = Evaluator(held_out, baselines, NUM_BYTES, POLICIES["fp32"], 8, documents)
    row, _ = evaluator.evaluate(model, step=1)
    of_all = AllWindows(lambda: evaluator, torch.arange(60), documents).evaluate(model)
    assert of_all.pop("all_windows") == 60
    assert of_all == pytest.approx({name: row[name.removeprefix("all_")] for name in of_all}, rel=1e-12)
    assert {*of_all} == {name for name in EVAL_COLUMNS if name.startswith("all_") and name != "all_windows"}
