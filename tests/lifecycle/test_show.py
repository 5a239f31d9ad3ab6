"""A lifecycle on a screen: what it says, and what it leaves out."""

from dataclasses import replace

import numpy as np
import pytest
from planted_records import Planted, bfloat16_bits, hopping

from marble_sweep.lifecycle.analyse import analyse
from marble_sweep.lifecycle.result import Lifecycle
from marble_sweep.lifecycle.show import WIDTH, text

NUM_STEPS = 400


def life(last_motions: list[int], *, gap: int = 1, quiet_window: int | None = None) -> Lifecycle:
    """Dead tokens that move for the last time at these steps, and `gap` steps before as well."""
    hops: dict[int, dict[int, dict[int, int]]] = {}
    for token, step in enumerate(last_motions):
        for at in (step - gap, step):
            hops.setdefault(at, {})[token] = {0: 1}
    start = bfloat16_bits(np.linspace(1, 1.9, 2 * len(last_motions)).reshape(-1, 2))
    bits = hopping(start, NUM_STEPS, hops)
    record = Planted(bits, np.ones(len(last_motions), dtype=bool), np.ones((NUM_STEPS, 2), dtype=np.float32))
    return analyse(record, quiet_window=quiet_window, texts=lambda ids: [f"\x1b[31m{token}" for token in ids])


def line(shown: str, name: str) -> str:
    """The line of this name, with those that continue it."""
    _, _, rest = f"\n{shown}".partition(f"\n{name} ")
    lines = rest.splitlines()
    more = next((number for number, part in enumerate(lines[1:], 1) if not part.startswith(" ")), len(lines))
    return " ".join(part.strip() for part in lines[:more])


def test_it_says_what_froze_and_what_is_not_known() -> None:
    shown = text(life([20, 30, 40, 350, 400], quiet_window=100))
    assert (
        line(shown, "recorded")
        == "full (positions of all tokens), 5 tokens, 5 of them dead; steps 0 to 400, every step"
    )
    assert line(shown, "frozen") == (
        "3 of 5 dead tokens, half of all by step 41, 1 not moving since fewer than 100 steps, 1 moving in the last step"
    )
    assert line(shown, "half") == "from step 1 on, at most half of the dead tokens move in any step"
    assert max(map(len, shown.splitlines())) <= WIDTH


def test_a_run_that_diverged_says_so_before_all_else() -> None:
    lived = life([20, 30, 400], quiet_window=100)
    diverged = replace(lived, summary=lived.summary | {"diverged_step": 401, "kind": "dead"})
    assert "ends early" not in text(lived)
    assert text(diverged).splitlines()[1].startswith("ends early ")
    assert line(text(diverged), "ends early") == (
        "The run diverged: at step 401, changes of weights are NaN or infinite. Everything here ends at step 400, the "
        "last recorded step before."
    )


def test_stragglers_have_their_text_and_no_escape_codes() -> None:
    shown = text(life([*range(20, 60), 250], quiet_window=100))
    assert line(shown, "stragglers") == r"1: 40 '\x1b[31m40' (step 250)"


@pytest.mark.parametrize(("gap", "too_few"), [(100, False), (101, True)])
def test_a_window_that_pauses_outlast_is_called_too_short(gap: int, too_few: bool) -> None:
    shown = line(text(life([150, 200], gap=gap, quiet_window=100)), "window")
    assert shown.startswith("a freeze counts behind 100 steps without motion")
    assert ("too few here: 2 tokens moved again after that many" in shown) == too_few


def test_longer_transitions_are_not_called_steps() -> None:
    lived = life([20, 30, 400], quiet_window=100)
    masters = {"n_masters_moving": 2, "masters_last_motion": 400}
    shown = text(replace(lived, summary=lived.summary | masters | {"every": 4}))
    assert line(shown, "frozen").endswith(", 1 moving in the last transition (4 steps)")
    assert line(shown, "half").endswith("at most half of the dead tokens move in any transition (4 steps)")
    assert "of 3 dead tokens change in the last transition (4 steps) (last" in line(shown, "masters")


def test_what_the_record_does_not_have_is_left_out() -> None:
    full = life([20, 30], quiet_window=100)
    assert "rate" not in text(full)
    assert "masters" not in text(full)
    nowhere = replace(full, axis=np.empty(0), summary=full.summary | {"kind": "dead", "last_motion": None})
    shown = text(nowhere)
    assert "norms of the dead tokens' motion" in shown
    for name in ("cloud", "lift-off", "radius", "identical", "phases"):
        assert f"\n{name}" not in shown
