"""Made-up results of an analysis, of any length: a cloud that leaves the origin, contracts and freezes."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from marble_sweep.lifecycle.choose import MAX_FRAMES, choose_frames
from marble_sweep.lifecycle.frames import Frames
from marble_sweep.lifecycle.result import PHASES, Lifecycle

MANY = 500  # texts as people's vocabularies have them, and some that are not harmless
TEXTS = (
    " the",
    "ing",
    "แมว",
    "</script><script>document.title='run'</script>",
    "&amp;",
    "\x1b[31m",
    "\u202eright",
    "'\"",
)


def planted_lives(
    num_steps: int = 2_000, num_dead: int = 300, num_live: int = 40, seed: int = 0, *, with_intended: bool = True
) -> tuple[Lifecycle, Frames]:
    """Of `num_dead` dead tokens, ids from 1,000, and `num_live` live ones, ids from 0, over num_steps steps."""
    generator = np.random.default_rng(seed)
    tokens = planted_tokens(num_steps, num_dead, num_live, generator)
    rows = choose_frames(np.arange(num_steps + 1), MAX_FRAMES)
    frames = planted_frames(rows, num_steps, tokens, generator)
    steps = planted_steps(num_steps, tokens[tokens["is_dead"]], generator)
    if with_intended:
        steps["dead_cells_median"] = 30 / (1 + steps.index) ** 0.6
        steps["live_cells_median"] = 60 / (1 + steps.index) ** 0.3
        steps["dead_below_half"] = steps.index / num_steps
        steps["dead_predicted_moving"] = 1 - steps.index / num_steps
    third = num_steps // 3
    epochs = pd.DataFrame(
        {
            "start": [1, third, 2 * third],
            "end": [third, 2 * third, num_steps],
            "kind": ["expansion", "contraction", "standstill"],
        }
    )
    dead = tokens[tokens["is_dead"]]
    summary = {
        "kind": "full",
        "first_step": 0,
        "last_step": num_steps,
        "every": 1,
        "n_dead": num_dead,
        "quiet_window": num_steps // 10,
        "n_frozen": int((~dead["censored"]).sum()),
        "n_not_moving": int((dead["censored"] & (dead["last_motion"] < num_steps)).sum()),
        "n_moving": int((dead["last_motion"] == num_steps).sum()),
        "freeze_median": num_steps // 2,
        "last_motion": None if dead["last_motion"].isna().all() else int(dead["last_motion"].max()),
        "lift_off_step": 30,
    }
    axes = np.eye(3)
    return Lifecycle(tokens, steps, epochs, pd.DataFrame(), summary, axes[0], axes[1], axes[:2]), frames


def planted_tokens(num_steps: int, num_dead: int, num_live: int, generator: np.random.Generator) -> pd.DataFrame:
    total = num_dead + num_live
    is_dead = np.arange(total) < num_dead
    scale = num_steps * np.where(is_dead, 1, 3)
    early = np.rint(np.clip(scale * 0.02 * generator.lognormal(0, 0.3, total), 1, num_steps))
    midlife = np.rint(np.clip(early + scale * 0.1 * generator.lognormal(0, 0.35, total), 1, num_steps))
    late = np.rint(np.clip(midlife + scale * 0.4 * generator.lognormal(0, 0.5, total), 1, num_steps))
    early[0] = midlife[0] = late[0] = np.nan  # never moved
    censored = late > 0.9 * num_steps
    ids = np.where(is_dead, 1_000 + np.arange(total), np.arange(total) - num_dead)
    return pd.DataFrame(
        {
            "token": ids,
            "is_dead": is_dead,
            "text": [TEXTS[index % MANY] if index % MANY < len(TEXTS) else f"token{index}" for index in range(total)],
            "last_early": early,
            "last_midlife": midlife,
            "last_late": late,
            "last_motion": late,
            "freeze_step": np.where(censored, np.nan, np.nan_to_num(late) + 1),
            "censored": censored,
            "is_straggler": is_dead & (late > np.quantile(np.nan_to_num(late[is_dead]), 0.99)),
        }
    )


def phases_of(steps: NDArray[np.int64], tokens: pd.DataFrame) -> NDArray[np.uint8]:
    """(len(steps), tokens) the retrospective phases, by their definition."""
    lasts = tokens[["last_early", "last_midlife", "last_late"]].fillna(-1).to_numpy()
    return (steps[:, None, None] > np.maximum.accumulate(lasts, axis=1)).sum(axis=2).astype(np.uint8)


def planted_frames(
    rows: NDArray[np.int64], num_steps: int, tokens: pd.DataFrame, generator: np.random.Generator
) -> Frames:
    is_dead = tokens["is_dead"].to_numpy()
    stop = np.nan_to_num(tokens["last_motion"].to_numpy())
    age = np.minimum(rows[:, None], stop) / num_steps  # (F, P), a token's last step moves it no further
    start = 0.02 * generator.standard_normal((len(is_dead), 2))
    shrink = (0.35 + 0.65 * np.exp(-8 * age))[..., None]
    drift = np.stack([1.2 * (1 - np.exp(-60 * age)), 0.08 * (1 - np.exp(-40 * age))], axis=2)
    spread = generator.standard_normal((len(is_dead), 2)) * [0.25, 0.4] - [0.3, 0]
    live = start + np.sqrt(age)[..., None] * spread
    positions = np.where(is_dead[None, :, None], start * shrink + drift, live)
    traces = 2_000 * np.exp(-9 * np.sqrt(rows[:, None] / num_steps)) * generator.lognormal(0, 0.4, age.shape)
    traces = np.where(rows[:, None] <= stop, traces, 0)
    traces[0] = 0
    phases = phases_of(rows, tokens)
    return Frames(rows, tokens["token"].to_numpy(), positions.astype(np.float32), phases, traces.astype(np.float32))


def planted_steps(num_steps: int, dead: pd.DataFrame, generator: np.random.Generator) -> pd.DataFrame:
    steps = np.arange(1, num_steps + 1)
    ends = np.sort(dead[["last_early", "last_midlife", "last_late"]].fillna(-1).to_numpy(), axis=0)
    until = [len(dead) - np.searchsorted(ends[:, column], steps, side="left") for column in range(3)]
    counts = np.diff([*until, np.full(num_steps, len(dead))], axis=0, prepend=0)
    share = steps / num_steps
    median = np.rint(1_500 * np.exp(-14 * np.sqrt(share)) * generator.lognormal(0, 0.15, num_steps))
    columns = dict(zip(PHASES, counts, strict=True)) | {
        "moving": until[2] / len(dead),
        "l1_median": median,
        "linf_median": np.ceil(median / 12),
        "centroid_along": 1.2 * (1 - np.exp(-3 * share)),
        "centroid_across": 0.05 * share,
        "live_distance": 1.2 * (1 - np.exp(-3 * share)) + 0.3,
        "radius": 0.02 * (1 + 0.3 * np.exp(-(((share - 0.2) / 0.2) ** 2))),
        "spread_along": 0.006 + 0 * share,
        "spread_across": 0.019 + 0 * share,
        "coherence": np.where(share < 0.9, 0.9 - 0.7 * share, np.nan),
        "groups": np.where(steps % 50 == 0, np.floor(8 * share), np.nan),
        "largest_group": np.where(steps % 50 == 0, np.floor(70 * share**2), np.nan),
    }
    return pd.DataFrame(columns, index=pd.Index(steps, name="step"))
