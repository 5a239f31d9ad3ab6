"""What a search costs beside training: from the end of one trial's training to the start of the next one's.

    python benchmarks/search_overhead.py [SWEEP_DIR]

Without a sweep directory a small search is made (markov, some 20 trials). Overhead is the time from one trial's being
asked for to the next one's, less what its run spent inside itself (corpus, model, training, evaluation, saving):
deciding, composing the config, launching a process, the verdict, telling the study, and writing search.json.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import optuna

from marble_sweep.searches.storage import open_storage
from marble_sweep.searches.study import result_of

SMALL = (
    *("data=markov", "data.vocab_size=64", "data.num_tokens=20000", "model.num_layers=0,1"),
    *("model.hidden_dim=range(2,9)", "trainer.total_steps=40", "trainer.batch_size=8", "trainer.seq_len=16"),
    *("search.confirm_seeds=3", "sweep.workers=1"),  # the trials of several workers overlap
)


def overheads(sweep_dir: Path) -> list[float]:
    """Seconds of each trial but the last, whose end no other trial marks."""
    storage = open_storage(str((sweep_dir / "study.log").resolve()))
    (name,) = optuna.get_all_study_names(storage)
    trials = optuna.load_study(study_name=name, storage=storage).trials
    found = []
    for trial, following in zip(trials, trials[1:], strict=False):
        assert trial.datetime_start is not None
        assert following.datetime_start is not None
        whole = (following.datetime_start - trial.datetime_start).total_seconds()
        run_seconds = result_of(trial).get("seconds")
        if run_seconds is not None and trial.number > 0:  # the first one waits for the fork server's imports
            found.append(whole - run_seconds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep_dir", type=Path, nargs="?")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sweep_dir = arguments.sweep_dir or Path(folder, "sweep")
        if arguments.sweep_dir is None:
            command = [sys.executable, "-m", "marble_sweep", "--multirun", "hydra/sweeper=smallest", *SMALL]
            subprocess.run([*command, f"hydra.sweep.dir={sweep_dir}"], check=True)
        found = overheads(sweep_dir)
    milliseconds = [1000 * seconds for seconds in found]
    print(
        f"{len(found)} trials: median {statistics.median(milliseconds):.0f} ms, "
        f"from {min(milliseconds):.0f} to {max(milliseconds):.0f} ms"
    )


if __name__ == "__main__":
    main()
