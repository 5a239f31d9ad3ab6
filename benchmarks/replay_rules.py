"""Rules for giving a run up, and the sizes that a climb over recipes would refute for them."""

import math

from replay_contenders import Trial, layers_and_width
from replay_recording import RATE, TOTAL_STEPS, Curve, Failed, Recording, Rule, current_rule, stopped

from marble_sweep.early_stopping import FASTEST_FALL
from marble_sweep.searches import space as spaces
from marble_sweep.searches.strategy import SearchState


def falls_by(share: float) -> Rule:
    """is_hopeless with another share of the loss in place of FASTEST_FALL."""

    def rule(curve: Curve, look: int, failed: Failed) -> bool:
        if look == 0:
            return False
        before, now = curve.steps[look - 1], curve.steps[look]
        as_before = (TOTAL_STEPS - now) * (curve.margins[look] - curve.margins[look - 1]) / (now - before)
        at_most = math.log2(TOTAL_STEPS / now) * share * curve.losses[look]
        return not curve.margins[look] + max(as_before, at_most) > 0

    return rule


def without_context(from_step: int, gain: float) -> Rule:
    """Also: from a step on below the threshold, where another window's context changes the loss by less than `gain`."""

    def rule(curve: Curve, look: int, failed: Failed) -> bool:
        unused = curve.steps[look] >= from_step and curve.margins[look] < 0 and abs(curve.gains[look]) < gain
        return curve.hopeless[look] or unused

    return rule


def trailing(by: float) -> Rule:
    """Also: behind a failed trial of the same size by so many nats at this look, and falling no faster than it did."""

    def rule(curve: Curve, look: int, failed: Failed) -> bool:
        if curve.hopeless[look] or look == 0:
            return curve.hopeless[look]
        before, now = curve.steps[look - 1], curve.steps[look]
        here, rise = curve.margins[look], curve.margins[look] - curve.margins[look - 1]
        return any(
            here < each[now] - by and rise <= each[now] - each[before]
            for each in failed
            if now in each and before in each
        )

    return rule


def never(curve: Curve, look: int, failed: Failed) -> bool:
    return False


RULES: dict[str, Rule] = {
    "never stop": never,
    "certify.is_hopeless": current_rule,
    "without its rule on the context": falls_by(FASTEST_FALL),
    "fastest fall 0.08 of the loss": falls_by(0.08),
    "fastest fall 0.04 of the loss": falls_by(0.04),
    "fastest fall 0.02 of the loss": falls_by(0.02),
    "the last fall at every step": falls_by(0.0),
    "or context gain < 1e-3 from step 200": without_context(200, 1e-3),
    "or context gain < 1e-4 from step 200": without_context(200, 1e-4),
    "or context gain < 1e-6 from step 100": without_context(100, 1e-6),
    "or behind a failed lr by 0.02, and no faster": trailing(0.02),
    "or behind a failed lr by 0.1, and no faster": trailing(0.1),
}


def climb(recording: Recording, space: spaces.Space, size: spaces.Size, seed: int, start: int, rule: Rule) -> bool:
    """Whether the climb over recipes, begun at a position, certifies a size on a seed."""
    alone = spaces.Space(space.dimensions, (size,))
    recipe: tuple[float, ...] = (float(start),)
    records = list[Trial]()
    while True:
        params = alone.params(0, recipe)
        curve = recording.cell(*layers_and_width(size), float(params[RATE]))[seed]
        outcome, looks, _ = stopped(curve, rule, [each.raw for each in records])
        if outcome == "certified":
            return True
        above, raw = (dict(zip(curve.steps[:looks], kind, strict=False)) for kind in (curve.above, curve.margins))
        records.append(Trial(len(records), 0, recipe, 0, outcome, above, raw=raw))
        following = next(SearchState(alone, records, 0).next_recipes(0), None)
        if following is None:
            return False
        recipe = following


def climbs(recording: Recording, space: spaces.Space, rule: Rule) -> tuple[int, int]:
    """How many climbs refute a size that certifies on that seed, of how many, from every lr recorded for all sizes.

    From others the climb would step to an lr that is not recorded, and so might find itself no better off.
    """
    wrong = total = 0
    starts = sorted(set.intersection(*map(set, recording.rates.values())))
    positions = {value: place for place, value in enumerate(space.recipes[0].values)}
    sizes = {layers_and_width(size): size for size in space.sizes}
    for shape, rates in recording.rates.items():
        for seed in recording.seeds:
            known = [lr for lr in rates if seed in recording.cells[(*shape, lr)]]
            if len(known) < len(rates) or not any(recording.cells[(*shape, lr)][seed].certifies for lr in known):
                continue
            for lr in starts:
                total += 1
                wrong += not climb(recording, space, sizes[shape], seed, positions[lr], rule)
    return wrong, total
