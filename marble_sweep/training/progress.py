"""What a person sees while a run trains: a progress bar on a terminal, plain lines elsewhere."""

import logging
import math
import sys
import time

from tqdm import tqdm

from marble_sweep.humanize import duration
from marble_sweep.metrics.margin import unigram_margin

LOG_SECONDS = 15.0  # between plain lines, where there is no terminal

log = logging.getLogger(__name__)


class Progress:
    """Shows step, loss, margin to the best unigram, dead_moving and speed."""

    def __init__(self, total_steps: int, *, show: bool = True) -> None:
        self.total_steps = total_steps
        self.margin: str | None = None
        self.hidden = not (show and sys.stderr.isatty())
        self.bar = tqdm(disable=True)

    def start(self, step: int) -> None:
        """Start the clock and the bar at `step`."""
        self.first_step = step
        self.started = self.last_line = time.monotonic()
        self.bar = tqdm(total=self.total_steps, initial=step, unit="step", disable=self.hidden)

    def stepped(self, row: dict[str, float]) -> None:
        """Show a row of metrics.csv, the last of those just written."""
        step, now = int(row["step"]), time.monotonic()
        rate = (step - self.first_step) / max(now - self.started, 1e-9)
        shown = {"loss": f"{row['loss']:.3f}"}
        if self.margin is not None:
            shown["margin"] = self.margin
        if not math.isnan(row["dead_moving"]):
            shown["dead_moving"] = f"{row['dead_moving']:.2f}"
        shown["steps/min"] = f"{60 * rate:.0f}"
        if not self.hidden:
            self.bar.set_postfix(shown, refresh=False)
            self.bar.update(step - self.bar.n)
        elif now - self.last_line >= LOG_SECONDS or step == self.total_steps:
            self.last_line = now
            left = duration((self.total_steps - step) / rate)
            log.info(
                "step %d/%d  %s  %s left", step, self.total_steps, "  ".join(f"{k} {v}" for k, v in shown.items()), left
            )

    def evaluating(self, num_windows: int) -> None:
        """Say that so many windows are evaluated: all that are held out take longer than a step."""
        self.bar.set_postfix_str(f"evaluating {num_windows:,} windows")

    def evaluated(self, row: dict[str, float]) -> None:
        """Show the margin of a row of evals.csv from now on."""
        self.margin = f"{unigram_margin(row)[0]:+.3f}"

    def close(self) -> None:
        self.bar.close()
