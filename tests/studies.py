"""Studies without training: a small space, made-up results, and a storage that fails."""

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.storages import BaseStorage, InMemoryStorage

from marble_sweep.hydra_app.sweep_syntax import parse
from marble_sweep.searches.proxy import serving
from marble_sweep.searches.space import Space, Value, build
from marble_sweep.searches.strategy import Proposal, Settled, Wait, decide
from marble_sweep.searches.study import Decide, Result, SharedStudy, Snapshot, open_study

CONFIRM_SEEDS = 2
SWEEPS = ("model.num_layers=0,1", "model.hidden_dim=range(2,6)", "optimizer.lr=tag(log,interval(1e-3,1))")


def small_space(*sweeps: str) -> Space:
    dimensions, _ = parse(sweeps or SWEEPS, OverridesParser.create())
    return build(dimensions, num_parameters)


def num_parameters(size: dict[str, Value]) -> int:
    width = int(size["model.hidden_dim"])
    return 80 * width + int(size["model.num_layers"]) * 12 * width**2


def decide_freely(snapshot: Snapshot) -> Proposal | Wait | Settled:
    return decide(small_space(), snapshot.records, CONFIRM_SEEDS)


def join(storage: BaseStorage, decide: Decide = decide_freely, *, timeout: float = 60.0) -> SharedStudy:
    return open_study(storage, "study", small_space(), decide, {"threshold": "unigram"}, timeout)


def made_up(outcome: str, *, step: int = 40, margin: float | None = 0.1, steps_per_minute: float = 600.0) -> Result:
    """The result of a run with so many steps."""
    return Result(
        outcome=outcome,
        directory="somewhere",
        step=step,
        tokens=step * 128,
        seconds=1.0,
        steps_per_minute=steps_per_minute,
        val_loss=None if margin is None else 3.0 - margin,
        margin=margin,
        margin_se=None if margin is None else 0.01,
        reason="boom" if outcome == "failed" else None,
        device={"matmul": "float32", "head": "float32", "num_threads": 2},
    )


def free_address() -> str:
    """HOST:PORT of this machine that no other process uses now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@contextlib.contextmanager
def served(storage: BaseStorage) -> Iterator[str]:
    """Serve a storage meanwhile; yields its address."""
    address = free_address()
    with serving(storage, address):
        yield f"grpc://{address}"


class Unreliable(InMemoryStorage):
    """Raises the given failures: before a call is carried out, or after it where `answer_is_lost`."""

    def __init__(self) -> None:
        super().__init__()
        self.failures: dict[str, list[Exception]] = {}  # by method
        self.answer_is_lost = False

    def __getattribute__(self, name: str) -> Any:
        attribute = super().__getattribute__(name)
        if name.startswith("_") or not callable(attribute):
            return attribute

        def call(*args: Any, **kwargs: Any) -> Any:
            failures = self.failures.get(name)
            failure = failures.pop() if failures else None
            if failure is not None and not self.answer_is_lost:
                raise failure
            answer = attribute(*args, **kwargs)
            if failure is not None:
                raise failure
            return answer

        return call
