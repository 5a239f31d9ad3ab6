"""What the head of a page says."""

from dataclasses import replace

from planted_lives import planted_lives

from marble_sweep.lifecycle.sentences import UNTIED, describe


def test_the_sentences_say_what_is_known() -> None:
    lifecycle, _ = planted_lives(50, 10, 2)
    known = {"every": 1, "first_step": 0, "last_step": 5_000, "n_dead": 2_000, "quiet_window": 500, "n_frozen": 1_500}
    known |= {"n_moving": 300, "n_not_moving": 200, "last_motion": 5_000}
    assert describe(replace(lifecycle, summary=known | {"freeze_median": 1_542, "lift_off_step": None})) == [
        "2,000 dead tokens were recorded from step 0 to 5,000. 300 moved in the last step, 200 stood still for fewer "
        "than 500 steps, and 1,500 (75.0%) for that long or longer, which counts as frozen.",
        "Half of them were frozen by step 1,542.",
        "The last motion of any of them was at step 5,000.",
    ]
    diverged = describe(replace(lifecycle, summary=known | {"kind": "full", "diverged_step": 5_001}))
    assert diverged[0] == (
        "The run diverged: at step 5,001, weights are NaN or infinite. Everything here ends at step 5,000, the last "
        "recorded step before."
    )
    more = known | {"n_thawed": 21, "freeze_median": None, "lift_off_step": 23, "n_masters_moving": 1_999}
    assert describe(replace(lifecycle, summary=more))[1:] == [
        "That is too short here: 21 stood still for that long and moved again.",
        "The last motion of any of them was at step 5,000.",
        "From step 23 on, the origin is farther from their centroid than the radius of their cloud.",
        "All this is said of the weights as bfloat16 shows them: their float32 masters changed in the last step for "
        "1,999 of the 2,000.",
    ]
    assert UNTIED in describe(replace(lifecycle, summary=more | {"tied": False}))
    assert UNTIED not in describe(replace(lifecycle, summary=more | {"tied": True}))
    every_fifth = describe(replace(lifecycle, summary=more | {"every": 5}))
    assert "300 moved in the last transition (5 steps), 200 stood still" in every_fifth[0]
    assert "masters changed in the last transition (5 steps) for 1,999 of the 2,000." in every_fifth[-1]
