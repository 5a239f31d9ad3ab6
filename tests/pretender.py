"""Searches whose trials are not trained: a file stands for what a run of some width leaves."""

import math
import threading
import time
from dataclasses import replace
from pathlib import Path

from helpers import tiny_config
from hydra.core.override_parser.overrides_parser import OverridesParser

from marble_sweep.config import Config, dump
from marble_sweep.groups import AdamWConfig, ModelConfig
from marble_sweep.hydra_app.sweep_syntax import parse
from marble_sweep.runs.files import write_json, write_text
from marble_sweep.searches.worker import Params, Search

BASE = tiny_config("certify.stop=true", "certify.threshold=5.0", "trainer.num_evals=2", "search.confirm_seeds=2")


class Pretender:
    """Stands in for training: writes what a run of some width leaves, when it is allowed to."""

    def __init__(self, folder: Path, at_once: int, kind: type[Search] = Search) -> None:
        dimensions, _ = parse(
            ["model.num_layers=0", "model.hidden_dim=range(2,9)", "optimizer.lr=0.01,0.1"], OverridesParser.create()
        )
        self.folder = folder
        self.search = kind(dimensions, self.resolve, folder)
        self.at_once = threading.Barrier(at_once)  # the first trials wait for each other
        self.started: list[int] = []
        self.stopped = threading.Event()  # by fail_first

    def resolve(self, params: Params) -> Config:
        model = ModelConfig(num_layers=0, hidden_dim=int(params["model.hidden_dim"]))
        optimizer = AdamWConfig(lr=float(params.get("optimizer.lr", 0.01)))
        return replace(BASE, model=model, optimizer=optimizer, seed=int(params.get("seed", BASE.seed)))

    def train(self, number: int, params: Params) -> Path:
        self.started.append(number)
        if len(self.started) <= self.at_once.parties:
            self.at_once.wait(20)
        return self.leave_run(number, params)

    def fail_first(self, number: int) -> Path:
        """The first trial ends in a bug while the others train, who leave as train_job does once they are to stop."""
        self.at_once.wait(20)
        if number == 0:
            raise RuntimeError("a bug")
        while not self.search.should_stop():
            time.sleep(0.01)
        self.stopped.set()
        raise KeyboardInterrupt

    def leave_run(self, number: int, params: Params) -> Path:
        """Width 4 and more certify with lr 0.1, at the last evaluation."""
        width, lr = int(params["model.hidden_dim"]), float(params["optimizer.lr"])
        margin = 0.3 * math.log2(width / 3.5) - (lr != 0.1)
        directory = self.folder / str(number)
        directory.mkdir(parents=True)
        row = f"40,{5.0 - margin},0.01"
        write_text(directory / "config.yaml", dump(self.resolve(params)))
        write_text(directory / "evals.csv", f"step,val_loss,val_loss_se\n{row}\n")
        status = "certified" if margin > 0.1 * 0.3 else "finished"
        write_json(directory / "metadata.json", {"status": status, "step": 40, "seconds": 0.1, "corpus": {}})
        return directory
