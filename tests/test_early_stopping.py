"""When a margin is certified, when a run may end, and how many standard errors that takes."""

import math
import re
from pathlib import Path

import pytest
from helpers import tiny_config
from opened import interrupted_as_it_writes

import marble_sweep
from marble_sweep.config import NOT_OF_A_RUN, load
from marble_sweep.early_stopping import EarlyStopping, is_hopeless, lacks_context, margin, outcome, shortfall
from marble_sweep.metrics.margin import errors_needed
from marble_sweep.run import run
from marble_sweep.runs.status import RunStatus, read_metadata
from marble_sweep.search_config import CertifyConfig
from marble_sweep.training.schedule import evaluation_steps

GEOMETRIC = ("trainer.num_evals=5", "trainer.eval_spacing=geometric")
STOPPING = (*GEOMETRIC, "certify.stop=true")


def row(step: int, margin: float, error: float = 0.01, *, gain: float = 0.1, loss: float = 6.6) -> dict[str, float]:
    """A row of evals.csv, as far as early stopping reads it."""
    below = {"unigram": -0.1, "tempered": 0.0, "oracle": 0.2, "bigram": 1.0}
    margins = {f"{name}_margin": margin - less for name, less in below.items()}
    errors = {f"{name}_margin_se": error for name in below} | {"val_loss_se": 0.03, "context_gain_se": 0.001}
    return {"step": step, "val_loss": loss, "context_gain": gain, **margins, **errors}


def test_errors_needed_share_the_error_rate_of_one_evaluation() -> None:
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
    assert shortfall(CertifyConfig(), row(10, 9.0, gain=math.nan), errors=4.0) == math.inf


@pytest.mark.parametrize("threshold", ["unigram", "oracle", "bigram"])
def test_no_baseline_is_beaten_without_use_of_the_context(threshold: str) -> None:
    config = CertifyConfig(threshold=threshold)
    for gain, used in ((0.0041, True), (0.0039, False), (0.0, False), (-1.0, False), (math.nan, False)):
        far_below = row(10, 9.0, gain=gain)
        assert (outcome(config, far_below, errors=4.0) == "certified") is used
        assert (shortfall(config, far_below, errors=4.0) <= 0) is used
        assert lacks_context(config, far_below, errors=4.0) is not used
    assert shortfall(config, row(10, 9.0, gain=0.001), errors=4.0) == pytest.approx(0.003)
    assert not lacks_context(config, row(10, -9.0, gain=0.0), errors=4.0), "its margin would not certify it either"
    by_loss = CertifyConfig(threshold="7.0")
    assert outcome(by_loss, row(10, 9.0, gain=0.0), errors=4.0) == "certified", "a number needs no context"


def test_the_context_must_be_used_before_a_run_ends_as_certified() -> None:
    assert stop_reasons(row(10, 0.5, gain=0.001), row(14, 0.5, gain=0.5)) == [None, "certified"]


def several(*thresholds: str) -> EarlyStopping:
    """Of a run for the first of these thresholds, with evaluations at steps 10, 14, 20, 28 and 40."""
    named = f"certify.thresholds=[{','.join(thresholds)}]"
    return EarlyStopping(tiny_config(*STOPPING, f"certify.threshold={thresholds[0]}", named))


def test_the_last_evaluation_looks_at_all_windows_where_any_threshold_is_undecided() -> None:
    """The margin is certified against unigram, 0.2 nats more are asked against the oracle, and undecided there."""
    early_stopping = several("unigram", "oracle")
    undecided = row(40, 0.21)
    assert not early_stopping.needs_all_windows(undecided | {"step": 28}), "it is trained for unigram"
    assert early_stopping.needs_all_windows(undecided)
    assert not several("unigram").needs_all_windows(undecided)
    assert not early_stopping.needs_all_windows(row(40, 0.5)), "both are certified"
    assert several("oracle", "unigram").needs_all_windows(undecided | {"step": 28})


def test_how_a_run_stands_towards_every_threshold() -> None:
    early_stopping = several("unigram", "oracle", "bigram")
    unigram, oracle, bigram = early_stopping.thresholds
    assert [config.threshold for config in early_stopping.thresholds] == ["unigram", "oracle", "bigram"]
    evals = [row(10, 0.0), row(14, 0.21)]
    assert early_stopping.standing(unigram, evals) == ("certified", 2)
    assert early_stopping.standing(oracle, evals) == (None, 2), "it could be continued for that"
    whole = [*evals, row(20, 0.3), row(28, 0.25), row(40, 0.21)]
    assert early_stopping.standing(unigram, whole) == ("certified", 2), "by the first evaluation that certifies"
    assert early_stopping.standing(oracle, whole) == ("certified", 3)
    assert early_stopping.standing(bigram, whole) == ("below", 5)
    assert early_stopping.standing(oracle, [row(40, 0.21)]) == ("undecided", 1)
    assert early_stopping.standing(bigram, [row(20, -9.0), row(28, -9.0)]) == ("pruned", 2)
    assert early_stopping.standing(unigram, []) == (None, 0)


def test_an_evaluation_of_an_earlier_version_gives_up_no_run() -> None:
    earlier = row(50, math.nan)
    assert not is_hopeless(CertifyConfig(), [earlier, row(71, -9.0)], STEPS)
    assert stop_reasons(earlier, row(14, 0.5)) == [None, "certified"]


@pytest.mark.parametrize("threshold", ["unigrams", "-1", "0", "nan", ""])
def test_other_thresholds_are_refused(threshold: str) -> None:
    with pytest.raises(ValueError, match=r"certify.threshold = .*: must be unigram, oracle, bigram, or a loss > 0"):
        CertifyConfig(threshold=threshold)


def test_a_run_without_held_out_text_cannot_stop_early() -> None:
    with pytest.raises(ValueError, match=r"data.val_fraction = 0: must be > 0 with certify.stop=true"):
        tiny_config(*STOPPING, "data.val_fraction=0")


STEPS = evaluation_steps(400, 9, "geometric")


def test_far_below_and_hardly_rising_is_hopeless() -> None:
    # log2(400 / 71) = 2.494 doublings are left: with 0.12 of the loss of 6.6 in each, 1.975 nats at most.
    assert is_hopeless(CertifyConfig(), [row(50, -1.99), row(71, -1.98)], STEPS)
    assert not is_hopeless(CertifyConfig(), [row(50, -1.98), row(71, -1.97)], STEPS)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_a_run_as_diverged_not_as_hopeless(loss: float) -> None:
    assert not is_hopeless(CertifyConfig(), [row(50, -1.0), row(71, -loss, math.nan, loss=loss)], STEPS)


def test_what_still_falls_fast_has_hope() -> None:
    # 0.5 nats in 21 steps: 7.83 in the 329 that are left.
    assert is_hopeless(CertifyConfig(), [row(50, -8.4), row(71, -7.9)], STEPS)
    assert not is_hopeless(CertifyConfig(), [row(50, -8.3), row(71, -7.8)], STEPS)


@pytest.mark.parametrize("margin", [-0.40, -0.39])
def test_hope_does_not_depend_on_how_often_a_run_is_evaluated(margin: float) -> None:
    """The same two evaluations, with one to twelve others left. Half of 0.12 of 6.6 nats is left, 0.3953."""
    evals = [row(200, margin), row(283, margin)]
    schedules = [STEPS, [*STEPS[:-1], *range(290, 401, 10)], [200, 283, 400]]
    assert {is_hopeless(CertifyConfig(), evals, steps) for steps in schedules} == {margin < -0.3953}


def test_a_single_evaluation_says_nothing_of_how_fast_it_falls() -> None:
    assert not is_hopeless(CertifyConfig(), [row(25, -50.0)], STEPS)


def test_a_model_that_ignores_its_context_after_a_quarter_of_its_steps_is_hopeless() -> None:
    flat = [row(99, -0.05, gain=0.0), row(100, -0.05, gain=1e-8)]
    assert is_hopeless(CertifyConfig(), flat, STEPS)
    assert not is_hopeless(CertifyConfig(), flat[:1], STEPS)
    assert not is_hopeless(CertifyConfig(), [flat[0], row(100, -0.05, gain=1e-6)], STEPS)
    # A number may lie above what token frequencies reach, so a context is not needed.
    assert not is_hopeless(CertifyConfig(threshold="6.59"), flat, STEPS)


def stop_reasons(*evals: dict[str, float], overrides: tuple[str, ...] = STOPPING) -> list[RunStatus | None]:
    """What is decided at each of the evaluations, whatever was decided before."""
    early_stopping = EarlyStopping(tiny_config(*overrides))
    return [early_stopping.stop_reason(evals[:count], steps_per_minute=500.0) for count in range(1, len(evals) + 1)]


def test_a_run_is_certified_at_the_first_evaluation_that_does() -> None:
    needed = errors_needed(3.0, 2 * 5)  # of each of five evaluations two decisions
    assert stop_reasons(row(10, 0.0), row(14, 0.01 * needed - 1e-6), row(20, 0.01 * needed + 1e-6)) == [
        None,
        None,
        "certified",
    ]


def test_a_run_is_given_up_before_the_last_evaluation_only() -> None:
    assert stop_reasons(row(10, -9.0), row(14, -9.0)) == [None, "pruned"]
    assert stop_reasons(row(28, -9.0), row(40, -9.0)) == [None, None]


def test_too_slow() -> None:
    assert stop_reasons(row(10, 5.0), overrides=(*STOPPING, "certify.min_steps_per_minute=501")) == ["too_slow"]
    assert stop_reasons(row(10, 5.0), overrides=(*STOPPING, "certify.min_steps_per_minute=499")) == ["certified"]


def test_the_speed_that_ends_a_run_is_part_of_the_run(tmp_path: Path) -> None:
    """Continued by hand, by its own config alone, a trial ends as the unbroken one."""
    config = tiny_config(*STOPPING, "certify.min_steps_per_minute=1e9", "trainer.checkpoint_interval=3")
    assert run(config, tmp_path / "unbroken", show=False) == "too_slow"

    with interrupted_as_it_writes("checkpoints.safetensors", 2):  # after step 3; the first is of the start
        assert run(config, tmp_path / "broken", show=False) == "interrupted"
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


def test_a_run_ends_as_early_stopping_decides(tmp_path: Path) -> None:
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


def test_a_run_that_does_not_end_early_is_judged_once() -> None:
    """Its last evaluation alone decides, so nothing is corrected for the others."""
    several = tiny_config("trainer.num_evals=9", "trainer.total_steps=400", "certify.stop=true")
    assert EarlyStopping(several).errors_needed > several.verdict.min_standard_errors
    single = tiny_config("trainer.num_evals=9", "trainer.total_steps=400")
    assert EarlyStopping(single).errors_needed == single.verdict.min_standard_errors
