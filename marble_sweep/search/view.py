"""What a person sees of a search: a line for every trial that ends, and on a terminal a bar over the one that runs."""

import shlex
import sys
from collections.abc import Mapping

from tqdm import tqdm

from marble_sweep.search.space import Value
from marble_sweep.search.study import Result
from marble_sweep.words import duration


class View:
    """Lines and a bar on standard error."""

    def __init__(self, total_steps: int) -> None:
        """`total_steps` are a trial's budget."""
        self.bar = tqdm(
            total=total_steps,
            disable=not sys.stderr.isatty(),
            bar_format="{desc} |{bar:20}| {n_fmt}/{total_fmt} steps",
            leave=False,
        )

    def line(self, text: str) -> None:
        tqdm.write(text, file=sys.stderr)

    def begin(self, number: int, size: str, params: Mapping[str, Value], reason: str, bracket: str) -> None:
        """Show the trial that starts, and how far the search is."""
        self.bar.reset()
        self.bar.set_description_str(f"{bracket} | trial {number}: {reason} {size} {recipe_words(params)}")

    def step(self, step: int) -> None:
        """Show the step that the trial has reached."""
        self.bar.update(step - self.bar.n)

    def end(self, number: int, size: str, params: Mapping[str, Value], result: Result, bracket: str) -> None:
        """A line for the trial that ended, with where the search stands."""
        parts = [f"{number:>4}  {size}  {recipe_words(params)}", f"{result.outcome:<9} at step {result.step:>3}"]
        if result.margin is not None and result.margin_se is not None:
            parts.append(f"margin {result.margin:+.4f} ± {result.margin_se:.4f}")
        parts.append(f"crashed: {result.reason}" if result.outcome == "failed" else duration(result.seconds))
        self.line("  ".join([*parts, f"[{bracket}]"]))

    def close(self) -> None:
        self.bar.close()


def recipe_words(params: Mapping[str, Value]) -> str:
    """The parameters that the size does not tell, as a command line has them, by their last names."""
    told = {key: value for key, value in params.items() if not key.startswith("model.")}
    return " ".join(f"{key.rpartition('.')[2]}={shlex.quote(str(value))}" for key, value in told.items())
