"""A record's lifecycle in a few numbers, for metadata.json and the comparison table."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from marble_sweep.lifecycle.cloud import lift_off_step
from marble_sweep.lifecycle.freeze import CONSTANT_LR, freeze_quantile
from marble_sweep.lifecycle.phases import step_after_half


def summarize(
    kind: str, recorded: NDArray[np.int64], quiet_window: int, tokens: pd.DataFrame, steps: pd.DataFrame
) -> dict[str, Any]:
    """Lifecycle.summary; JSON takes it as it is."""
    dead = tokens[tokens["is_dead"]]
    summary = {
        "kind": kind,
        "first_step": int(recorded[0]),
        "last_step": int(recorded[-1]),
        "every": int(np.diff(recorded).max()),
        "num_tokens": len(tokens),
        "n_dead": len(dead),
        "quiet_window": quiet_window,
        **freezing(dead, steps, int(recorded[0]), quiet_window),
        **cloud(steps),
    }
    if "last_master_motion" in dead:
        summary["n_masters_moving"] = int((dead["last_master_motion"] == recorded[-1]).sum())
        summary["masters_last_motion"] = whole(dead["last_master_motion"].max())
    return summary


def freezing(dead: pd.DataFrame, steps: pd.DataFrame, first_step: int, quiet_window: int) -> dict[str, Any]:
    """When the dead tokens moved last, and under which learning rate they froze."""
    freeze, ends = dead["freeze_step"].to_numpy(), steps.index.to_numpy()
    is_moving = dead["last_motion"] == ends[-1]
    known = dead["freeze_lr"].dropna()
    return {
        "n_frozen": int((~dead["censored"]).sum()),
        "n_not_moving": int((dead["censored"] & ~is_moving).sum()),
        "n_moving": int(is_moving.sum()),
        "freeze_median": freeze_quantile(freeze, 0.5),
        "freeze_last": freeze_quantile(freeze, 1),
        "half_freeze_step": step_after_half(ends, steps["moving"].to_numpy(), first_step, quiet_window),
        "last_motion": whole(dead["last_motion"].max()),
        "longest_pause": int(dead["longest_pause"].max()),
        "n_thawed": int(dead["thawed"].sum()),
        "n_stragglers": int(dead["is_straggler"].sum()),
        "early_median": whole(dead["last_early"].median()),
        "midlife_median": whole(dead["last_midlife"].median()),
        "n_frozen_constant_lr": int((known >= CONSTANT_LR).sum()) if len(known) else None,
        "n_frozen_decayed_lr": int((known < CONSTANT_LR).sum()) if len(known) else None,
    }


def cloud(steps: pd.DataFrame) -> dict[str, Any]:
    """What only positions tell; None for all of it without them."""
    groups = steps["groups"].iloc[-1]
    return {
        "lift_off_step": lift_off_step(
            steps.index.to_numpy(), steps["centroid_norm"].to_numpy(), steps["radius"].to_numpy()
        ),
        "n_black_holes": whole(groups),
        "largest_black_hole": whole(steps["largest_group"].iloc[-1]),
    }


def whole(value: float) -> int | None:
    """A step or a count; None for NaN."""
    return None if np.isnan(value) else round(value)
