"""model.tied=false and model.embedding_std: the head's own weight is the head wherever there is one."""

import csv
from pathlib import Path

import pandas as pd
import pytest
import torch
from bounds import gamma
from helpers import tiny_config, train_only
from safetensors.torch import load_file

from marble_sweep.config import VerdictConfig
from marble_sweep.data.batches import eval_windows
from marble_sweep.data.corpus import load_corpus
from marble_sweep.run import build_model
from marble_sweep.sample import load_model, next_log_probs
from marble_sweep.searches.cost import flops_per_token, non_embedding
from marble_sweep.verdict import UNTIED, judge

STEPS = 6
UNTIED_RUN = ("model.tied=false", "precision=fp32", f"trainer.total_steps={STEPS}", "trainer.num_evals=1")
CONFIG = tiny_config(*UNTIED_RUN, "optimizer.weight_decay=0.5")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("untied") / "run"
    assert train_only(CONFIG, directory) == "finished"
    return directory


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_head_is_drawn_last_and_all_other_weights_are_those_of_the_tied_model() -> None:
    tied, untied = build_model(tiny_config(), 2_000), build_model(CONFIG, 2_000)
    assert untied.head is not None
    assert untied.head_weight is untied.head
    assert tied.head_weight is tied.embedding.weight
    assert untied.head.std().item() == pytest.approx(0.02, rel=0.03)
    others = {name: weight for name, weight in untied.named_parameters() if name != "head"}
    assert others.keys() == dict(tied.named_parameters()).keys()
    for name, weight in tied.named_parameters():
        assert torch.equal(weight, others[name])


def test_the_initial_embedding_is_as_wide_as_asked_for_and_nothing_else_changes() -> None:
    plain, wide = build_model(tiny_config(), 2_000), build_model(tiny_config("model.embedding_std=0.08"), 2_000)
    # The same normal numbers, times 0.02 and times 0.08.
    torch.testing.assert_close(wide.embedding.weight, 4 * plain.embedding.weight, rtol=gamma(4), atol=0)
    for name, weight in plain.named_parameters():
        assert torch.equal(weight, wide.get_parameter(name)) or name == "embedding.weight"


def test_what_is_counted_before_there_is_a_model() -> None:
    tied = tiny_config()
    assert CONFIG.num_parameters == sum(weight.numel() for weight in build_model(CONFIG, 64).parameters())
    assert CONFIG.num_parameters - tied.num_parameters == 64 * 16
    assert non_embedding(CONFIG) == non_embedding(tied)
    assert flops_per_token(CONFIG) == flops_per_token(tied), "looking a row up is no product"


def test_losses_and_predictions_are_the_heads(trained: Path) -> None:
    model = load_model(trained)
    assert model.head is not None
    held_out = eval_windows(load_corpus(CONFIG.data).val_tokens, 16, CONFIG.trainer.eval_windows).long()
    with torch.no_grad():
        hidden = model(held_out)
    log_probs = (hidden.double() @ model.head.double().T).log_softmax(-1)
    loss = -log_probs[:, :-1].gather(2, held_out[:, 1:, None]).mean().item()
    [evaluation] = rows(trained / "evals.csv")
    assert float(evaluation["val_loss"]) == pytest.approx(loss, rel=gamma(200))
    of_the_last = log_probs[0, -1]
    far = gamma(200) * (hidden[0, -1].norm() * model.head.norm(dim=1).max()).item()
    shown = next_log_probs(model, held_out[0].tolist()).double()
    torch.testing.assert_close(shown, of_the_last, rtol=0, atol=far)


def test_no_gradient_reaches_a_dead_tokens_row_and_decay_alone_moves_it(trained: Path) -> None:
    dead = load_corpus(CONFIG.data).dead_mask
    start, end = build_model(CONFIG, 64), load_model(trained)
    decay = (1 - CONFIG.optimizer.lr * CONFIG.optimizer.weight_decay) ** STEPS
    rounding = gamma(3 * STEPS)
    torch.testing.assert_close(end.embedding.weight[dead], decay * start.embedding.weight[dead], rtol=rounding, atol=0)
    assert not torch.allclose(end.head_weight[dead], decay * start.head_weight[dead], rtol=0.01, atol=0), "h pushes it"


def test_the_criterion_of_dead_tokens_is_not_judged(trained: Path) -> None:
    steps = pd.read_csv(trained / "metrics.csv")
    evals = pd.read_csv(trained / "evals.csv")
    *_, criterion = judge(VerdictConfig(), pd.concat([steps] * 100), evals, lag=1, tied=False).criteria
    assert criterion.passed is None
    assert [check.reading for check in criterion.checks] == [UNTIED, UNTIED]
    *_, tied = judge(VerdictConfig(), pd.concat([steps] * 100), evals, lag=1).criteria
    assert UNTIED not in [check.reading for check in tied.checks]


def test_a_run_goes_on_with_its_own_head(trained: Path, tmp_path: Path) -> None:
    assert "model/head" in load_file(trained / "state.safetensors")
    assert train_only(CONFIG, trained, resume=True) == "finished"
