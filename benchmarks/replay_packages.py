"""Published packages behind the recorded curves, set up as their documentation has it for the question.

Optuna is there anyway. The others are optional; search_replay.py names those that are missing:

    pip install 'smac>=2.4,<3' 'syne-tune>=0.16,<0.17'

Syne Tune asks for xgboost, whose wheel for Linux brings a library of CUDA. Its schedulers that are used here need
neither: `pip install --no-deps syne-tune`, then `pip install dill psutil scikit-learn sortedcontainers statsmodels`.
DEHB 0.1.2 asks for NumPy below 2, this project for 2 or later, so pip installs no such pair.

The question is put in the form that each package has for it: the smallest number of parameters under a constraint
(Optuna's TPE and GP), two objectives (NSGA-II, MOASHA), or one number, the parameters with a penalty (ASHA, BOHB,
SMAC3, Optuna's pruners, which take no constraint). A trial that is watched at its looks ends once it certifies: its
parameters are known then.
"""

import importlib.util
import itertools
import math
import tempfile
from collections.abc import Callable
from datetime import datetime
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.trial import TrialState
from replay_recording import LAYERS, RATE, STEPS, TOTAL_STEPS, WIDTH, Contender, Key, Replay, Spent, nearest

from marble_sweep.searches import space as spaces

PENALTY = 20.0  # more than the logarithm of any number of parameters here
FARTHEST = 10.0  # nats below what certifies; what diverged counts as that far
MOASHA_TRIALS = 300  # it sorts all trials of a rung anew at every look: more are too slow to replay
REJECTED = -0.01  # nats above what certifies: what fresh seeds did not confirm counts as a near miss
OPTIONAL = {"Syne Tune": "syne_tune", "SMAC3": "smac"}  # by the name of their module


def penalised(parameters: int, above: float) -> float:
    """The logarithm of the parameters where certified; else more than any, and the more so the farther from that."""
    return math.log(parameters) if above >= 0 else PENALTY + lacking(above)


def lacking(above: float) -> float:
    """Nats below what certifies, as a constraint that is met at 0 or less."""
    return FARTHEST if math.isnan(above) else max(-FARTHEST, min(-above, FARTHEST))


def watched(replay: Replay, shape: Key, is_stopped: Callable[[int, float], bool]) -> tuple[float, bool]:
    """Train until a look certifies or the package stops the trial: nats above what certifies, and whether it did.

    A size that certifies is an answer. If fresh seeds reject it, it counts as a near miss.
    """
    curve = replay.curve(*shape)
    replay.num_trials += 1
    trained = 0
    for step, above in zip(curve.steps, curve.above, strict=True):
        replay.spend(step - trained)
        trained = step
        if above >= 0:
            return (above if replay.incumbent(*shape) else REJECTED), False
        if is_stopped(step, above):
            return above, True
    replay.spend(curve.full_steps - trained)
    return (curve.above[-1] if trained == TOTAL_STEPS else -math.inf), False


# ---------------------------------------------------------------------------------------------------------- Optuna


def suggested(trial: optuna.Trial) -> Key:
    return trial.params[LAYERS], trial.params[WIDTH], trial.params[RATE]


def create_study(replay: Replay, sampler: optuna.samplers.BaseSampler, **settings: Any) -> optuna.Study:
    """Hyperband chooses its brackets by the study's name."""
    return optuna.create_study(study_name=f"replay {replay.seed}", sampler=sampler, **settings)


def optuna_constrained(
    replay: Replay,
    sampler: Callable[..., optuna.samplers.BaseSampler],
    pruner: Callable[[], optuna.pruners.BasePruner] = optuna.pruners.NopPruner,
) -> None:
    """The fewest parameters under the constraint that the trial certifies; the pruner compares the penalised number."""
    study = create_study(replay, sampler(seed=replay.seed), pruner=pruner())
    while True:
        trial = study.ask(replay.space.distributions)
        shape = suggested(trial)
        parameters = replay.parameters(*shape[:2])

        def is_stopped(step: int, above: float) -> bool:
            trial.report(penalised(parameters, above), step)  # noqa: B023 - called within the iteration
            return trial.should_prune()  # noqa: B023

        above, stopped = watched(replay, shape, is_stopped)
        trial.set_constraint("lacking", lacking(above))
        if stopped:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, math.log(parameters))


def nsga(replay: Replay, population: int) -> None:
    """NSGA-II on parameters and held-out loss under the same constraint. Optuna prunes no trial of two objectives."""
    sampler = optuna.samplers.NSGAIISampler(population_size=population, seed=replay.seed)
    study = create_study(replay, sampler, directions=["minimize", "minimize"])
    while True:
        trial = study.ask(replay.space.distributions)
        shape = suggested(trial)
        curve = replay.full(*shape)
        above = max(curve.above) if curve.steps[-1] == TOTAL_STEPS else -math.inf
        if curve.certifies and not replay.incumbent(*shape):
            above = REJECTED
        trial.set_constraint("lacking", lacking(above))
        loss = curve.losses[-1] if math.isfinite(curve.losses[-1]) else 1e3
        study.tell(trial, [math.log(replay.parameters(*shape[:2])), loss])


def as_published(space: spaces.Space) -> dict[str, BaseDistribution]:
    """The published sweeper takes a range's stop for its highest value: one more layer and one more width are drawn."""
    distributions = dict(space.distributions)
    for key in (LAYERS, WIDTH):
        whole = distributions[key]
        assert isinstance(whole, IntDistribution)
        distributions[key] = IntDistribution(whole.low, whole.high + 1)
    return distributions


def hydra_optuna(replay: Replay) -> None:
    """The published hydra-optuna-sweeper with one job at a time: TPE on a penalised number, every trial to its end.

    With Optuna 2.10's defaults, which but for `multivariate` are still those of Optuna 5.
    """
    study = create_study(replay, optuna.samplers.TPESampler(multivariate=False, seed=replay.seed))
    distributions = as_published(replay.space)
    while True:
        trial = study.ask(distributions)
        shape = suggested(trial)
        curve = replay.full(*shape)
        above = curve.above[-1] if curve.steps[-1] == TOTAL_STEPS else -math.inf
        if curve.certifies_at_end and not replay.incumbent(*shape):
            above = REJECTED
        study.tell(trial, penalised(replay.parameters(*shape[:2]), above))


# ------------------------------------------------------------------------------------------------------- Syne Tune

SIZE, LOSS, STEP = "log_parameters", "val_loss", "step"


def syne_tune_scheduler(name: str, space: spaces.Space, seed: int) -> Any:
    """ASHA, BOHB or MOASHA with its defaults, from the first look to the last."""
    from syne_tune.config_space import loguniform, randint
    from syne_tune.optimizer import baselines
    from syne_tune.optimizer.schedulers.multiobjective.moasha import MOASHA

    config = {key: randint(*bounds(space, key)) for key in (LAYERS, WIDTH)}
    config[RATE] = loguniform(1e-3, 1.0)
    common = {"time_attr": STEP, "max_t": TOTAL_STEPS, "grace_period": STEPS[0], "random_seed": seed}
    if name == "MOASHA":
        np.random.seed(seed)  # noqa: NPY002 - what it draws from
        return MOASHA(config, metrics=[SIZE, LOSS], **common)
    return getattr(baselines, name)(config, metric=SIZE, **common)


def bounds(space: spaces.Space, key: str) -> tuple[int, int]:
    values = [int(dict(size.params)[key]) for size in space.sizes]
    return min(values), max(values)


def syne_tune(replay: Replay, name: str) -> None:
    """A scheduler of Syne Tune with one worker, which is told of every look."""
    from syne_tune.backend.trial_status import Trial
    from syne_tune.optimizer.scheduler import SchedulerDecision

    scheduler = syne_tune_scheduler(name, replay.space, replay.seed)
    for number in range(MOASHA_TRIALS) if name == "MOASHA" else itertools.count():
        trial = Trial(number, scheduler.suggest().config, datetime.now())
        shape = trial.config[LAYERS], trial.config[WIDTH], trial.config[RATE]
        parameters, curve = replay.parameters(*shape[:2]), replay.curve(*shape)
        scheduler.on_trial_add(trial)
        losses = dict(zip(curve.steps, curve.losses, strict=True))

        def result(step: int, above: float) -> dict[str, float]:
            loss = losses.get(step, math.nan)  # noqa: B023 - called within the iteration
            size = math.log(parameters) if name == "MOASHA" else penalised(parameters, above)  # noqa: B023
            return {SIZE: size, LOSS: loss if math.isfinite(loss) else 1e3, STEP: step}

        def is_stopped(step: int, above: float) -> bool:
            decision = scheduler.on_trial_result(trial, result(step, above))  # noqa: B023
            return bool(decision != SchedulerDecision.CONTINUE)

        above, stopped = watched(replay, shape, is_stopped)
        if stopped:
            scheduler.on_trial_remove(trial)
        else:
            scheduler.on_trial_complete(trial, result(TOTAL_STEPS, above))
    raise Spent


# ----------------------------------------------------------------------------------------------------------- SMAC3


def smac(replay: Replay) -> None:
    """SMAC3's multi-fidelity facade: Hyperband over random forests on the penalised number, its budgets steps.

    A configuration with a larger budget trains on from where it was, which SMAC3 leaves to its user.
    """
    from ConfigSpace import ConfigurationSpace, Float, Integer
    from smac import MultiFidelityFacade, Scenario
    from smac.runhistory.dataclasses import TrialValue

    space = ConfigurationSpace(seed=replay.seed)
    space.add(*(Integer(key, bounds(replay.space, key)) for key in (LAYERS, WIDTH)))
    space.add(Float(RATE, (1e-3, 1.0), log=True))
    trained: dict[Any, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        scenario = Scenario(
            space,
            output_directory=folder,
            deterministic=True,
            n_trials=10**6,
            min_budget=STEPS[0],
            max_budget=TOTAL_STEPS,
            seed=replay.seed,
        )
        facade = MultiFidelityFacade(scenario, lambda config, seed, budget: 0.0, logging_level=False)
        while True:
            info = facade.ask()
            shape = info.config[LAYERS], info.config[WIDTH], info.config[RATE]
            step = int(nearest(info.budget, STEPS))
            above = train_to(replay, shape, trained.get(info.config, 0), step)
            trained[info.config] = max(step, trained.get(info.config, 0))
            facade.tell(info, TrialValue(cost=penalised(replay.parameters(*shape[:2]), above)), save=False)


def train_to(replay: Replay, shape: Key, trained: int, step: int) -> float:
    """Train on from `trained` steps to another step, or until a look certifies: nats above what certifies."""
    curve = replay.curve(*shape)
    replay.num_trials += trained == 0
    ends = next((at for at, above in zip(curve.steps, curve.above, strict=True) if above >= 0), curve.full_steps)
    replay.spend(max(0, min(step, ends) - min(trained, ends)))
    if ends <= step and curve.certifies:
        return 0.0 if replay.incumbent(*shape) else REJECTED
    return curve.above[curve.steps.index(step)] if step in curve.steps else -math.inf


# --------------------------------------------------------------------------------------------------------- together


def missing() -> list[str]:
    """The optional packages that are not installed."""
    return [name for name, module in OPTIONAL.items() if importlib.util.find_spec(module) is None]


def versions() -> str:
    """Of the packages that are replayed."""
    named = ", ".join(f"{name} {version(module)}" for name, module in (OPTIONAL | {"Optuna": "optuna"}).items())
    return f"Versions: {named}."


def packages() -> dict[str, dict[str, Contender]]:
    """Every published package that is installed, with its settings; of several the best one is reported."""
    pruners: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
        "no pruner": optuna.pruners.NopPruner,
        "median": optuna.pruners.MedianPruner,
        "Hyperband": partial(optuna.pruners.HyperbandPruner, min_resource=STEPS[0], max_resource=TOTAL_STEPS),
    }
    tpe, gp = optuna.samplers.TPESampler, optuna.samplers.GPSampler
    found: dict[str, dict[str, Contender]] = {
        "hydra-optuna-sweeper, TPE": {"": hydra_optuna},
        "Optuna, TPE": {name: partial(optuna_constrained, sampler=tpe, pruner=pruners[name]) for name in pruners},
        "Optuna, GP": {"no pruner": partial(optuna_constrained, sampler=gp)},  # it learns nothing from pruned trials
        "Optuna, NSGA-II": {f"population {size}": partial(nsga, population=size) for size in (10, 50)},
    }
    absent = missing()
    if "Syne Tune" not in absent:
        found |= {f"Syne Tune, {name}": {"": partial(syne_tune, name=name)} for name in ("ASHA", "BOHB", "MOASHA")}
    if "SMAC3" not in absent:
        found["SMAC3"] = {"": smac}
    return found
