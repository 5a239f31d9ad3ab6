"""The page of lifecycles: what is in it, and that it works in a browser."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from browsers import LAPTOP, PHONE, complaints, open_browser, set_window
from planted_lives import TEXTS, planted_lives
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from marble_sweep.checks import CheckError
from marble_sweep.lifecycle.choose import MAX_DEAD, MAX_LIVE, MAX_STRAGGLERS
from marble_sweep.lifecycle.frames import Frames
from marble_sweep.lifecycle.page import FRAME_BYTES, MAX_BYTES, MAX_TEXT, mean_traces, token_text, write_page
from marble_sweep.lifecycle.panels import UNDECIDED, with_undecided
from marble_sweep.lifecycle.result import Lifecycle

ATTACK = TEXTS[3]
TITLES = ("0/optimizer.lr=0.001", "<b>1</b>/optimizer.lr=0.0003")
WIDE = (1600, 900)
LAST_STEPS = (2_000, 1_200)  # of the two runs


def page_data(path: Path) -> dict[str, Any]:
    match = re.search(r'<script id="data" type="application/json">(.*?)</script>', path.read_text(), re.DOTALL)
    assert match
    shown: dict[str, Any] = json.loads(match[1])
    return shown


def test_the_page_is_one_harmless_file(tmp_path: Path) -> None:
    write_page(tmp_path / "new" / "page.html", [(*planted_lives(300, 60, 10), TITLES[1])])
    text = (tmp_path / "new" / "page.html").read_text()
    assert "http" not in text.replace("http-equiv", "")
    assert ATTACK not in text
    assert "<b>1</b>" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    texts = page_data(tmp_path / "new" / "page.html")["runs"][0]["tokens"]["texts"]
    assert ATTACK[: MAX_TEXT - 1] + "…" in texts
    assert "\\x1b[31m" in texts


def test_texts_are_of_bounded_length() -> None:
    assert token_text("") is None
    assert token_text(" the") == " the"
    assert token_text("\u202e" * 40) == ("\\u202e" * 6)[: MAX_TEXT - 1] + "…"


@pytest.mark.parametrize("number", [0, 3])
def test_a_page_shows_one_run_or_two(number: int, tmp_path: Path) -> None:
    with pytest.raises(CheckError, match=f"runs = {number}: must be 1 or 2"):
        write_page(tmp_path / "page.html", [(*planted_lives(50, 8, 2), "a")] * number)


def test_a_point_of_the_animation_has_eight_bytes_and_the_rest_of_a_page_has_a_bound(tmp_path: Path) -> None:
    """So a page of as many tokens as may be shown, whose frames fill what they may have, is below its limit."""
    lifecycle, frames = planted_lives(600, 120, 30)
    sizes = []
    for count in (60, 240):  # frames
        fewer = replace(
            frames,
            frame_steps=frames.frame_steps[:count],
            positions=frames.positions[:count],
            traces=frames.traces[:count],
        )
        write_page(tmp_path / "page.html", [(lifecycle, fewer, "a")])
        sizes.append((tmp_path / "page.html").stat().st_size)
    per_point = (sizes[1] - sizes[0]) / (240 - 60) / 150
    assert 8 <= per_point < 8 * 1.03  # and the frame's own step and centroid
    of_frames = 60 * 150 * 8
    most = MAX_DEAD + MAX_STRAGGLERS + MAX_LIVE
    texts, tables = (MAX_TEXT * 6 + 3) * most, 40 * most
    assert sizes[0] - of_frames < 500_000
    assert FRAME_BYTES * 1.03 + 2 * (texts + tables + 500_000) < MAX_BYTES


@pytest.mark.slow
def test_pages_of_long_runs_are_below_their_limit(tmp_path: Path) -> None:
    for runs in (1, 2):
        write_page(tmp_path / "page.html", [(*planted_lives(20_000, 3_699, 6_301, seed), "a") for seed in range(runs)])
        size = (tmp_path / "page.html").stat().st_size
        assert 10_000_000 < size < MAX_BYTES


def test_traces_of_fewer_frames_are_means_over_those_left_out() -> None:
    steps = np.array([0, 1, 3, 4, 10])
    of_transitions = np.random.default_rng(0).random((10, 3))  # that end at steps 1 … 10
    traces = np.stack(
        [np.zeros(3), *(of_transitions[a:b].mean(axis=0) for a, b in zip(steps, steps[1:], strict=False))]
    )
    fewer = mean_traces(traces.astype(np.float32), np.array([0, 2, 4]), steps)
    expected = [np.zeros(3), of_transitions[:3].mean(axis=0), of_transitions[3:].mean(axis=0)]
    np.testing.assert_allclose(fewer, expected, rtol=1e-5)


def test_those_of_whom_it_is_not_known_are_not_counted_as_frozen() -> None:
    lifecycle, _ = planted_lives(300, 100, 10)
    shown = with_undecided(lifecycle)
    dead = lifecycle.tokens[lifecycle.tokens["is_dead"]]
    for step in (1, 200, 285, 300):
        stopped = ~(dead["last_motion"] >= step)
        assert shown.loc[step, UNDECIDED] == (stopped & dead["censored"]).sum()
        assert shown.loc[step, "frozen"] == (stopped & ~dead["censored"]).sum()
    assert shown[UNDECIDED].iloc[-1] > 0


# ---------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with open_browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture(scope="module")
def life() -> tuple[Lifecycle, Frames]:
    return planted_lives(2_000, 300, 40)


@pytest.fixture(scope="module")
def page(life: tuple[Lifecycle, Frames], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("one") / "page.html"
    write_page(path, [(*life, TITLES[1])])
    return path


@pytest.fixture(scope="module")
def two(life: tuple[Lifecycle, Frames], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("two") / "page.html"
    shorter = planted_lives(1_200, 200, 0, seed=1, with_intended=False)
    write_page(path, [(*life, TITLES[0]), (*shorter, TITLES[1])])
    return path


def visit(browser: Chrome, page: Path, size: tuple[int, int] = LAPTOP) -> None:
    set_window(browser, size)
    browser.get_log("browser")
    browser.get(page.as_uri())
    is_drawn = "return surfaces.every((surface) => surface.width > 0 || !surface.holder.clientWidth)"
    WebDriverWait(browser, 20).until(lambda _: browser.execute_script(is_drawn))


def part(browser: Chrome, css: str, run: int = 0) -> WebElement:
    element = browser.find_element(By.CSS_SELECTOR, f'{css}[data-run="{run}"]')
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    return element


def shown_step(browser: Chrome) -> int:
    match = re.match(r"step ([\d,]+) of", browser.find_element(By.ID, "step").text)
    assert match
    return int(match[1].replace(",", ""))


def click_at(browser: Chrome, element: WebElement, x: float, y: float) -> None:
    """Click on a place of an element, in pixels from its upper left corner."""
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    offset = round(x - element.size["width"] / 2), round(y - element.size["height"] / 2)
    ActionChains(browser).move_to_element_with_offset(element, *offset).click().perform()


def legend(browser: Chrome, panel: str, run: int = 0) -> dict[str, float]:
    text = part(browser, f'[data-panel="{panel}"]', run).find_element(By.CSS_SELECTOR, ".legend").text
    pairs = re.findall(r"(\w[^\n]*?) ([\d,.]+)(?:\n|$)", text)
    return {label: float(number.replace(",", "")) for label, number in pairs}


def go_to(browser: Chrome, step: int) -> None:
    browser.execute_script("show(notches[lastUpTo(notches, arguments[0])])", step)


@pytest.mark.slow
def test_the_page_opens_without_a_complaint_and_runs_no_text(browser: Chrome, page: Path) -> None:
    visit(browser, page)
    assert browser.title == f"marble_sweep: lifecycle of {TITLES[1]}"
    assert len(browser.find_elements(By.CSS_SELECTOR, ".chart canvas")) == 2 * (2 + 1 + 1 + 8)
    for option in browser.find_elements(By.CSS_SELECTOR, "#axis option, #zoom option"):
        option.click()
    assert complaints(browser) == []


@pytest.mark.slow
def test_the_slider_moves_the_step_with_the_keyboard(
    browser: Chrome, page: Path, life: tuple[Lifecycle, Frames]
) -> None:
    visit(browser, page)
    assert shown_step(browser) == 0
    slider = browser.find_element(By.ID, "slider")
    slider.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert shown_step(browser) == life[1].frame_steps[2]
    slider.send_keys(Keys.END)
    assert shown_step(browser) == 2_000
    go_to(browser, 300)
    step = shown_step(browser)
    populations = legend(browser, "populations")
    counts = with_undecided(life[0]).loc[step]
    assert populations == {name: counts[name] for name in ("early", "midlife", "late", "frozen", UNDECIDED)}
    assert complaints(browser) == []


@pytest.mark.slow
def test_play_goes_on_until_pause(browser: Chrome, page: Path) -> None:
    visit(browser, page)
    button = browser.find_element(By.ID, "play")
    button.click()
    WebDriverWait(browser, 20).until(lambda _: shown_step(browser) > 5)
    button.click()
    step = shown_step(browser)
    assert "Play" in button.text
    assert browser.execute_async_script("setTimeout(arguments[0], 200)") is None
    assert shown_step(browser) == step < 2_000
    browser.find_element(By.ID, "slider").send_keys(Keys.END)
    button.click()  # from the end it starts again
    WebDriverWait(browser, 20).until(lambda _: shown_step(browser) < 2_000)
    button.click()


def expected_end(tokens: pd.DataFrame, token: int, last_step: int) -> str:
    row = tokens.set_index("token").loc[token]
    if not row["censored"]:
        return f"Frozen from step {row['freeze_step']:,.0f}" + (", a straggler." if row["is_straggler"] else ".")
    if row["last_motion"] == last_step:
        return "Moved in the last recorded step."
    return f"Not moving since step {row['last_motion']:,.0f}: too near the end to be called frozen."


def check_token(browser: Chrome, tokens: pd.DataFrame, token: int, run: int = 0) -> None:
    """What the page says of a token is what the table has."""
    panel = part(browser, ".token", run)
    row = tokens.set_index("token").loc[token]
    shown = token_text(row["text"])
    assert panel.find_element(By.CSS_SELECTOR, ".text").text == f"“{shown}”".replace("  ", " ")
    assert panel.find_element(By.CSS_SELECTOR, ".id").text == f"id {token}, dead"
    assert panel.find_element(By.CSS_SELECTOR, ".end").text == expected_end(tokens, token, LAST_STEPS[run])
    life = panel.find_element(By.CSS_SELECTOR, ".life").text.split("\n")
    assert life[0] == f"early to step {row['last_early']:,.0f}"
    assert life[-1] == f"late to step {row['last_motion']:,.0f}"


@pytest.mark.slow
def test_a_click_on_a_point_of_the_cloud_picks_its_token(
    browser: Chrome, page: Path, life: tuple[Lifecycle, Frames]
) -> None:
    visit(browser, page)
    go_to(browser, 200)
    lifecycle, frames = life
    place = int(np.searchsorted(frames.frame_steps, shown_step(browser)))
    around = frames.positions[place, :300] - frames.positions[place, :300].mean(axis=0)
    gaps = np.linalg.norm(around[:, None] - around[None], axis=2)
    np.fill_diagonal(gaps, np.inf)
    near_middle = np.abs(around).max(axis=1) < 0.7 * np.quantile(np.abs(around), 0.998)
    column = int(np.where(near_middle, gaps.min(axis=1), 0).argmax())  # no other point is near it
    cloud = part(browser, ".close")
    script = """
        const { width, height } = surfaces.find((surface) => surface.holder === arguments[0]);
        const box = inside(width, height, CLOUD_MARGIN);
        return [cloudView(runs[0], box, true).scale, box];
    """
    scale, box = browser.execute_script(script, cloud)
    x = box["x"] + box["width"] / 2 + float(around[column, 0]) * scale
    y = box["y"] + box["height"] / 2 - float(around[column, 1]) * scale
    click_at(browser, cloud, x, y)
    check_token(browser, lifecycle.tokens, int(frames.tokens[column]))
    trace = browser.execute_script(
        "return [20, 100, 200].map((frame) => traceAt(runs[0], frame, runs[0].indexOf.get(state.token)))"
    )
    np.testing.assert_allclose(trace, frames.traces[[20, 100, 200], column], rtol=1e-3)
    click_at(browser, cloud, box["x"] + 3, box["y"] + box["height"] - 3)  # where no token is
    assert not part(browser, ".token").find_element(By.CSS_SELECTOR, ".picked").is_displayed()
    assert complaints(browser) == []


@pytest.mark.slow
def test_a_click_on_the_stratigraphy_picks_a_token_and_a_step(
    browser: Chrome, page: Path, life: tuple[Lifecycle, Frames]
) -> None:
    visit(browser, page)
    strata = part(browser, '[data-part="strata"]')
    tokens = life[0].tokens
    dead = tokens[tokens["is_dead"]].sort_values(["censored", "last_motion"], na_position="first", kind="stable")
    height = strata.size["height"] - 8 - 38
    for row in (100, 290):
        click_at(browser, strata, 400, 8 + (row + 0.5) / 300 * height)
        picked = browser.execute_script("return state.token")
        place = dead["token"].tolist().index(picked)
        assert abs(place - row) <= 2  # a row is 1.3 pixels
        check_token(browser, tokens, picked)
    share = (400 - 62) / (strata.size["width"] - 62 - 12)
    assert shown_step(browser) == pytest.approx(2_000 * share**2, rel=0.03)
    before = browser.execute_script("return runs[0].indexOf.get(state.token)")
    strata.send_keys(Keys.ARROW_UP)
    assert browser.execute_script("return runs[0].indexOf.get(state.token)") == before - 1
    still = tokens[tokens["is_dead"] & tokens["censored"] & (tokens["last_motion"] < 2_000)]["token"].iloc[0]
    browser.execute_script("pick(arguments[0])", int(still))
    browser.find_element(By.ID, "slider").send_keys(Keys.END)
    now = part(browser, ".token").find_element(By.CSS_SELECTOR, ".now").text
    assert now.startswith("At step 2,000: stands still; it moved 0 cells in a step (L1)")


@pytest.mark.slow
def test_the_stratigraphy_has_the_colours_of_the_phases(
    browser: Chrome, page: Path, life: tuple[Lifecycle, Frames]
) -> None:
    visit(browser, page)
    strata = part(browser, '[data-part="strata"]')
    tokens = life[0].tokens.set_index("token")
    ids = browser.execute_script("return Array.from(runs[0].tokens.ids)")
    width, height = strata.size["width"] - 62 - 12, strata.size["height"] - 8 - 38
    script = """
        const context = arguments[0].querySelector("canvas").getContext("2d");
        return arguments[1].map(([x, y]) => Array.from(context.getImageData(62 + x, 8 + y, 1, 1).data));
    """
    places = [(int(share * width), y) for share in np.linspace(0.02, 0.995, 40) for y in range(3, height, 37)]
    colours = browser.execute_script("return data.colours")
    seen = set()
    for (x, y), pixel in zip(places, browser.execute_script(script, strata, places), strict=True):
        token = tokens.loc[ids[int((y + 0.5) / height * 300)]]
        possible = {phase_at(token, 2_000 * ((x + edge) / width) ** 2) for edge in (-0.6, 1.6)}  # pixels are rounded
        assert "#{:02x}{:02x}{:02x}".format(*pixel[:3]) in {colours[phase] for phase in possible}
        seen |= possible
    assert seen == {"early", "midlife", "late", "frozen", UNDECIDED}


def phase_at(token: "pd.Series[Any]", step: float) -> str:
    for phase, last in (("early", "last_early"), ("midlife", "last_midlife"), ("late", "last_motion")):
        if step <= token[last]:
            return phase
    return UNDECIDED if token["censored"] else "frozen"


@pytest.mark.slow
def test_two_runs_go_in_lockstep(browser: Chrome, two: Path, life: tuple[Lifecycle, Frames]) -> None:
    visit(browser, two)
    other, other_frames = planted_lives(1_200, 200, 0, seed=1, with_intended=False)
    steps = sorted({*life[1].frame_steps.tolist(), *other_frames.frame_steps.tolist()})
    browser.find_element(By.ID, "slider").send_keys(*[Keys.ARROW_RIGHT] * 150)
    assert shown_step(browser) == steps[150]
    for run, lifecycle in enumerate((life[0], other)):
        assert legend(browser, "populations", run)["early"] == lifecycle.steps.loc[steps[150], "early"]
    left, right = (part(browser, '[data-part="strata"]', run) for run in (0, 1))
    assert left.location["y"] == right.location["y"]
    assert left.location["x"] + left.size["width"] <= right.location["x"]
    click_at(browser, left, 300, 100)
    picked = browser.execute_script("return state.token")
    check_token(browser, life[0].tokens, picked)
    panel = part(browser, ".token", 1)
    if picked in set(other.tokens["token"]):
        check_token(browser, other.tokens, picked, 1)
    else:
        assert panel.find_element(By.CSS_SELECTOR, ".missing").is_displayed()
    missing = part(browser, '[data-panel="intended"]', 1)
    assert "This record has no such numbers." in missing.text
    browser.find_element(By.ID, "slider").send_keys(Keys.END)
    assert legend(browser, "populations", 1)["early"] == 0
    assert complaints(browser) == []


@pytest.mark.slow
def test_a_record_without_positions_has_a_page_without_a_cloud(
    browser: Chrome, life: tuple[Lifecycle, Frames], tmp_path: Path
) -> None:
    lifecycle, frames = life
    nowhere = replace(frames, positions=np.full_like(frames.positions, np.nan))
    write_page(tmp_path / "page.html", [(lifecycle, nowhere, "norms")])
    visit(browser, tmp_path / "page.html")
    assert "has no positions" in browser.find_element(By.CSS_SELECTOR, ".note").text
    assert not browser.find_elements(By.CSS_SELECTOR, '[data-part="cloud"]')
    browser.find_element(By.ID, "find").send_keys("token20", Keys.ENTER)
    check_token(browser, lifecycle.tokens, 1_020)
    assert complaints(browser) == []


@pytest.mark.slow
@pytest.mark.parametrize("size", [LAPTOP, WIDE, PHONE])
def test_nothing_reaches_beyond_the_window(browser: Chrome, two: Path, page: Path, size: tuple[int, int]) -> None:
    for path in (page, two):
        visit(browser, path, size)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= size[0]
