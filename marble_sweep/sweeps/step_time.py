"""How long a training step takes, measured before anything is trained."""

import tempfile
import time
from pathlib import Path

import torch

from marble_sweep.config import Config
from marble_sweep.data.batches import Batches
from marble_sweep.model.products import using
from marble_sweep.run import build_model
from marble_sweep.training.device import choose_device, cpu_threads
from marble_sweep.training.memory import require_memory
from marble_sweep.training.precision import POLICIES
from marble_sweep.training.products import choose_products
from marble_sweep.training.progress import Progress
from marble_sweep.training.trainer import Trainer
from marble_sweep.training.writer import RunWriter


def step_time(config: Config, products: Path) -> float:
    """The seconds of a whole step of the config's model on made-up tokens: of the second one, as the first warms up.

    It multiplies as the jobs of a sweep do whose choices are in the folder `products`. Raises ValueError where the
    model cannot be trained here.
    """
    policy, vocab_size = POLICIES[config.precision.name], config.data.vocab_size
    device = choose_device(config.device, policy)
    require_memory(config, device)
    dead = torch.arange(vocab_size) < round(vocab_size * getattr(config.data, "dead_fraction", 0.0))
    generator = torch.Generator().manual_seed(config.seed)
    shape = config.trainer.batch_size, config.trainer.seq_len
    tokens = torch.randint(int(dead.sum()), vocab_size, shape, generator=generator)
    with (
        cpu_threads(config.device.num_threads),
        using(choose_products(config, device, vocab_size, products)),
        tempfile.TemporaryDirectory() as folder,
    ):
        trainer = Trainer(
            config,
            build_model(config, vocab_size).to(device, policy.param_dtype),
            Batches(tokens.to(device), config.trainer.batch_size, config.seed),
            dead.to(device),
            RunWriter(Path(folder), dead),
            Progress(config.trainer.total_steps, show=False),
        )
        try:
            for _ in range(2):
                started = time.perf_counter()
                trainer.take_step()
                trainer.fetch()  # waits for the device
                seconds = time.perf_counter() - started
        finally:
            trainer.writer.close()
    return seconds
