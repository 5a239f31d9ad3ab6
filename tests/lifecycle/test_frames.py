"""What is drawn of a record: positions in a fixed projection, phases, traces."""

from dataclasses import replace

import numpy as np
import pytest
from plain_lifecycle import exact_values, plain_tokens
from planted_records import Planted, random_walk

from marble_sweep.lifecycle.analyse import analyse
from marble_sweep.lifecycle.frames import make_frames

NUM_STEPS, NUM_TOKENS, DIM = 40, 12, 5
PHASES = ["early", "midlife", "late", "frozen"]


def record(every: int = 1) -> Planted:
    rng = np.random.default_rng(0)
    steps = np.arange(0, NUM_STEPS + 1, every)
    bits = random_walk(rng, NUM_STEPS, NUM_TOKENS, DIM)[::every]
    return Planted(bits, np.arange(NUM_TOKENS) < 8, rng.normal(size=(NUM_STEPS, DIM)).astype(np.float32), steps)


@pytest.mark.parametrize("every", [1, 2])
def test_frames_show_what_the_record_has(every: int) -> None:
    recorded = record(every)
    life = analyse(recorded)
    frames = make_frames(recorded, life, max_frames=7)
    steps, plain = frames.frame_steps.tolist(), plain_tokens(recorded)
    assert (steps[0], steps[-1], len(steps)) == (0, NUM_STEPS, 6)  # of 7, two fall together
    assert frames.tokens.tolist() == list(range(NUM_TOKENS))
    weights = exact_values(recorded.bits)
    for frame, step in enumerate(steps):
        place = recorded.steps.tolist().index(step)
        expected = np.stack([weights[place] @ life.axis, weights[place] @ life.across], axis=1)
        np.testing.assert_allclose(frames.positions[frame], expected, atol=1e-6)
        since = [s for s in recorded.steps.tolist() if steps[max(0, frame - 1)] < s <= step]
        means = [sum(token.l1[s] for s in since) / max(len(since), 1) for token in plain]
        np.testing.assert_allclose(frames.traces[frame], means, rtol=1e-5)
        assert [PHASES[number] for number in frames.phases[frame]] == [token.retrospective(step) for token in plain]


def test_all_stragglers_are_drawn_and_others_spread_over_their_order() -> None:
    recorded = record()
    life = analyse(recorded)
    life.tokens["is_straggler"] = life.tokens["token"] == 5
    frames = make_frames(recorded, life, max_dead=4, max_live=2)
    by_motion = life.tokens.sort_values("last_motion", kind="stable")["token"]
    dead, live = (by_motion[mask].tolist() for mask in (by_motion < 8, by_motion >= 8))
    assert set(frames.tokens) >= {5, dead[0], dead[-1], live[0], live[-1]}
    assert len(frames.tokens) <= 4 + 2 + 1
    assert (np.diff(frames.tokens) > 0).all()
    assert frames.positions.shape == (NUM_STEPS + 1, len(frames.tokens), 2)


def test_norms_alone_give_phases_and_traces() -> None:
    full = record()
    life = analyse(full)
    plain = plain_tokens(full)[:8]
    norms = np.zeros((NUM_STEPS, 8, 4), dtype=np.float32)
    for row, token in enumerate(plain):
        for step in range(1, NUM_STEPS + 1):
            norms[step - 1, row, :3] = token.l1[step], 100 * (token.phase[step] == "early"), token.linf[step]
    dead = replace(full, kind="dead", norms=norms, bits=full.bits[:0])
    frames, expected = make_frames(dead, analyse(dead), max_frames=9), make_frames(full, life, max_frames=9, max_live=0)
    np.testing.assert_array_equal(frames.phases, expected.phases)
    np.testing.assert_allclose(frames.traces, expected.traces, rtol=1e-5)
    assert np.isnan(frames.positions).all()
