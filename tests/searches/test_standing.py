"""How far a size is confirmed, in words."""

import pytest
from studies import small_space

from marble_sweep.searches.pass_rate import PassRate, Standard
from marble_sweep.searches.standing import standing
from marble_sweep.searches.strategy import SearchState
from marble_sweep.searches.trial_record import TrialRecord


@pytest.mark.parametrize(
    ("standard", "seeds", "told"),
    [
        (PassRate(0.8, 0.95), 0, "certified"),
        (PassRate(0.8, 0.95), 1, "certified on 1 of 1 seed, at least 20 to go"),
        (PassRate(0.8, 0.95), 20, "certified on 20 of 20 seeds, at least 1 to go"),
        (PassRate(0.8, 0.95), 21, "confirmed on 21 of 21 seeds"),
        (3, 2, "certified on 2 of 2 seeds, at least 1 to go"),
        (3, 3, "confirmed on 3 of 3 seeds"),
    ],
)
def test_how_many_seeds_are_left(standard: Standard, seeds: int, told: str) -> None:
    """21 of 21 is the first result that a pass rate of 0.8 does not allow (docs/truth.md)."""
    certified = [TrialRecord(seed, 0, (2.0,), seed, "certified", {50: 0.1}) for seed in range(seeds + 1)]
    assert standing(SearchState(small_space(), certified, standard), 0) == told
