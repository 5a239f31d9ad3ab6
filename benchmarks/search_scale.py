"""How a search scales: trials a minute with several workers, and how long a decision takes in a study of many trials.

    python benchmarks/search_scale.py [--workers 1 2 4 8 16] [--trials 40] [--storage DIRECTORY]
    python benchmarks/search_scale.py --decision 10000

The first measures the machinery alone: a trial sleeps for 0.1 s inside its worker, which then leaves the files of a
run. Every worker is a process of its own that joins one study, as those that a launcher starts; all stop at `--trials`
trials a worker. The quick form is searched, in a space so wide that no worker waits for another. The second makes up
the records of a large search by the standard of a pass rate, every size with a climb and fresh seeds, and times what
happens between two trials: reading the study anew, and the decision.
"""

import argparse
import multiprocessing
import os
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from pathlib import Path

import optuna
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from replay_tables import markdown

from marble_sweep.config import Config, dump
from marble_sweep.groups import AdamWConfig, ModelConfig
from marble_sweep.hydra_app.compose import compose_config
from marble_sweep.hydra_app.sweep_syntax import parse
from marble_sweep.runs.files import write_json, write_text
from marble_sweep.searches.launched import LaunchedWorker, Start
from marble_sweep.searches.space import Space
from marble_sweep.searches.storage import open_storage
from marble_sweep.searches.strategy import Proposal, Wait
from marble_sweep.searches.study import OUTCOME, PLAN, RESULT, open_study
from marble_sweep.searches.worker import WORKING, Params

SLEEP = 0.1  # seconds
STEPS = (25, 35, 50, 71, 100, 141, 200, 283, 400)
WIDE = ("model.num_layers=range(0,300)", "model.hidden_dim=range(2,4)", "optimizer.lr=tag(log,interval(1e-3,1))")
DEFAULT = ("model.num_layers=range(0,5)", "model.hidden_dim=range(2,65)", "optimizer.lr=tag(log,interval(1e-3,1))")
SETTINGS = ("data=markov", "certify.stop=true", "certify.threshold=5.0", "trainer.num_evals=2")
Measured = tuple[int, float, float]  # trials, the seconds that they took, and the CPU's of all workers


# ------------------------------------------------------------------------- workers


class Sleeper:
    """A worker whose trials sleep and then fail by a little."""

    def __init__(self, folder: Path, trials: int, space: Sequence[str] = WIDE) -> None:
        dimensions, _ = parse(space, OverridesParser.create())
        base = compose_config(SETTINGS)
        confirm_seeds = 3 if space == WIDE else None
        self.base = replace(base, search=replace(base.search, n_trials=trials, confirm_seeds=confirm_seeds))
        self.folder = folder
        self.text = dump(base)  # of a run's config: which trial's does not matter here
        self.search = LaunchedWorker(dimensions, self.resolve, folder)

    def resolve(self, params: Params) -> Config:
        model = ModelConfig(num_layers=int(params["model.num_layers"]), hidden_dim=int(params["model.hidden_dim"]))
        optimizer = AdamWConfig(lr=float(params["optimizer.lr"]))
        return replace(self.base, model=model, optimizer=optimizer, seed=int(params.get("seed", self.base.seed)))

    def train(self, number: int, params: Params) -> Path:
        time.sleep(SLEEP)
        directory = self.folder / str(number)
        directory.mkdir()
        write_text(directory / "config.yaml", self.text)
        write_text(directory / "evals.csv", "step,val_loss,val_loss_se\n40,5.2,0.01\n")
        write_json(directory / "metadata.json", {"status": "finished", "step": 40, "seconds": SLEEP, "corpus": {}})
        return directory


def work(folder: Path, start: Start, trials: int, barrier: Barrier, seconds: "multiprocessing.Queue[float]") -> None:
    """Take trials until there are so many; puts the CPU's seconds of this process into the queue."""
    import sqlalchemy  # noqa: F401  # a worker loads it once, which takes as long as several trials

    worker = Sleeper(folder, trials)
    barrier.wait()
    before = time.process_time()
    with open(os.devnull, "w") as log:
        worker.search.work(start, worker.train, log)
    seconds.put(time.process_time() - before)


def measure(folder: Path, workers: int, trials: int) -> Measured:
    """Have so many workers make a study of so many trials."""
    address = str(folder / "study.log")
    storage = open_storage(address)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(storage=storage, study_name="smallest")
    start = Start("benchmark", address, 0)
    study.set_user_attr(start.key, WORKING)
    context = multiprocessing.get_context("spawn")
    barrier, seconds = context.Barrier(workers), context.Queue()
    arguments = (folder, start, trials, barrier, seconds)
    processes = [context.Process(target=work, args=arguments) for _ in range(workers)]
    for process in processes:
        process.start()
    cpu = sum(seconds.get() for _ in processes)
    for process in processes:
        process.join()
    ended = [trial for trial in study.trials if trial.datetime_complete is not None and RESULT in trial.user_attrs]
    first = min(trial.datetime_start for trial in ended if trial.datetime_start is not None)
    last = max(trial.datetime_complete for trial in ended if trial.datetime_complete is not None)
    return len(ended), (last - first).total_seconds(), cpu


def compare_workers(numbers: Sequence[int], trials: int, storage: Path | None) -> list[list[str]]:
    rows = [["workers", "trials", "trials a minute", "times one worker", "CPU time a trial"]]
    alone = None
    for workers in numbers:
        with tempfile.TemporaryDirectory(dir=storage) as folder:
            ended, seconds, cpu = measure(Path(folder), workers, trials * workers)
        rate = 60 * ended / seconds
        alone = alone or rate / workers
        rows.append([str(workers), str(ended), f"{rate:.0f}", f"{rate / alone:.1f}", f"{1000 * cpu / ended:.1f} ms"])
    return rows


# ------------------------------------------------------------------------- decisions


def made_up_trials(space: Space, number: int) -> list[FrozenTrial]:
    """The trials of a search that climbs in every size, and trains its best recipe on some thirty fresh seeds."""
    chance = random.Random(0)
    trials: list[FrozenTrial] = []
    last = len(space.recipes[0].values) - 1
    while len(trials) < number:
        for size in range(len(space.sizes)):
            best, rate = float(chance.randint(1, last - 1)), chance.choice([0.0, 0.0, 0.3, 0.6, 0.79])
            for recipe in (best, best + 1, best - 1):
                plan, margin = Proposal(size, (recipe,), 0, "refute"), -0.2 - abs(recipe - best)
                trials.append(made_up(space, plan, margin, chance))
            for seed in range(1, 30):
                margin = 0.1 if chance.random() < rate else -0.2
                trials.append(made_up(space, Proposal(size, (best,), seed, "exclude"), margin, chance))
    return trials[:number]


def made_up(space: Space, plan: Proposal, margin: float, chance: random.Random) -> FrozenTrial:
    certified = margin > 0
    result = {"outcome": "certified" if certified else "below", "step": 400, "tokens": 819_200, "seconds": 1.0}
    attributes = {PLAN: vars(plan), OUTCOME: result["outcome"], RESULT: result | {"steps_per_minute": 24_000.0}}
    values = {step: -margin + chance.gauss(0, 0.01) for step in STEPS}
    distributions, params = space.distributions, space.params(plan.size, plan.recipe)
    return create_trial(
        state=TrialState.COMPLETE,
        value=space.sizes[plan.size].num_parameters,
        params=params,
        distributions=distributions,
        user_attrs=attributes,
        intermediate_values=values,
    )


def time_decisions(number: int, rounds: int) -> list[list[str]]:
    """The CPU time of one thread for a look at a study of so many trials, each with one trial that has just ended."""
    with tempfile.TemporaryDirectory() as folder:
        search = Sleeper(Path(folder), number + rounds + 1, DEFAULT).search
        search.shared = open_study(InMemoryStorage(), "smallest", search.space, lambda _: Wait(), {}, timeout=60.0)
        *before, last = made_up_trials(search.space, number)
        search.shared.study.add_trials(before)
        first = look(search)
        seconds = []
        for _ in range(rounds):
            search.shared.study.add_trial(last)
            seconds.append(look(search))
    rows = [["trials", "a worker's first look", "a later look: median", "longest"]]
    rows.append([f"{number:,}", f"{first:.2f} s", f"{1000 * statistics.median(seconds):.1f} ms"])
    rows[1].append(f"{1000 * max(seconds):.1f} ms")
    return rows


def look(search: LaunchedWorker) -> float:
    """Read the study and decide; returns the seconds."""
    before = time.thread_time()
    decision = search.result().decision
    seconds = time.thread_time() - before
    assert decision == search.result().decision
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--trials", type=int, default=40, help="trials a worker")
    parser.add_argument("--storage", type=Path, help="folder in which the study and the runs are written")
    parser.add_argument("--decision", type=int, help="time decisions in a study of so many trials instead")
    parser.add_argument("--rounds", type=int, default=21)
    arguments = parser.parse_args()
    if arguments.decision is not None:
        print(markdown(time_decisions(arguments.decision, arguments.rounds)))
    else:
        print(markdown(compare_workers(arguments.workers, arguments.trials, arguments.storage)))


if __name__ == "__main__":
    main()
