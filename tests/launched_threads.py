"""Searches whose workers are threads, in place of a launcher's jobs: nothing is trained, and little time passes."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pretender import Pretender

from marble_sweep.config import Config
from marble_sweep.searches.launched import LaunchedWorker, LaunchingSearch, Start
from marble_sweep.searches.worker import Ending, Params

Trains = Callable[[Pretender, int, Params], Path]


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have everybody look often, and leave out what takes longer than such a search."""
    for module in ("worker", "launched"):
        monkeypatch.setattr(f"marble_sweep.searches.{module}.WAIT_SECONDS", 0.02)
    monkeypatch.setattr("marble_sweep.searches.launched.STOP_SECONDS", 0.02)
    monkeypatch.setattr("marble_sweep.searches.launched.SAVING_SECONDS", 20.0)
    for name in ("draw_frontier", "write_page"):
        monkeypatch.setattr(f"marble_sweep.searches.worker.{name}", lambda *_: None)


def with_settings(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
    resolve = Pretender.resolve

    def resolved(self: Pretender, params: Params) -> Config:
        config = resolve(self, params)
        return replace(config, search=replace(config.search, **settings))

    monkeypatch.setattr(Pretender, "resolve", resolved)


def summary(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "search.json").read_text())
    return content | content["thresholds"][0]


def trains(pretender: Pretender, number: int, params: Params) -> Path:
    return pretender.train(number, params)


class Engine:
    """A launcher whose jobs are threads: each is a worker with a search of its own, as in another process."""

    def __init__(self, folder: Path, number: int, train: Trains = trains) -> None:
        self.folder = folder
        self.number = number
        self.train = train
        self.workers = [Pretender(folder, number, LaunchedWorker) for _ in range(number)]
        for worker in self.workers:  # their first trials wait for each other
            worker.at_once, worker.started = self.workers[0].at_once, self.workers[0].started

    def work(self, start: Start, place: int) -> Ending | Exception:
        worker = self.workers[place]
        assert isinstance(worker.search, LaunchedWorker)
        with (self.folder / f"{place}.log").open("w") as log:
            try:
                return worker.search.work(start, partial(self.train, worker), log)
            except Exception as error:
                return error

    def launch(self, start: Start) -> Sequence[Ending | Exception]:
        with ThreadPoolExecutor(self.number) as pool:
            return list(pool.map(partial(self.work, start), range(self.number)))

    def run(self, launch: Callable[[Start], Sequence[Ending | Exception]] | None = None) -> Ending:
        watching = Pretender(self.folder, 1, LaunchingSearch).search
        assert isinstance(watching, LaunchingSearch)
        return watching.run_launched(launch or self.launch, self.number)
