"""The whole analysis, against plain loops on made-up motion and against planted motion."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from plain_lifecycle import exact_values, plain_tokens
from planted_records import Planted, bfloat16_bits, hopping, random_walk

from marble_sweep.checks import CheckError
from marble_sweep.lifecycle.analyse import analyse
from marble_sweep.lifecycle.frames import make_frames
from marble_sweep.lifecycle.motion import Bits
from marble_sweep.record.reader import Record

NUM_TOKENS, DIM, NUM_STEPS = 24, 6, 60


def walked(seed: int, *, masters: bool = False, every: int = 1, block: int = 7) -> Planted:
    """A record of kind `full` of a random walk that slows down; two in three tokens are dead."""
    rng = np.random.default_rng(seed)
    bits = random_walk(rng, NUM_STEPS, NUM_TOKENS, DIM)
    history: Bits = bits
    if masters:
        lower = rng.integers(0, 1 << 16, bits.shape, dtype=np.uint32)
        history = np.bitwise_or(bits.astype(np.uint32) << 16, lower, dtype=np.uint32)
        history[:, 3] = history[0, 3]  # one that does not move even as float32
    steps = np.arange(0, NUM_STEPS + 1, every)
    return Planted(
        bits=history[::every],
        dead_mask=np.arange(NUM_TOKENS) % 3 != 2,
        h_mean=rng.normal(0, 1, (NUM_STEPS, DIM)).astype(np.float32),
        steps=steps,
        block=block,
    )


@pytest.mark.parametrize("record", [walked(0), walked(1, masters=True), walked(2, every=3), walked(3, block=1)])
def test_tokens_live_as_plain_loops_say(record: Planted) -> None:
    life = analyse(record, quiet_window=20)
    plain = plain_tokens(record)
    tokens, last_step = life.tokens, int(record.steps[-1])
    for row, token in enumerate(plain):
        expected = [token.last("early"), token.last("midlife"), token.last("late")]
        expected.append(token.last("early", "midlife", "late"))
        columns = ["last_early", "last_midlife", "last_late", "last_motion"]
        np.testing.assert_array_equal(tokens.loc[row, columns].to_numpy(dtype=float), expected)
        moved_until = 0.0 if math.isnan(expected[3]) else expected[3]
        freeze = moved_until + 1 if last_step - moved_until >= 20 else math.nan
        np.testing.assert_equal(tokens["freeze_step"].iloc[row], freeze)
        assert tokens.loc[row, "phase"] == token.retrospective(last_step)
    dead = [token for token, is_dead in zip(plain, record.dead_mask, strict=True) if is_dead]
    for step, numbers in life.steps.iterrows():
        assert isinstance(step, int)
        phases = [token.retrospective(step) for token in dead]
        for phase in ("early", "midlife", "late", "frozen"):
            assert numbers[phase] == phases.count(phase)
        assert numbers["moving"] == pytest.approx(np.mean([token.l1[step] > 0 for token in dead]), abs=1e-12)
        for norm in ("l1", "linf"):
            median = np.median([getattr(token, norm)[step] for token in dead])
            assert numbers[f"{norm}_median"] == pytest.approx(median, rel=DIM * 2.0**-22)


@pytest.mark.parametrize("record", [walked(4), walked(5, masters=True), walked(6, every=4)])
def test_the_cloud_is_where_float64_says(record: Planted) -> None:
    life = analyse(record)
    weights = exact_values(record.bits)
    dead, live = weights[:, record.dead_mask], weights[:, ~record.dead_mask]
    centroid = dead.mean(axis=1)
    last = -record.h_mean[-1].astype(np.float64)
    axis = last / np.linalg.norm(last)
    np.testing.assert_allclose(life.axis, axis, atol=1e-15)
    along = centroid @ axis
    off = centroid - along[:, None] * axis
    gap = np.diff(record.steps)
    around = dead - centroid[:, None]
    variance = np.square(around).sum(axis=2).mean(axis=1)
    variance_along = np.square(around @ axis).mean(axis=1)
    expected = {
        "centroid_norm": np.linalg.norm(centroid, axis=1)[1:],
        "centroid_along": along[1:],
        "centroid_across": np.linalg.norm(off, axis=1)[1:],
        "speed_along": np.diff(along) / gap,
        "speed_across": np.linalg.norm(np.diff(off, axis=0), axis=1) / gap,
        "radius": np.sqrt(variance)[1:],
        "spread_along": np.sqrt(variance_along)[1:],
        "spread_across": np.sqrt(variance - variance_along)[1:],
        "live_distance": np.linalg.norm(centroid - live.mean(axis=1), axis=1)[1:],
        "coherence": [plain_coherence(b, a) for b, a in zip(dead, dead[1:], strict=False)],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(life.steps[name], values, rtol=1e-9, atol=1e-12, err_msg=name)


def plain_coherence(before: np.ndarray, after: np.ndarray) -> float:
    moved = after - before
    mean = moved.mean(axis=0)
    lengths = np.linalg.norm(moved, axis=1)
    if not (lengths > 0).any() or not np.linalg.norm(mean):
        return math.nan
    cosines = moved[lengths > 0] @ mean / lengths[lengths > 0] / np.linalg.norm(mean)
    return float(cosines.mean())


def test_principal_components_are_those_of_all_dead_rows() -> None:
    record = walked(7)
    life = analyse(record)
    weights = exact_values(record.bits)[:, record.dead_mask]
    rows = weights.reshape(-1, DIM)
    _, _, directions = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    path = weights[-1].mean(axis=0) - weights[0].mean(axis=0)
    for found, expected in zip(life.principal, directions[:2], strict=True):
        np.testing.assert_allclose(abs(found @ expected), 1, atol=1e-9)
        assert found @ path >= 0
    assert life.across @ life.axis == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(life.steps["centroid_pc1"], weights[1:].mean(axis=1) @ life.principal[0], atol=1e-12)
    off = rows - np.outer(rows @ life.axis, life.axis)
    _, _, directions = np.linalg.svd(off - off.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(abs(life.across @ directions[0]), 1, atol=1e-9)


def test_blocks_of_any_length_give_the_same() -> None:
    lives = [analyse(walked(8, block=block)) for block in (1, 7, 100)]
    for life in lives[1:]:
        pd.testing.assert_frame_equal(life.tokens, lives[0].tokens)
        pd.testing.assert_frame_equal(life.steps, lives[0].steps)
        pd.testing.assert_frame_equal(life.holes, lives[0].holes)
        assert life.summary == lives[0].summary


def test_tracers_and_norms_live_as_in_the_full_record() -> None:
    record = walked(9)
    full = analyse(record, quiet_window=10)
    tracers = analyse(replace(record, kind="tracers", bits=record.bits[:, record.dead_mask]), quiet_window=10)
    plain = [token for token, is_dead in zip(plain_tokens(record), record.dead_mask, strict=True) if is_dead]
    norms = np.zeros((NUM_STEPS, len(plain), 4), dtype=np.float32)
    weights = exact_values(record.bits)
    cells = np.zeros(DIM)
    for row, (token, number) in enumerate(zip(plain, np.flatnonzero(record.dead_mask), strict=True)):
        for step in range(1, NUM_STEPS + 1):
            cells = np.abs(weights[step, number] - weights[step - 1, number])
            l2 = 0.0 if token.phase[step] != "early" else 100.0
            norms[step - 1, row] = token.l1[step], l2, token.linf[step], np.linalg.norm(cells)
    dead = analyse(replace(record, kind="dead", norms=norms, bits=record.bits[:0]), quiet_window=10)
    alike = full.tokens[full.tokens["is_dead"]].reset_index(drop=True)
    pd.testing.assert_frame_equal(tracers.tokens, alike)
    pd.testing.assert_frame_equal(dead.tokens, alike)
    columns = ["early", "midlife", "late", "frozen", "moving"]
    pd.testing.assert_frame_equal(dead.steps[columns], full.steps[columns])
    assert dead.steps["radius"].isna().all()
    assert tracers.steps["live_distance"].isna().all()
    assert (dead.epochs.empty, dead.holes.empty, dead.axis.size) == (True, True, 0)
    of_motion = ("n_frozen", "freeze_median", "freeze_last", "half_freeze_step", "n_stragglers", "longest_pause")
    assert {key: dead.summary[key] for key in of_motion} == {key: full.summary[key] for key in of_motion}
    assert dead.summary["lift_off_step"] is None


def test_planted_hops_are_what_the_tokens_show() -> None:
    """Each token does one thing: the steps at which it does so are the answer."""
    start = bfloat16_bits(np.full((8, 4), 1.5))
    start[4] = bfloat16_bits(np.full(4, 0.0))
    start[5] = bfloat16_bits(np.full(4, 2.0**-126))
    start[6] = bfloat16_bits(np.full(4, 1.0))
    hops = {
        3: {0: {0: 1}, 1: {0: 2}, 2: {0: 2, 1: 1}, 3: {0: 9}},
        5: {4: {0: -1}, 5: {2: -1}, 6: {1: -1}},  # +0 to -0; a normal to a subnormal; half a cell below a power of two
        9: {1: {0: -1}, 4: {0: -1}, 5: {2: -5}},  # -0 to the subnormal below; five cells among subnormals
        20: {3: {3: -1}},
    }
    bits = hopping(start, 400, hops)
    record = Planted(bits=bits, dead_mask=np.ones(8, dtype=bool), h_mean=np.ones((400, 4), dtype=np.float32))
    life = analyse(record, quiet_window=380)
    nan = np.nan
    expected = {  # 4 dimensions: L2 > 2 is early
        "last_early": [nan, nan, 3, 3, nan, 9, nan, nan],
        "last_midlife": [nan, 3, nan, nan, nan, nan, nan, nan],
        "last_late": [3, 9, nan, 20, 9, 5, 5, nan],
        "last_motion": [3, 9, 3, 20, 9, 9, 5, nan],
        "longest_pause": [2, 5, 2, 16, 8, 4, 4, 0],
        "freeze_step": [4, 10, 4, 21, 10, 10, 6, 1],
    }
    for column, values in expected.items():
        np.testing.assert_array_equal(life.tokens[column], values, err_msg=column)
    assert life.summary["freeze_median"] == 6
    assert life.summary["freeze_last"] == 21
    assert life.summary["last_motion"] == 20
    later = analyse(record, quiet_window=381)
    assert later.tokens["censored"].tolist() == [False] * 3 + [True] + [False] * 4
    assert later.summary["freeze_last"] is None


def test_a_record_without_dead_tokens_is_refused() -> None:
    record = replace(walked(10), dead_mask=np.zeros(NUM_TOKENS, dtype=bool))
    with pytest.raises(CheckError, match="must be at least one dead token"):
        analyse(record)


@pytest.mark.parametrize(
    ("masters", "every", "block", "token", "bits"),
    [
        (False, 1, 7, 0, 0x7FC0),  # NaN
        (False, 1, 5, 2, 0xFF80),  # minus infinity, of a live token
        (False, 2, 1, 3, 0x7F81),
        (True, 1, 50, 4, 0x7F7F_8000),  # a finite float32, which bfloat16 rounds to infinity
    ],
)
def test_a_run_that_diverged_ends_at_its_last_finite_step(
    masters: bool, every: int, block: int, token: int, bits: int
) -> None:
    whole = walked(11, masters=masters, every=every, block=block)
    place = 50 // every
    finite = replace(whole, bits=whole.bits[:place], steps=whole.steps[:place], h_mean=whole.h_mean[: 50 - every])
    whole.bits[place:, token] = bits
    life, expected = analyse(whole), analyse(finite)
    assert life.summary == expected.summary | {"diverged_step": 50}
    for name in ("tokens", "steps", "epochs", "holes"):
        pd.testing.assert_frame_equal(getattr(life, name), getattr(expected, name))
    np.testing.assert_array_equal(life.principal, expected.principal)
    frames, expected_frames = make_frames(whole, life), make_frames(finite, expected)
    np.testing.assert_array_equal(frames.positions, expected_frames.positions)
    np.testing.assert_array_equal(frames.traces, expected_frames.traces)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_norms_that_diverged_end_at_the_last_finite_step(value: float) -> None:
    whole = walked(15)
    norms = np.random.default_rng(0).exponential(1, (NUM_STEPS, int(whole.dead_mask.sum()), 4)).astype(np.float32)
    norms[4, 0, :3] = np.inf  # from next to zero, where cells are tiny: the weights are finite
    whole = replace(whole, kind="dead", norms=norms, bits=whole.bits[:0], steps=np.empty(0, np.int64))
    finite = replace(whole, norms=norms[:41], h_mean=whole.h_mean[:41])
    norms[41:, 3] = value
    life, expected = analyse(whole), analyse(finite)
    assert life.summary == expected.summary | {"diverged_step": 42}
    pd.testing.assert_frame_equal(life.steps, expected.steps)
    np.testing.assert_array_equal(make_frames(whole, life).traces, make_frames(finite, expected).traces)


def test_a_record_that_is_not_finite_from_the_first_step_on_is_refused() -> None:
    record = walked(11)
    record.bits[1:, 5] = 0x7FC0
    with pytest.raises(CheckError, match="recorded steps = 1 before the first with NaN or infinity, step 1: must be"):
        analyse(record)


def test_a_record_without_hidden_states_has_no_axis() -> None:
    record = replace(walked(13), h_mean=np.empty((0, DIM), dtype=np.float32))
    life, other = analyse(record), analyse(walked(13))
    assert life.steps["centroid_along"].isna().all()
    pd.testing.assert_series_equal(life.steps["radius"], other.steps["radius"])
    pd.testing.assert_series_equal(life.steps["centroid_pc2"], other.steps["centroid_pc2"])


def test_the_intended_update_and_the_learning_rate_are_joined() -> None:
    intended = pd.DataFrame({"below_half": np.linspace(0, 1, NUM_STEPS)}, index=np.arange(1, NUM_STEPS + 1))
    lr = pd.Series(np.linspace(1, 0.5, NUM_STEPS), index=np.arange(1, NUM_STEPS + 1))
    life = analyse(replace(walked(12, every=2), intended=intended), lr=lr, quiet_window=20)
    assert life.steps["below_half"].tolist() == intended["below_half"].tolist()[1::2]
    assert life.steps["lr"].tolist() == lr.tolist()[1::2]
    frozen = life.tokens[~life.tokens["censored"]]
    assert len(frozen) > 3
    np.testing.assert_allclose(frozen["freeze_lr"], lr[frozen["freeze_step"].astype(int)].to_numpy())
    late = life.tokens["is_dead"] & (life.tokens["freeze_lr"] < 0.95)
    assert life.summary["n_frozen_decayed_lr"] == late.sum()


@pytest.mark.parametrize("kind", ["full", "tracers", "dead"])
def test_a_record_on_disk_gives_what_the_one_in_memory_gives(kind: str, tmp_path: Path) -> None:
    record = walked(14, masters=kind == "full", every=1 if kind == "dead" else 2)
    if kind == "tracers":
        record = replace(record, kind=kind, bits=record.bits[:, record.dead_mask])
    if kind == "dead":
        norms = np.random.default_rng(0).exponential(1, (NUM_STEPS, int(record.dead_mask.sum()), 4))
        record = replace(record, kind=kind, norms=norms.astype(np.float32))
    record.write(tmp_path)
    stored = Record.open(tmp_path)
    life, expected = analyse(stored), analyse(record)
    for name in ("tokens", "steps", "epochs", "holes"):
        pd.testing.assert_frame_equal(getattr(life, name), getattr(expected, name))
    assert life.summary == expected.summary
    frames, expected_frames = make_frames(stored, life), make_frames(record, expected)
    np.testing.assert_array_equal(frames.positions, expected_frames.positions)
    np.testing.assert_array_equal(frames.traces, expected_frames.traces)
