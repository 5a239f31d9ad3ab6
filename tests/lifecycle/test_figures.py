"""The figures of a lifecycle for print."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from planted_lives import phases_of, planted_lives

from marble_sweep.lifecycle.figures import (
    DPI,
    WIDTH,
    cloud_figure,
    draw_figures,
    step_ticks,
    strata,
    stratigraphy_figure,
)
from marble_sweep.lifecycle.panels import COLOURS, axis_labels, curves, panels
from marble_sweep.lifecycle.result import PHASES


def test_rows_of_the_stratigraphy_are_the_retrospective_phases() -> None:
    lifecycle, _ = planted_lives(400, 80, 0)
    steps = np.arange(1, 401)
    image = strata(lifecycle.tokens, steps.astype(np.float64))
    expected = phases_of(steps, lifecycle.tokens).T
    undecided = (expected == 3) & lifecycle.tokens["censored"].to_numpy()[:, None]
    assert undecided.any()
    np.testing.assert_array_equal(image, np.where(undecided, len(PHASES), expected))


def test_ticks_are_round_and_apart() -> None:
    for last in (1, 9, 300, 5_000, 20_000):
        ticks = step_ticks(last)
        assert ticks[0] == 0
        assert last / 2 <= ticks[-1] <= last
        assert np.diff(np.sqrt(ticks)).min() > 0.07 * np.sqrt(last)


def test_charts_without_numbers_are_empty() -> None:
    lifecycle, _ = planted_lives(50, 10, 2, with_intended=False)
    nowhere = replace(lifecycle, steps=lifecycle.steps.assign(radius=np.nan, spread_along=np.nan, spread_across=np.inf))
    shown = {panel.name: list(curves(nowhere, panel).columns) for panel in panels(nowhere)}
    assert (shown["spread"], shown["intended"], shown["lost"]) == ([], [], [])
    assert shown["cooling"] == ["l1_median", "linf_median"]


@pytest.mark.parametrize(
    ("kind", "masters", "label"),
    [
        ("full", False, "share predicted to move"),
        ("full", True, "share predicted to move on the lattice"),
        ("tracers", True, "share predicted to move on the lattice, of all dead tokens"),
        ("tracers", False, "share predicted to move, of all dead tokens"),
    ],
)
def test_the_prediction_is_called_what_it_is(kind: str, masters: bool, label: str) -> None:
    lifecycle, _ = planted_lives(50, 10, 2)
    steps = lifecycle.steps.assign(masters_moving=1.0) if masters else lifecycle.steps
    lifecycle = replace(lifecycle, steps=steps, summary=lifecycle.summary | {"kind": kind})
    (moving,) = (panel for panel in panels(lifecycle) if panel.name == "moving")
    assert "dead_predicted_moving" in curves(lifecycle, moving)
    assert moving.columns["dead_predicted_moving"] == label


def test_a_step_is_not_drawn_as_the_prediction_of_several() -> None:
    lifecycle, _ = planted_lives(50, 10, 2)
    lifecycle = replace(lifecycle, summary=lifecycle.summary | {"every": 4})
    (moving,) = (panel for panel in panels(lifecycle) if panel.name == "moving")
    assert list(curves(lifecycle, moving)) == ["moving", "coherence"]
    assert moving.columns["moving"] == "share that moves in 4 steps"


def test_positions_without_a_hidden_state_are_not_called_along_it() -> None:
    lifecycle, _ = planted_lives(50, 10, 2)
    assert axis_labels(lifecycle)[0].startswith("along −h̄")
    assert axis_labels(replace(lifecycle, axis=np.full(3, np.nan)))[0].startswith("first principal")


@pytest.mark.slow
def test_the_figures_are_there_at_their_size_and_in_their_colours(tmp_path: Path) -> None:
    lifecycle, frames = planted_lives(300, 60, 5)
    paths = draw_figures(tmp_path / "new", lifecycle, frames, "$title$ <b>")
    names = ["stratigraphy", *(panel.name for panel in panels(lifecycle)), "cloud"]
    assert [path.stem for path in paths] == names
    for path in paths:
        height, width, _ = (image := imread(path)).shape
        assert (width, height > 3 * DPI) == (WIDTH * DPI, True)
        assert (image[:5, -5:, :3] == 1).all()  # a light background
    colours = {tuple(np.rint(255 * pixel).astype(int)) for pixel in imread(paths[0])[..., :3].reshape(-1, 3)[::7]}
    assert {tuple(np.rint(255 * np.array(to_rgb(COLOURS[phase]))).astype(int)) for phase in PHASES} <= colours
    nowhere = replace(frames, positions=np.full_like(frames.positions, np.nan))
    fewer = draw_figures(tmp_path / "norms", planted_lives(300, 60, 5, with_intended=False)[0], nowhere, "norms")
    assert {path.stem for path in fewer} == set(names) - {"cloud", "intended", "lost"}


def test_a_stratigraphy_of_one_token_can_be_drawn() -> None:
    lifecycle, _ = planted_lives(20, 1, 0)
    assert stratigraphy_figure(lifecycle, "one").axes


def test_a_cloud_that_is_one_black_hole_is_drawn() -> None:
    """It has no extent for the axes; a warning would fail this test."""
    lifecycle, frames = planted_lives(60, 20, 2)
    figure = cloud_figure(lifecycle, replace(frames, positions=np.ones_like(frames.positions)), "one point")
    assert figure.axes[0].get_xlim() == (-1, 1)
