"""Hydra's sweep syntax as sizes and recipes."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from marble_sweep.checks import CheckError
from marble_sweep.hydra_app.sweep_length import require_few
from marble_sweep.hydra_app.sweep_syntax import parse
from marble_sweep.searches.space import Dimension, Space, Value, build


def dimensions(*words: str) -> dict[str, Dimension]:
    return {dimension.key: dimension for dimension in parse(words, OverridesParser.create())[0]}


def only_dimension(word: str) -> Dimension:
    (dimension,) = dimensions(word).values()
    return dimension


def num_parameters(params: dict[str, Value]) -> int:
    layers, width = int(params.get("model.num_layers", 0)), int(params.get("model.hidden_dim", 4))
    if width == 13:
        raise CheckError("model.hidden_dim = 13: must be another number")
    return 100 * width + layers * width * width


def space(*words: str) -> Space:
    return build(list(dimensions(*words).values()), num_parameters)


@pytest.mark.parametrize(
    ("word", "distribution", "values"),
    [
        ("a=choice(x,y)", CategoricalDistribution(["x", "y"]), ("x", "y")),
        ("a=y,x", CategoricalDistribution(["y", "x"]), ("y", "x")),
        ("a=3,1,2", CategoricalDistribution([1, 2, 3]), (1, 2, 3)),  # numbers have an order
        ("a=range(2,6)", IntDistribution(2, 5), (2, 3, 4, 5)),  # without its stop, as in a grid
        ("a=range(0,4)", IntDistribution(0, 3), (0, 1, 2, 3)),
        ("a=range(8,0,-3)", IntDistribution(2, 8, step=3), (2, 5, 8)),
        ("a=range(0,1,0.25)", CategoricalDistribution([0.0, 0.25, 0.5, 0.75]), (0.0, 0.25, 0.5, 0.75)),
        ("a=int(interval(2,4))", IntDistribution(2, 4), (2, 3, 4)),
        ("a=interval(0,1)", FloatDistribution(0, 1), (0.0, 0.25, 0.5, 0.75, 1.0)),
        (
            "a=tag(log,interval(1e-3,1e-1))",
            FloatDistribution(1e-3, 1e-1, log=True),
            (1e-3, 3.16e-3, 1e-2, 3.16e-2, 1e-1),
        ),
        ("a=tag(log,interval(0.1,0.2))", FloatDistribution(0.1, 0.2, log=True), (0.1, 0.141, 0.2)),
        ("a=tag(log,int(interval(1,3)))", IntDistribution(1, 3, log=True), (1, 2, 3)),
    ],
)
def test_sweeps(word: str, distribution: BaseDistribution, values: tuple[Value, ...]) -> None:
    dimension = only_dimension(word)
    assert dimension.distribution == distribution
    assert dimension.values == pytest.approx(values) if isinstance(values[0], float) else dimension.values == values
    assert all(distribution._contains(distribution.to_internal_repr(value)) for value in dimension.values)
    assert dimension.ordered == (not isinstance(values[0], str))


def test_a_head_of_its_own_makes_another_size_and_the_width_of_the_start_does_not() -> None:
    tied, std = dimensions("model.tied=true,false", "model.embedding_std=0.01,0.02").values()
    assert (tied.decides_size, std.decides_size) == (True, False)
    assert tied.values == ("True", "False")


@pytest.mark.parametrize("word", ["a=interval(2,1)", "a=tag(log,interval(0,1))", "a=range(3,3)"])
def test_empty_sweeps_are_refused(word: str) -> None:
    with pytest.raises(ValueError, match=r"a = .*: must (be an interval|have at least one value)"):
        parse([word], OverridesParser.create())


@pytest.mark.parametrize(
    "word", ["a=range(1,2000000000)", "a=range(0,1,1e-9)", "a=int(interval(1,2000000000))", "a=range(9e9,0,-1)"]
)
def test_endless_sweeps_are_refused_before_they_are_laid_out(word: str) -> None:
    with pytest.raises(ValueError, match=r"a = .*: must be shorter"):
        parse([word], OverridesParser.create())
    with pytest.raises(ValueError, match=r"a = .*: must be shorter"):
        require_few(OverridesParser.create().parse_overrides([word]))


def test_endless_products_are_refused_before_they_are_laid_out() -> None:
    words = [f"model.{key}=range(0,1000)" for key in ("num_layers", "hidden_dim")]
    with pytest.raises(ValueError, match=r"model.num_layers, model.hidden_dim = 1,000,000 sizes: must be at most"):
        space(*words)
    with pytest.raises(ValueError, match=r"model.hidden_dim = range\(0,1000\): must be shorter"):
        require_few(OverridesParser.create().parse_overrides(words))


def test_the_last_override_of_a_key_counts() -> None:
    swept, fixed = parse(["a=1,2", "b=5", "a=7", "b=range(3)", "c=1", "c=2"], OverridesParser.create())
    assert [dimension.key for dimension in swept] == ["b"]
    assert fixed == {"a": "a=7", "c": "c=2"}


def test_sizes_ascend_and_impossible_ones_are_left_out() -> None:
    searched = space("model.num_layers=range(0,3)", "model.hidden_dim=12,13,2", "optimizer.lr=interval(0,1)")
    assert [str(size) for size in searched.sizes] == ["0L2D", "1L2D", "2L2D", "0L12D", "1L12D", "2L12D"]
    assert [size.num_parameters for size in searched.sizes] == [200, 204, 208, 1200, 1344, 1488]
    assert searched.impossible == ("model.hidden_dim = 13: must be another number",) * 3
    assert [dimension.key for dimension in searched.recipes] == ["optimizer.lr"]


def test_of_sizes_with_the_same_cost_the_one_with_fewer_parameters_is_smaller() -> None:
    searched = build(
        list(dimensions("model.hidden_dim=2,3,4").values()),
        lambda size: 10 - int(size["model.hidden_dim"]),
        lambda _: 7,
    )
    assert [dict(size.params)["model.hidden_dim"] for size in searched.sizes] == [4, 3, 2]
    assert searched.has_ties


def test_a_space_without_any_possible_size_is_refused() -> None:
    with pytest.raises(ValueError, match="must be another number"):
        space("model.hidden_dim=13,13")


def test_a_space_of_recipes_alone_has_one_size() -> None:
    searched = space("precision=bf16,fp32")
    assert [str(size) for size in searched.sizes] == ["the only size"]
    assert searched.params(0, (1.0,)) == {"precision": "fp32"}


def test_half_way_between_recipes() -> None:
    searched = space("optimizer.lr=tag(log,interval(1e-3,1))", "optimizer.weight_decay=interval(0,1)")
    assert searched.params(0, (4.0, 1.5)) == {"optimizer.lr": 0.1, "optimizer.weight_decay": 0.375}
    assert searched.params(0, (3.5, 0.0))["optimizer.lr"] == 0.0562  # the geometric mean of 0.0316 and 0.1


def test_long_ranges_of_recipes_are_thinned_and_sizes_are_not() -> None:
    searched = space("model.hidden_dim=range(2,12)", "trainer.batch_size=range(1,102)")
    assert len(searched.sizes) == 10
    (batch,) = searched.recipes
    assert batch.values == (1, 26, 51, 76, 101)
    assert batch.distribution == IntDistribution(1, 101)
    (log,) = space("trainer.batch_size=tag(log,int(interval(1,256)))").recipes
    assert log.values == (1, 4, 16, 64, 256)


def test_narrower_means_a_smaller_width_and_nothing_else() -> None:
    sizes = {str(size): size for size in space("model.num_layers=0,1", "model.hidden_dim=2,3").sizes}
    assert sizes["0L2D"].narrower_than(sizes["0L3D"])
    assert not sizes["0L3D"].narrower_than(sizes["0L2D"])
    assert not sizes["0L2D"].narrower_than(sizes["1L3D"])
    assert not sizes["0L2D"].narrower_than(sizes["0L2D"])
