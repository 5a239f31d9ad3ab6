"""What a person sees of a search: a line for every trial that ends, and on a terminal a bar for those that run."""

import sys
import threading
from collections.abc import Callable, Mapping
from typing import TextIO

from tqdm import tqdm

from marble_sweep.humanize import duration
from marble_sweep.metrics.margin import Outcome
from marble_sweep.runs.status import RunStatus
from marble_sweep.searches.space import Size, Value
from marble_sweep.searches.strategy import Proposal
from marble_sweep.searches.study import Result
from marble_sweep.terminal import printable


class View:
    """Prints lines and a progress bar on standard error. Threads may share it."""

    def __init__(self, total_steps: int, stream: TextIO | None = None, *, shows_loss: bool = False) -> None:
        """`total_steps` is the budget of a trial; lines go to `stream`, by default standard error.

        With `shows_loss` a trial that ended well is shown with its loss, not with what it shows of a threshold.
        """
        self.budget = total_steps
        self.stream = stream
        self.shows_loss = shows_loss
        self.bracket = ""
        self.steps: dict[str, int] = {}  # by running trial
        self.bar = tqdm(
            total=total_steps,
            disable=stream is not None or not sys.stderr.isatty(),
            bar_format="{desc} |{bar:20}| {n_fmt}/{total_fmt} steps",
            leave=False,
        )
        self._lock = threading.Lock()

    def line(self, text: str) -> None:
        tqdm.write(printable(text, keep="\n"), file=self.stream or sys.stderr)

    def begin(self, trial: str, bracket: Callable[[], str]) -> None:
        """Show a trial that starts, and the bracket of the search, which takes time and only a bar shows."""
        shown = self.bracket if self.bar.disable else bracket()  # which may wait for the storage
        with self._lock:
            self.steps[trial], self.bracket = 0, shown
            self._draw()

    def step(self, trial: str, step: int) -> None:
        """Show the step of a running trial."""
        with self._lock:
            if trial in self.steps:  # one that has ended may report once more
                self.steps[trial] = step
                self._draw()

    def lose(self, trial: str, *, interrupted: bool) -> None:
        """Print a line for a trial without a result: the whole search was `interrupted`, or its worker is gone."""
        why = "interrupted" if interrupted else "stale: its worker died or was stopped"
        self.line(f"{trial:<32}  {why}")
        with self._lock:
            self.steps.pop(trial, None)

    def end(self, trial: str, result: Result, bracket: str) -> None:
        """Print a line for a trial that ended, with the bracket."""
        reason = " ".join((result.reason or "").split())
        outcome = f"crashed: {reason}" if result.outcome == RunStatus.FAILED else result.outcome
        parts = [f"{trial:<32}"]
        if self.shows_loss and result.outcome in set(Outcome):
            parts.append("no loss" if result.val_loss is None else f"loss {result.val_loss:.4f}")
        else:
            parts.append(f"{outcome:<9} at step {result.step:>3}")
            if result.margin is not None and result.margin_se is not None:
                parts.append(f"margin {result.margin:+.4f} ± {result.margin_se:.4f}")
        if result.reused:
            parts.append("reused")
        if result.lacks_context and not self.shows_loss:
            parts.append("no use of context shown")
        parts.append(f"{duration(result.seconds):>4}")
        self.line("  ".join([*parts, f"[{bracket}]"]))
        with self._lock:
            self.bracket = bracket
            self.steps.pop(trial, None)

    def _draw(self) -> None:
        """The steps of all running trials together, of their budgets."""
        trials = " | ".join(" ".join(trial.split()) for trial in self.steps)
        self.bar.total, self.bar.n = self.budget * len(self.steps), sum(self.steps.values())
        self.bar.set_description_str(f"{self.bracket} | {trials}")

    def close(self) -> None:
        self.bar.close()


def describe_trial(number: int, plan: Proposal, size: Size, params: Mapping[str, Value]) -> str:
    """A trial in a few words: number, reason, size, and the parameters that do not decide the size."""
    others = {key: value for key, value in params.items() if key not in dict(size.params)}
    if plan.seed == 0:
        del others["seed"]
    recipe = " ".join(f"{key.rpartition('.')[2]}={value}" for key, value in others.items())
    threshold = f" for {plan.threshold}" if plan.threshold else ""
    return f"{number:>3}  {plan.reason:<7}  {size}  {recipe}{threshold}"
