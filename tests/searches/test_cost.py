"""What a search may minimise: closed forms against torch's own counts, and measurements that a study shares."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pretender
import pytest
import torch
import torch.nn.functional as F
from helpers import tiny_config
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.storages import InMemoryStorage
from pretender import Pretender
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from marble_sweep.checks import CheckError
from marble_sweep.config import Config
from marble_sweep.groups import DeviceConfig, ModelConfig
from marble_sweep.hydra_app.sweep_syntax import parse
from marble_sweep.report.frontier import frontier_figure
from marble_sweep.report.search import can_be_drawn
from marble_sweep.run import build_model
from marble_sweep.search_config import SearchConfig
from marble_sweep.searches import worker
from marble_sweep.searches.cost import COSTS, build_space, flops_per_token, non_embedding
from marble_sweep.searches.space import Size, Space, Value
from marble_sweep.searches.step_seconds import SECONDS, recorded_step_seconds, shared_step_seconds
from marble_sweep.searches.strategy import Settled
from marble_sweep.searches.study import open_study
from marble_sweep.sweeps.step_time import step_time

BASE = tiny_config("precision=fp32", "trainer.seq_len=5")


@pytest.mark.parametrize(
    "model",
    [
        ModelConfig(num_layers=0, hidden_dim=2),
        ModelConfig(num_layers=1, hidden_dim=6, num_heads=1),
        ModelConfig(num_layers=3, hidden_dim=8, num_heads=2, mlp_ratio=1.5),
    ],
)
def test_forward_and_backward(model: ModelConfig) -> None:
    """Torch counts the products of every call; those of attention where that is plain products, and of a plain head."""
    config = replace(BASE, model=model)
    transformer = build_model(config, config.data.vocab_size)
    tokens = torch.arange(3 * 5).view(3, 5)  # 3 windows
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        logits = transformer(tokens)[:, :-1].flatten(0, 1) @ transformer.embedding.weight.T
        F.cross_entropy(logits, tokens[:, 1:].flatten()).backward()
    assert counter.get_total_flops() == pytest.approx(tokens.numel() * flops_per_token(config), rel=1e-12)


@pytest.mark.parametrize(("layers", "width"), [(0, 2), (2, 6)])
def test_parameters_outside_the_embedding(layers: int, width: int) -> None:
    config = replace(BASE, model=ModelConfig(num_layers=layers, hidden_dim=width))
    model = build_model(config, config.data.vocab_size)
    tables = model.embedding.weight.numel() + model.positions.weight.numel()
    assert non_embedding(config) == sum(weight.numel() for weight in model.parameters()) - tables


def test_every_known_cost_is_above_zero_without_layers() -> None:
    """The bisection takes its logarithm."""
    config = replace(BASE, model=ModelConfig(num_layers=0, hidden_dim=1))
    assert all(cost.of(config) > 0 for cost in COSTS.values() if cost.of is not None)


# ------------------------------------------------------------------------------------------------ the order of sizes


def space_by(minimise: str, *words: str) -> Space:
    base = replace(BASE, search=SearchConfig(minimise=minimise))

    def resolve(size: dict[str, Value]) -> Config:
        model = ModelConfig(num_layers=int(size["model.num_layers"]), hidden_dim=int(size["model.hidden_dim"]))
        data = replace(base.data, vocab_size=int(size.get("data.vocab_size", 64)))
        return replace(base, model=model, data=data)

    dimensions, _ = parse(words or ("model.num_layers=0,1", "model.hidden_dim=2,6"), OverridesParser.create())
    return build_space(dimensions, resolve)


def ordered(minimise: str) -> list[str]:
    """The sizes of a small space, in their order."""
    space = space_by(minimise, "model.num_layers=0,1", "model.hidden_dim=2,6", "data.vocab_size=64,128")
    assert space.has_ties == (minimise == "non_embedding")
    return ["{}L{}D{}".format(*(value for _, value in size.params)) for size in space.sizes]


def test_sizes_are_ordered_by_what_is_minimised_and_ties_by_parameters() -> None:
    by_parameters = ["0L2D64", "1L2D64", "0L2D128", "1L2D128", "0L6D64", "0L6D128", "1L6D64", "1L6D128"]
    assert ordered("n_params") == by_parameters
    outside = ["0L2D64", "0L2D128", "0L6D64", "0L6D128", "1L2D64", "1L2D128", "1L6D64", "1L6D128"]
    assert ordered("non_embedding") == outside
    assert ordered("flops_per_token")[:3] == ["0L2D64", "1L2D64", "0L2D128"]


# ---------------------------------------------------------------------------------------------------- seconds per step


def test_a_step_takes_time_and_leaves_the_choice_of_its_products(tmp_path: Path) -> None:
    config = replace(BASE, device=DeviceConfig(type="cpu", num_threads=1))
    before = torch.get_num_threads()
    assert step_time(config, tmp_path / "product_choices") > 0
    assert [path.name for path in (tmp_path / "product_choices").iterdir()] == ["head-16x64-fp32.json"]
    assert torch.get_num_threads() == before


def test_workers_that_measure_at_once_go_by_the_first_measurement() -> None:
    study = optuna.create_study()

    def measure() -> dict[str, float]:
        """Another worker ends before this one."""
        assert shared_step_seconds(study, lambda: {"a": 1.0}) == {"a": 1.0}
        return {"a": 2.0}

    assert shared_step_seconds(study, measure) == {"a": 1.0}
    assert shared_step_seconds(study, lambda: pytest.fail("it is measured already")) == {"a": 1.0}
    assert [trial.user_attrs[SECONDS] for trial in study.get_trials()] == [{"a": 1.0}, {"a": 2.0}]


def test_a_search_goes_by_what_was_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the widths that certify, 4 to 8, width 6 is the quickest; of the others only width 3 is quicker still."""
    seconds = dict(zip(range(2, 9), [0.2, 0.02, 0.09, 0.08, 0.03, 0.07, 0.06], strict=True))
    measured: list[int] = []

    def measure(
        sizes: Sequence[Size], configs: Sequence[Config], products: Path, threads: int | None
    ) -> dict[str, float]:
        assert [config.model.hidden_dim for config in configs] == list(range(2, 9))
        assert (products, threads) == (tmp_path / "product_choices", 3)
        measured.append(len(sizes))
        return {size.key: seconds[int(dict(size.params)["model.hidden_dim"])] for size in sizes}

    def search() -> tuple[str, dict[str, Any], list[optuna.trial.FrozenTrial]]:
        pretending = Pretender(tmp_path, 1)
        ended = pretending.search.run(pretending.train, threads=3)
        assert recorded_step_seconds(pretending.search.shared.study) is not None
        result = pretending.search.result()
        return ended.reason, result.as_json("settled"), list(result.trials)

    monkeypatch.setattr(worker, "measure_step_seconds", measure)
    for name in ("draw_frontier", "write_page"):
        monkeypatch.setattr(worker, name, lambda *_: None)
    base = replace(pretender.BASE, search=replace(pretender.BASE.search, minimise="seconds_per_step"))
    monkeypatch.setattr(pretender, "BASE", base)
    ended, summary, trials = search()
    assert ended == "settled"
    assert (summary["minimise"], summary["cost_unit"]) == ("seconds_per_step", "seconds per step")
    (of_threshold,) = summary["thresholds"]
    answer = of_threshold["answer"]
    assert (answer["size"], answer["cost"], answer["confirmed"]) == ("hidden_dim=6", 0.03, True)
    assert of_threshold["sizes_below"] == {"refuted": 1}
    assert all(trial.value in seconds.values() for trial in trials)
    lines = summary["summary_lines"]
    assert lines[0].startswith(
        "The certified size with the fewest seconds per step: hidden_dim=6, 0.03 seconds per step ("
    )
    assert "Of all sizes with fewer seconds per step in the space: 1 not certified with the recipes tried." in lines
    assert can_be_drawn(summary)
    (axes,) = frontier_figure(summary).axes
    assert axes.get_xlabel() == "seconds per step"
    assert (
        axes.get_title(loc="left") == "Certified with the fewest seconds per step: hidden_dim=6, 0.03 seconds per step"
    )
    assert axes.get_lines()[-1].get_xdata() is not None

    assert search()[2] == trials
    assert measured == [7]
    monkeypatch.setattr(pretender, "BASE", replace(base, search=replace(base.search, minimise="n_params")))
    with pytest.raises(CheckError, match=r"search\.minimise was seconds_per_step, now n_params"):
        search()


def test_a_study_that_began_before_there_was_a_choice_goes_on_by_parameters() -> None:
    storage, space = InMemoryStorage(), space_by("n_params")

    def join(**settings: str) -> None:
        open_study(
            storage, "study", space, lambda _: Settled(), {f"search.{key}": settings[key] for key in settings}, 60
        )

    join()
    join(minimise="n_params")
    with pytest.raises(CheckError, match=r"search\.minimise was n_params, now non_embedding"):
        join(minimise="non_embedding")


def test_the_bracket_says_what_is_minimised() -> None:
    cost, space = COSTS["flops_per_token"], space_by("flops_per_token")
    assert cost.named(space.sizes[0]) == "0L2D, 614 FLOPs per token,"
    assert cost.smaller("", space) == "with fewer FLOPs per token"
    assert COSTS["n_params"].named(space.sizes[0]) == "0L2D"
    tied = space.with_costs({size.key: 7.0 for size in space.sizes})
    assert cost.smaller("sizes", tied) == "sizes with fewer FLOPs per token, or as many and fewer parameters"
