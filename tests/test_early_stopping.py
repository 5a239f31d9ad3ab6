"""When a margin certifies, when a run may end, and how often it is looked at."""

import math
import re
from pathlib import Path

import pytest
from helpers import tiny_config

import marble_sweep
from marble_sweep.config import NOT_OF_A_RUN, CertifyConfig, load
from marble_sweep.early_stopping import EarlyStopping, is_hopeless, margin, shortfall
from marble_sweep.metrics.margin import errors_needed
from marble_sweep.run import run
from marble_sweep.runs.status import RunStatus, read_metadata
from marble_sweep.training.schedule import evaluation_steps
from marble_sweep.training.trainer import Trainer

GEOMETRIC = ("trainer.num_evals=5", "trainer.eval_spacing=geometric")
STOPPING = (*GEOMETRIC, "certify.stop=true")


def row(step: int, margin: float, error: float = 0.01, *, gain: float = 0.1, loss: float = 6.6) -> dict[str, float]:
    """A row of evals.csv, as far as early stopping reads it."""
    margins = {f"{name}_margin": margin - less for name, less in (("unigram", 0.0), ("oracle", 0.2), ("bigram", 1.0))}
    errors = {f"{name}_margin_se": error for name in ("unigram", "oracle", "bigram")}
    return {"step": step, "val_loss": loss, "val_loss_se": 0.03, "context_gain": gain, **margins, **errors}


def test_errors_needed_share_one_looks_error_rate() -> None:
    assert errors_needed(3.0, 1) == pytest.approx(3.0)
    # 1 - Phi(3) = 0.00134990; a ninth of it is the tail above 3.615 (any table of the normal distribution).
    assert errors_needed(3.0, 9) == pytest.approx(3.615, abs=1e-3)
    tail = 0.5 * math.erfc(errors_needed(3.0, 20) / math.sqrt(2))
    assert 20 * tail == pytest.approx(0.5 * math.erfc(3 / math.sqrt(2)), rel=1e-9)


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [("unigram", (0.5, 0.01)), ("oracle", (0.3, 0.01)), ("bigram", (-0.5, 0.01)), ("7.0", (0.4, 0.03))],
)
def test_the_margin_to_each_threshold(threshold: str, expected: tuple[float, float]) -> None:
    assert margin(CertifyConfig(threshold=threshold), row(10, 0.5)) == pytest.approx(expected)


def test_shortfall_is_zero_where_a_row_just_certifies() -> None:
    assert shortfall(CertifyConfig(), row(10, 0.04, 0.01), errors=4.0) == pytest.approx(0.0)
    assert shortfall(CertifyConfig(), row(10, 0.05, 0.01), errors=4.0) < 0
    assert shortfall(CertifyConfig(), row(10, math.nan), errors=4.0) == math.inf


@pytest.mark.parametrize("threshold", ["unigrams", "-1", "0", "nan", ""])
def test_other_thresholds_are_refused(threshold: str) -> None:
    with pytest.raises(ValueError, match=r"certify.threshold = .*: must be unigram, oracle, bigram, or a loss > 0"):
        CertifyConfig(threshold=threshold)


def test_a_run_without_held_out_text_cannot_stop_early() -> None:
    with pytest.raises(ValueError, match=r"data.val_fraction = 0: must be > 0 with certify.stop=true"):
        tiny_config(*STOPPING, "data.val_fraction=0")


# Looks at 100, 141, 200, 283 and 400 are left when 71 is over.
STEPS = evaluation_steps(400, 9, "geometric")


def test_far_below_and_hardly_rising_is_hopeless() -> None:
    # 0.04 of the loss of 6.6 a look: 1.32 nats at most in the five looks that are left.
    assert is_hopeless(CertifyConfig(), [row(50, -1.41), row(71, -1.40)], STEPS)
    assert not is_hopeless(CertifyConfig(), [row(50, -1.31), row(71, -1.30)], STEPS)


def test_what_still_falls_fast_has_hope() -> None:
    assert not is_hopeless(CertifyConfig(), [row(50, -2.0), row(71, -1.5)], STEPS)


def test_a_single_look_says_nothing_of_how_fast_it_falls() -> None:
    assert not is_hopeless(CertifyConfig(), [row(25, -50.0)], STEPS)


def test_a_model_that_ignores_its_context_near_the_end_is_hopeless() -> None:
    flat = [row(100, -0.05, gain=0.0), row(141, -0.05, gain=1e-8)]
    assert is_hopeless(CertifyConfig(), flat, STEPS)
    assert not is_hopeless(CertifyConfig(), flat[:1], STEPS)  # four looks are left
    assert not is_hopeless(CertifyConfig(), [flat[0], row(141, -0.05, gain=1e-5)], STEPS)
    # A number may lie above what word frequencies reach, so a context is not needed.
    assert not is_hopeless(CertifyConfig(threshold="6.59"), flat, STEPS)


def rulings(*rows: dict[str, float], overrides: tuple[str, ...] = STOPPING) -> list[RunStatus | None]:
    early_stopping = EarlyStopping(tiny_config(*overrides))
    found = []
    for each in rows:
        early_stopping.look(each, steps_per_minute=500.0)
        found.append(early_stopping.ruling)
    return found


def test_the_referee_certifies_at_the_first_look_that_does() -> None:
    needed = errors_needed(3.0, 5)
    assert rulings(row(10, 0.0), row(14, 0.01 * needed - 1e-6), row(20, 0.01 * needed + 1e-6)) == [
        None,
        None,
        "certified",
    ]


def test_the_referee_gives_up_before_the_last_look_only() -> None:
    assert rulings(row(10, -9.0), row(14, -9.0)) == [None, "pruned"]
    assert rulings(row(28, -9.0), row(40, -9.0)) == [None, None]


def test_the_referee_rules_only_where_asked() -> None:
    assert rulings(row(10, 5.0), row(14, -9.0), overrides=GEOMETRIC) == [None, None]


def test_too_slow() -> None:
    assert rulings(row(10, 5.0), overrides=(*STOPPING, "certify.min_steps_per_minute=501")) == ["too_slow"]
    assert rulings(row(10, 5.0), overrides=(*STOPPING, "certify.min_steps_per_minute=499")) == ["certified"]


def test_the_speed_that_ends_a_run_is_part_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Continued by hand, by its own config alone, a trial ends as the unbroken one."""
    config = tiny_config(*STOPPING, "certify.min_steps_per_minute=1e9")
    assert run(config, tmp_path / "unbroken", show=False) == "too_slow"

    train = Trainer.train
    monkeypatch.setattr(Trainer, "train", lambda self, _: train(self, lambda: self.step == 3))
    assert run(config, tmp_path / "broken", show=False) == "interrupted"
    monkeypatch.setattr(Trainer, "train", train)
    own = load(tmp_path / "broken" / "config.yaml")
    assert own.certify == config.certify
    assert run(own, tmp_path / "broken", resume=True, show=False) == "too_slow"
    for name in ("evals.csv", "verdict.json"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes()


def test_what_a_run_computes_from_is_all_in_its_config() -> None:
    """What config.yaml leaves out, no part of a run may read."""
    package = Path(marble_sweep.__file__).parent
    parts = ["run.py", "early_stopping.py", "verdict.py", "metadata.py"]
    folders = ["training", "data", "model", "metrics", "runs"]
    files = [package / name for name in parts] + [path for name in folders for path in (package / name).glob("*.py")]
    assert len(files) > 20
    read = re.compile(rf"config\.({'|'.join(NOT_OF_A_RUN)})\b")
    assert {str(path): read.findall(path.read_text()) for path in files if read.search(path.read_text())} == {}


LONG = (*STOPPING, "trainer.total_steps=160")


def test_a_run_ends_as_the_referee_rules(tmp_path: Path) -> None:
    assert run(tiny_config(*LONG), tmp_path / "learns", show=False) == "certified"
    metadata = read_metadata(tmp_path / "learns")
    assert metadata["status"] == "certified"
    assert metadata["step"] < 160
    assert not (tmp_path / "learns" / "plots").exists()
    assert run(tiny_config(*STOPPING, "optimizer.lr=1e-6"), tmp_path / "idle", show=False) == "pruned"
    assert run(tiny_config(*STOPPING, "data=iid"), tmp_path / "iid", show=False) in ("finished", "pruned")


def test_certification_only_ends_a_run_it_does_not_change_it(tmp_path: Path) -> None:
    run(tiny_config(*LONG), tmp_path / "stopped", show=False)
    run(tiny_config(*LONG, "certify.stop=false"), tmp_path / "whole", show=False)
    stopped = (tmp_path / "stopped" / "evals.csv").read_text()
    assert (tmp_path / "whole" / "evals.csv").read_text().startswith(stopped)
    assert len((tmp_path / "whole" / "evals.csv").read_text()) > len(stopped)


def test_the_number_of_parameters_is_known_before_the_model() -> None:
    from marble_sweep.run import build_model

    for overrides in (
        ("model=0L64D",),
        ("model=1L4D",),
        ("model=2L64D", "model.mlp_ratio=2.5"),
        ("model.num_layers=3", "model.hidden_dim=7", "trainer.seq_len=9", "data.vocab_size=99"),
    ):
        config = tiny_config(*overrides)
        model = build_model(config, config.data.vocab_size)
        assert config.num_parameters == sum(weight.numel() for weight in model.parameters())
