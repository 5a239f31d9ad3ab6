"""The schema of what a search asks: when a loss counts as better, and how a search as a whole goes about it."""

import os
import re
from dataclasses import dataclass, field
from typing import ClassVar

from marble_sweep.checks import POSITIVE, Checked, Interval, bounded, require
from marble_sweep.groups import absolute_path
from marble_sweep.passwords import WITHOUT_PASSWORD, has_password, mask

BASELINES = ("unigram", "oracle", "bigram")
FRONTIER = "frontier"
QUESTIONS = ("smallest", FRONTIER)
KEPT = ("all", "best", "none")
MINIMISED = ("n_params", "non_embedding", "flops_per_token", "seconds_per_step")

# Bounds that no run comes near, as in groups.py.
MAX_TRIALS = 10**6
MAX_SEEDS = 1000
MAX_TOKENS = 10**18
MAX_SECONDS = 10**7  # some four months, and what a lock can be waited for
ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/@\[\]]+):([0-9]{1,5})")  # HOST:PORT, or [IPV6]:PORT
ANY_ADDRESS = ("0.0.0.0", "[::]")  # of this machine: there is none to pass on
MAX_PORT = 65_535


@dataclass
class CertifyConfig(Checked):
    """When held-out loss counts as better than a threshold, and whether a run ends once that is settled."""

    GROUP: ClassVar[str] = "certify"

    # unigram (the best of uniform, fitted and tempered), oracle, bigram, or a loss in nats per token
    threshold: str = "unigram"
    stop: bool = False  # end the run at the first evaluation that certifies it or leaves it no hope
    # all that a search asks of the run: its last evaluation is to decide each of them; null: the threshold alone
    thresholds: list[str] | None = None
    # with stop: a run that is slower at an evaluation ends there, as too_slow
    min_steps_per_minute: float | None = bounded(None, POSITIVE)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_threshold("certify.threshold", self.threshold)
        for threshold in self.thresholds or ():
            require_threshold("certify.thresholds", threshold)

    @property
    def loss(self) -> float | None:
        """The threshold, where it is a number."""
        return loss_of(self.threshold)


def loss_of(threshold: str) -> float | None:
    """A threshold that is a loss, in nats per token; None for the name of a baseline."""
    try:
        value = float(threshold)
    except ValueError:
        return None
    return value if value in POSITIVE else None


def require_threshold(name: str, threshold: str) -> None:
    """Raise CheckError for what is neither a baseline nor a loss."""
    allowed = f"{', '.join(BASELINES)}, or a loss > 0 in nats per token"
    require(threshold in BASELINES or loss_of(threshold) is not None, name, threshold, allowed)


@dataclass
class SearchConfig(Checked):
    """What concerns a search for the smallest model as a whole (hydra/sweeper=smallest)."""

    GROUP: ClassVar[str] = "search"

    # smallest: the smallest size that beats a threshold; frontier: the lowest loss of every size
    question: str = "smallest"
    # of a frontier: the seeds of every size's best recipe, with the one by which it was selected
    frontier_seeds: int = bounded(3, Interval(1, MAX_SEEDS))
    # Of which sizes have least: parameters; those outside the embedding and the positions; FLOPs of a training token;
    # seconds of a step, measured before the first trial.
    minimise: str = "n_params"
    # for each of them the smallest size, in one study, the easiest first; null: for certify.threshold alone
    thresholds: list[str] | None = None
    n_trials: int = bounded(300, Interval(1, MAX_TRIALS))  # in all, over every worker and every resumption
    max_tokens: int | None = bounded(None, Interval(1, MAX_TOKENS))  # to train on, over all trials; null: no limit
    # of training and waiting, over every resumption; null: no limit
    max_minutes: float | None = bounded(None, POSITIVE)
    # The answer must certify on more than this share of fresh seeds, and no smaller size may.
    pass_rate: float = bounded(0.8, Interval(0.1, 0.95))
    confidence: float = bounded(0.95, Interval(0.5, 0.999))  # of all that a search says of pass rates
    # the quick form: so many fresh seeds on which the answer must certify again; null: by pass_rate
    confirm_seeds: int | None = bounded(None, Interval(0, MAX_SEEDS))
    # whose weights, checkpoints and states stay on the disk: all trials', the answers', or nobody's; tables always stay
    keep: str = "all"
    # run directories, or folders of them: what has ended there and fits counts as a trial, and is not trained again
    reuse: list[str] = field(default_factory=list)
    storage: str | None = None  # a journal file or a database URL; null: a journal file in the sweep directory
    # seconds to wait for a storage that does not answer, before the search ends
    storage_patience: float = bounded(300.0, Interval(0, MAX_SECONDS))
    # HOST:PORT at which the process that has a launcher start the workers serves them the study; null: it does not
    serve: str | None = None
    study: str = "smallest"  # its name in the storage: workers that name the same one share the work
    # seconds without a heartbeat after which a worker's trial is retried
    worker_timeout: float = bounded(60.0, Interval(0, MAX_SECONDS, open_low=True))

    def __post_init__(self) -> None:
        super().__post_init__()
        allowed = f"one of {', '.join(QUESTIONS)}"
        require(self.question in QUESTIONS, "search.question", self.question, allowed)
        require(self.minimise in MINIMISED, "search.minimise", self.minimise, f"one of {', '.join(MINIMISED)}")
        self.reuse = [absolute_path("search.reuse", path) for path in self.reuse]
        require(self.keep in KEPT, "search.keep", self.keep, f"one of {', '.join(KEPT)}")
        if self.thresholds is not None:
            require(self.thresholds != [], "search.thresholds", "[]", "null, or one threshold or more")
            for threshold in self.thresholds:
                require_threshold("search.thresholds", threshold)
            different = len({loss_of(threshold) or threshold for threshold in self.thresholds})
            require(different == len(self.thresholds), "search.thresholds", self.thresholds, "different ones")
        if self.storage is not None:
            require(self.storage != "", "search.storage", "''", "null, a file, or the URL of a database")
            require(not has_password(self.storage), "search.storage", mask(self.storage), WITHOUT_PASSWORD)
            self.storage = os.path.expanduser(self.storage)
        require(self.study != "", "search.study", repr(self.study), "a name")
        if self.serve is not None:
            self._check_serve(self.serve)

    def _check_serve(self, address: str) -> None:
        match = ADDRESS.fullmatch(address)
        fits = match is not None and 1 <= int(match[2]) <= MAX_PORT and match[1] not in ANY_ADDRESS
        allowed = f"null or HOST:PORT, where workers reach this machine, with a port in [1, {MAX_PORT}]"
        require(fits, "search.serve", address, allowed)
        is_database = self.storage is None or "://" in self.storage
        require(
            is_database, "search.storage", self.storage, "null or a database with search.serve, which has no journals"
        )
