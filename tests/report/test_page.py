"""The comparison page: what it says, and that it works in a browser."""

import base64
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from browsers import LAPTOP, PHONE, complaints, open_browser, set_window
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from marble_sweep.report.curves import shorten
from marble_sweep.report.headline import headline, labels
from marble_sweep.report.page import pack, write_page
from marble_sweep.report.rows import group_rows, repeats
from marble_sweep.report.summary import Comparison, compare_runs
from marble_sweep.runs.run import Run

MakeRun = Callable[..., Path]


def compared(*runs: Path) -> Comparison:
    return compare_runs([Run.read(run) for run in runs])


def sentences(comparison: Comparison) -> list[str]:
    return headline(comparison, group_rows(comparison.rows, repeats(comparison)))


def test_the_headline_names_the_best_and_the_smallest(make_run: MakeRun, tmp_path: Path) -> None:
    big = [make_run(tmp_path / f"big{seed}", "model.num_layers=4", f"seed={seed}", loss=4.0) for seed in (1, 2)]
    small = make_run(tmp_path / "small", "model.num_layers=1", loss=5.0)
    lost = make_run(tmp_path / "stale", "model.num_layers=0", loss=6.5, status="diverged")
    best, smallest, what = sentences(compared(*big, small, lost))
    assert re.fullmatch(r"Best: 4L128D, held-out loss 4\.0\d\d ± 0\.00\d nats per token \(perplexity 5\d\.\d\)\.", best)
    assert smallest.startswith("Smallest that beats unigram (2 of 3 do): 1L128D, 1,492,992 parameters, by 1.1")
    assert what == "4 runs of 3 configurations, repeated over seeds, at step 200; 1 diverged."


def test_the_headline_when_none_beats_unigram(make_run: MakeRun, tmp_path: Path) -> None:
    lost = [make_run(tmp_path / str(lr), f"optimizer.lr={lr}", loss=6.5) for lr in (1, 2)]
    assert sentences(compared(*lost))[1].startswith("None of 2 is shown to beat unigram; 4L128D, lr=")


@pytest.mark.parametrize(
    ("val_fraction", "every", "expected"),
    [(0, 0, "Nothing was held out, so it is"), (0.1, 0, "It is"), (0.1, 20, "It is")],
)
def test_the_headline_says_nothing_was_held_out_only_where_that_is_so(
    val_fraction: float, every: int, expected: str, make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", f"data.val_fraction={val_fraction}", every=every)
    if every:  # a single window has no error
        evals = pd.read_csv(run / "evals.csv")
        evals.assign(tempered_margin_se=math.nan).to_csv(run / "evals.csv", index=False)
    assert sentences(compared(run))[-2] == f"{expected} not known whether a run beats unigram."


def test_without_a_common_step_nothing_is_called_best(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(every), steps=every, every=every) for every in (30, 40)]
    assert sentences(compared(*runs)) == ["2 runs."]


def test_configurations_of_one_name_are_told_apart(make_run: MakeRun, tmp_path: Path) -> None:
    comparison = compared(make_run(tmp_path / "a"), make_run(tmp_path / "b", sha256="b" * 64))
    groups = group_rows(comparison.rows, repeats(comparison))
    assert labels(comparison, groups) == [f"4L128D ({tmp_path / name})" for name in "ab"]


def test_curves_are_means_of_neighbours() -> None:
    values = np.array([[1, 2, 3, 4, 5, 6], [1, np.nan, np.nan, np.nan, np.inf, 3]], dtype=float)
    np.testing.assert_array_equal(shorten(values, 3), [[1.5, 3.5, 5.5], [1, np.nan, 3]])
    np.testing.assert_array_equal(shorten(values, 100)[0], values[0])


def test_packed_values_come_back() -> None:
    for values in ([1.0, 2.5, np.nan, 9.0], [3.0, 3.0], [np.nan]):
        packed = pack(np.array(values))
        codes = np.frombuffer(base64.b64decode(packed["codes"]), "<u2")
        back = packed["low"] + (packed["high"] - packed["low"]) * codes / 65534
        np.testing.assert_allclose(np.where(codes == 65535, np.nan, back), values, rtol=1e-4)


@pytest.fixture(scope="module")
def sweep(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Twelve configurations of three parameters, one with repeats, one that diverged, one named like an attack."""
    folder = tmp_path_factory.mktemp("sweep")
    grid = [(layers, lr, decay) for layers in (1, 2, 4) for lr in (3e-4, 3e-3) for decay in (0, 0.1)]
    runs = [
        make_run(
            folder / str(job),
            f"model.num_layers={layers}",
            f"optimizer.lr={lr}",
            f"optimizer.weight_decay={decay}",
            f"data.packages=[{'numpy' if job else ATTACK}]",
            steps=400,
            status="diverged" if job == 3 else "finished",
        )
        for job, (layers, lr, decay) in enumerate(grid)
    ]
    for job, run in enumerate(runs[:-1]):  # of the last one, fewer than half of the dead tokens froze
        metadata = json.loads((run / "metadata.json").read_text())
        freeze = 100 * grid[job][0] + (10 if grid[job][1] == 3e-3 else 0)
        (run / "metadata.json").write_text(json.dumps(metadata | {"lifecycle": {"freeze_median": freeze}}))
    again = [f"model.num_layers={grid[5][0]}", f"optimizer.lr={grid[5][1]}", f"optimizer.weight_decay={grid[5][2]}"]
    return compared(*runs, make_run(folder / "12", *again, "data.packages=[numpy]", "seed=1", steps=400))


ATTACK = "<img src=x onerror=document.title=1></script>"


@pytest.fixture(scope="module")
def page(sweep: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "new" / "page.html"
    write_page(sweep, path)
    return path


def test_the_page_is_whole_and_small(page: Path) -> None:
    text = page.read_text()
    assert 4_000_000 < len(text.encode()) < 6_000_000
    own = text.replace(text[text.index("/**\n* plotly.js") : text.index('<script id="data"')], "")
    assert "http" not in own.replace("http-equiv", "")
    assert ATTACK not in own
    assert "&lt;img src=x" in own


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with open_browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


def is_drawn(chart: WebElement) -> Callable[[Chrome], bool]:
    return lambda _: "js-plotly-plot" in (chart.get_attribute("class") or "")


def has_picked(number: int) -> Callable[[Chrome], bool]:
    return lambda browser: len(picked_curves(browser)) == number


def visit(browser: Chrome, page: Path, size: tuple[int, int] = LAPTOP) -> None:
    """Open the page and scroll through it, so that every chart is drawn."""
    set_window(browser, size)
    browser.get(page.as_uri())
    for chart in browser.find_elements(By.CSS_SELECTOR, ".chart"):
        browser.execute_script("arguments[0].scrollIntoView()", chart)
        WebDriverWait(browser, 20).until(is_drawn(chart))


def picked_curves(browser: Chrome) -> list[list[float]]:
    """The training-loss curves drawn over the others, each as its values."""
    script = """
        const chart = document.querySelector('[data-curve="loss"]');
        return chart.classList.contains("picking") ? chart.data.at(-1).y : [];
    """
    curves: list[list[float]] = [[]]
    for value in browser.execute_script(script):
        curves[-1:] = [curves[-1] + [value]] if value is not None else [curves[-1], []]
    return [curve for curve in curves if curve]


@pytest.mark.slow
def test_the_page_opens_without_a_complaint(browser: Chrome, page: Path) -> None:
    browser.get_log("browser")
    visit(browser, page)
    assert len(browser.find_elements(By.CSS_SELECTOR, ".js-plotly-plot")) == 1 + 9 + 1 + 4 + 4 + 1
    assert complaints(browser) == []
    assert browser.title.startswith("marble_sweep: Best: ")  # no config's text has run
    assert not browser.find_elements(By.CSS_SELECTOR, "img[src=x]")


@pytest.mark.slow
def test_freezing_is_drawn_against_each_parameter(browser: Chrome, page: Path) -> None:
    """Depth makes 100 steps a layer, the learning rate 10; the repeated configuration has a run without a record."""
    visit(browser, page)
    captions = [caption.text for caption in browser.find_elements(By.CSS_SELECTOR, "#freezes figcaption")]
    assert captions[0] == "num_layers: 298 steps between its means"
    script = "return document.querySelector('#freezes .chart').data.map(trace => [trace.x, trace.y])"
    (levels, means), (_, dots) = browser.execute_script(script)
    assert levels == ["1", "2", "4"]
    assert means == pytest.approx([105, (200 + 210 + 210) / 3, (400 + 400 + 410) / 3])
    assert sorted(dots) == [100, 100, 110, 110, 200, 210, 210, 400, 400, 410]


@pytest.mark.slow
def test_a_click_on_a_heading_sorts(browser: Chrome, page: Path) -> None:
    visit(browser, page)

    def column(name: str) -> list[str]:
        heads = [head.text.split()[0] for head in browser.find_elements(By.CSS_SELECTOR, "#runs th")]
        script = "return [...document.querySelectorAll('#runs tbody tr')].map(r => r.cells[arguments[0]].dataset.value)"
        cells: list[str] = browser.execute_script(script, heads.index(name))
        return cells

    def click(name: str) -> None:
        buttons = browser.find_elements(By.CSS_SELECTOR, "#runs th button")
        button = next(candidate for candidate in buttons if candidate.text.split()[0] == name)
        browser.execute_script("arguments[0].scrollIntoView({block: 'center', inline: 'center'})", button)
        button.click()

    for name in ("val_loss", "n_params"):
        click(name)
        numbers = [float(value) for value in column(name)]
        assert numbers == sorted(numbers)
        click(name)
        assert [float(value) for value in column(name)] == sorted(numbers, reverse=True)
    click("status")
    assert column("status") == sorted(column("status"))


@pytest.mark.slow
def test_a_click_on_a_row_highlights_its_curves(browser: Chrome, page: Path, sweep: Comparison) -> None:
    visit(browser, page)
    assert picked_curves(browser) == []
    rows = browser.find_elements(By.CSS_SELECTOR, "#runs tbody tr")
    for n, run in ((2, 12), (1, 0)):  # the repeated configuration, then a single run
        row = next(row for row in rows if row.text.split()[0] == ("5" if n == 2 else str(run)))
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", row)
        row.find_element(By.TAG_NAME, "td").click()
        chart = browser.find_element(By.CSS_SELECTOR, '[data-curve="loss"]')
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", chart)
        WebDriverWait(browser, 10).until(has_picked(n))
        assert row.get_attribute("aria-selected") == "true"
        last = sweep.runs[run].steps.row(400)["loss"]
        assert any(abs(curve[-1] - last) < 0.2 for curve in picked_curves(browser))
        assert browser.find_element(By.ID, "picked").is_displayed()
    browser.find_element(By.CSS_SELECTOR, "#picked button").click()
    WebDriverWait(browser, 10).until(lambda _: picked_curves(browser) == [])


@pytest.mark.slow
@pytest.mark.parametrize("size", [LAPTOP, PHONE])
def test_nothing_reaches_beyond_the_window(browser: Chrome, page: Path, size: tuple[int, int]) -> None:
    visit(browser, page, size)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= size[0]
    assert browser.execute_script("return innerWidth") == size[0]


@pytest.mark.slow
def test_of_two_hundred_runs_only_what_is_seen_is_drawn(browser: Chrome, make_run: MakeRun, tmp_path: Path) -> None:
    source = make_run(tmp_path / "source", steps=5000, every=250)
    config = (source / "config.yaml").read_text()
    runs = []
    for job in range(200):
        run = shutil.copytree(source, tmp_path / str(job), copy_function=os.link)
        (run / "config.yaml").unlink()
        (run / "config.yaml").write_text(config.replace("lr: 0.0003", f"lr: {0.0001 * (job + 1)}"))
        runs.append(run)
    write_page(compared(*runs), tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size < 6_000_000
    browser.get((tmp_path / "page.html").as_uri())
    WebDriverWait(browser, 60, 0.05).until(lambda _: browser.find_elements(By.CSS_SELECTOR, "#frontier.js-plotly-plot"))
    drawn, charts = (len(browser.find_elements(By.CSS_SELECTOR, css)) for css in (".js-plotly-plot", ".chart"))
    assert drawn <= charts / 2, "only what is near the window is drawn"
