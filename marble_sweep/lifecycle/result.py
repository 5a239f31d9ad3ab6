"""What the record of a run says about the life of its tokens."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

PHASES = ("early", "midlife", "late", "frozen")  # in the order of a life; a phase's number is its place here
CONTRACTION, EXPANSION, STANDSTILL = EPOCH_KINDS = ("contraction", "expansion", "standstill")


@dataclass(frozen=True)
class Lifecycle:
    """The life of the recorded tokens; docs/lifecycle.md has every rule.

    A *transition* goes from one recorded step to the next; its number is the step at which it ends. A number that
    the record cannot give is NaN: a record of kind `dead` has no positions, and only one of kind `full` has live
    tokens.

    tokens: a row a recorded token.
        token (int64): its id. is_dead (bool). text (str): as the tokenizer shows it, "" where there is none.
        last_early, last_midlife, last_late (float64): the last transition at which it moved like that; NaN: never.
            At step t it is early where t <= last_early; otherwise midlife where t <= last_midlife; otherwise late
            where t <= last_late; otherwise frozen.
        last_motion (float64): the last transition in which it moved at all; NaN: never.
        longest_pause (int64): the most steps that it stood still before it moved again.
        thawed (bool): it once stood still for the whole quiet window, and moved again.
        freeze_step (float64): the first step after its last motion; NaN where censored.
        censored (bool): it did not stand still for the quiet window before the record ends, so whether it froze is
            not known.
        phase (str): one of PHASES, at the last recorded step. is_straggler (bool).
        freeze_lr (float64): the learning rate at its freeze step, divided by the highest one up to there; NaN where
            censored or unknown.
        last_master_motion (float64): the last transition in which its float32 master weights changed; only where
            the record has them.
    steps: a row a transition, index `step` (int64). Of the dead tokens:
        early, midlife, late, frozen (int64): how many are in each phase; they sum to the number of dead tokens.
        moving (float64): the share that moved in this transition.
        masters_moving (float64): the share whose float32 masters changed; only where the record has them.
        l1_median, linf_median (float64): medians of the displacement's norms, in cells.
        centroid_norm: the distance of the mean row from the origin, in units of the weights, as are all below.
        centroid_along: its position along the axis, which is -h_mean of the last step, normalised.
        centroid_across: its distance from the axis.
        centroid_pc1, centroid_pc2: its position along the run's first two principal components.
        speed_along, speed_across, speed_pc1, speed_pc2: how far it moved in this transition, per step; the one
            across is never negative.
        radius: the root of the mean squared distance of the dead rows from their centroid.
        spread_along, spread_across: the parts of it along the axis and across; their squares add up to radius^2.
        coherence: the mean cosine between a moving row's displacement and the mean displacement.
        live_distance: from the centroid to that of the live tokens.
        groups, largest_group: how many black holes there are, and the size of the largest; only at sampled steps.
        lr: the learning rate of this step, where metrics.csv has it.
        Then the columns of the intended update, where the record has them.
    epochs: a row an epoch of the radius, which together cover the record.
        start, end (int64): its first and last transition; an epoch starts where the one before ends.
        kind (str): one of EPOCH_KINDS. radius_start, radius_end (float64).
    holes: a row a (sampled step, black hole), the largest first within a step.
        step (int64), size (int64), tokens (list of ids).
        num_merged (int64): how many black holes of the sampled step before have tokens in it; 2 or more: a merger.
        nearest_cells (float64): the cells to the nearest other one, in the dimension that is farthest.
    summary: numbers of the whole record, as metadata.json has them; None where one cannot be told.
        kind, first_step, last_step, every, num_tokens, n_dead, quiet_window,
        tied (whether the embedding is the head too, where metadata.json says),
        diverged_step (the first recorded one with NaN or infinity; the analysis ends at the one before, last_step),
        n_frozen, n_not_moving (not moving at the end, but for less than the quiet window), n_moving (in the last
        transition), freeze_median, freeze_last, half_freeze_step, last_motion, longest_pause, n_thawed,
        n_stragglers, early_median, midlife_median (of the last step in that phase), n_frozen_constant_lr,
        n_frozen_decayed_lr, lift_off_step, n_black_holes and largest_black_hole (both at the end),
        and for float32 masters n_masters_moving, masters_last_motion.
    axis: (D,) float64, the axis; empty where the record has no positions.
    across: (D,) float64, the first principal component of what remains across the axis; empty likewise.
    principal: (2, D) float64, the run's first two principal components; empty likewise.
    """

    tokens: pd.DataFrame
    steps: pd.DataFrame
    epochs: pd.DataFrame
    holes: pd.DataFrame
    summary: dict[str, Any]
    axis: NDArray[np.float64]
    across: NDArray[np.float64]
    principal: NDArray[np.float64]
