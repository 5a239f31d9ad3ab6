"""What the jobs of a search have chosen to multiply by, for workers that share its study but not its directory.

Jobs agree in files of the sweep directory (training/products.py). A worker writes there what the study's trials
have chosen before its own job looks, and passes on to the study what its job has chosen anew.
"""

import contextlib
import json
import re
from pathlib import Path
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import Trial

from marble_sweep.runs import layout
from marble_sweep.runs.files import write_exclusive

CHOICES = "products"  # the user attribute of a trial with the choices that were new: file name to content
FILE_NAME = re.compile(r"(matmul|head)-[0-9x]+-[a-z0-9_]+\.json")  # of any other nothing is written


class StudyProducts:
    """The choices of a study's trials, and of one worker's sweep directory."""

    def __init__(self, trial: Trial, sweep_dir: Path) -> None:
        self.trial = trial
        self.folder = sweep_dir / layout.PRODUCTS
        self._given: set[str] = set()  # names of files that the study has

    def take(self) -> None:
        """Write what the study has and this directory has not; of several choices the earliest trial's counts."""
        for other in self.trial.study.get_trials(deepcopy=False):
            choices: dict[str, Any] = other.user_attrs.get(CHOICES, {})
            for name, content in choices.items():
                self._given.add(name)
                if FILE_NAME.fullmatch(name) and not (self.folder / name).exists():
                    self.folder.mkdir(parents=True, exist_ok=True)
                    write_exclusive(self.folder / name, json.dumps(content) + "\n")

    def give(self) -> None:
        """Record in the study what this directory has and the study has not."""
        paths = [path for path in self.folder.glob("*.json") if path.name not in self._given]
        new = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(paths)}
        if new:
            with contextlib.suppress(UpdateFinishedTrialError):  # another worker ended the trial as stale
                self.trial.set_user_attr(CHOICES, self.trial.user_attrs.get(CHOICES, {}) | new)
            self._given |= new.keys()
