"""Record learning curves of several corpora and budgets, for false_stops.py to try the rule that gives up a run.

    python benchmarks/record_stops.py [--workers 2] [--file benchmarks/stop_curves.csv.gz]

Nothing is downloaded, and no text is stored:

- `pydocs` is the default corpus, recorded by record_curves.py alone;
- `source` is the source code of the standard library, its top-level modules;
- `manuals` are the help files of Vim 9.0 (Debian's package vim-runtime), English prose about an editor;
- `source, 2k` and `manuals, 2k` are the same in a vocabulary of 2,000, which trains in a fraction of the time;
- `markov` is the default Markov chain, `broad` one of more states with more successors.

Each curve is one ordinary run, never stopped early. Curves already in the file are not run again, so an interrupted
recording goes on. On two cores shared with other work the whole took about an hour. The stored curves are evaluated on
256 windows; an undecided evaluation is now repeated on all.
"""

import csv
import itertools
import logging
import sysconfig
import tempfile
from pathlib import Path

from record_curves import record_missing

KEYS = ("corpus", "budget", "num_layers", "hidden_dim", "lr", "seed")
MEASURED = ("tempered_margin", "oracle_margin", "bigram_margin", "context_gain")
VALUES = ("step", "val_loss", *(f"{name}{part}" for name in MEASURED for part in ("", "_se", "_df")))
SOURCE = f"data.path={sysconfig.get_path('stdlib')}/*.py"
MANUALS = "data.path=/usr/share/vim/vim90/doc/*.txt"
CORPORA = {
    "pydocs": ["data=pydocs"],
    "source": ["data=text", SOURCE],
    "manuals": ["data=text", MANUALS],
    "source, 2k": ["data=text", SOURCE, "data.vocab_size=2000"],
    "manuals, 2k": ["data=text", MANUALS, "data.vocab_size=2000"],
    "markov": ["data=markov"],
    "broad": ["data=markov", "data.vocab_size=2000", "data.branching=64"],
}
OF_A_SEARCH = ("trainer.total_steps=400", "trainer.batch_size=16", "trainer.eval_windows=256")
BUDGETS = {
    "search": [*OF_A_SEARCH, "trainer.num_evals=9", "trainer.eval_spacing=geometric"],
    "linear": [*OF_A_SEARCH, "trainer.num_evals=20", "trainer.eval_spacing=linear"],
    "long": [
        *("trainer.total_steps=1600", "trainer.batch_size=4", "trainer.seq_len=64", "trainer.eval_windows=256"),
        *("trainer.num_evals=13", "trainer.eval_spacing=geometric"),
    ],
    "wsd": [
        *(*OF_A_SEARCH, "trainer.num_evals=9", "trainer.eval_spacing=geometric"),
        *("schedule=wsd", "schedule.warmup_steps=40"),
    ],
}
NO_LAYERS, LAYERS = ((0, 2), (0, 3)), ((1, 3), (1, 4))  # layers, width: around what beats unigram
SOME, WIDE = ((0, 3), (1, 4)), ((0, 16), (2, 16))
RATES, FAR_RATES = (0.01, 0.0316, 0.1, 0.316), (0.00316, 1.0)
TEXTS, QUICK = ["source", "manuals"], ["source, 2k", "manuals, 2k", "markov", "broad"]
Curve = tuple[str, str, int, int, float, int]


def grid() -> list[Curve]:
    """All corpora in turn, the first seed first, so that what an interrupted recording has is of use."""
    return [
        (corpus, budget, *size, lr, seed)
        for corpora, budgets, sizes, rates, seed in (
            (TEXTS, ["search"], NO_LAYERS, RATES, 1),
            (QUICK, ["search"], NO_LAYERS + LAYERS, RATES, 1),
            (QUICK, ["search"], ((1, 2),), RATES[:3], 1),  # hardly any use of the context
            (QUICK, ["linear", "long", "wsd"], SOME, RATES[1:3], 1),
            (QUICK, ["search"], SOME, FAR_RATES, 1),
            (QUICK, ["search"], NO_LAYERS, RATES[1:3], 2),
            (QUICK, ["search"], WIDE, RATES[:1], 1),
        )
        for size, lr, budget, corpus in itertools.product(sizes, rates, budgets, corpora)
    ]


def record(curve: Curve) -> list[dict[str, str]]:
    """The rows of one curve, an evaluation each."""
    import torch

    from marble_sweep.hydra_app.compose import compose_config
    from marble_sweep.run import run

    logging.disable()
    torch.set_num_threads(1)
    corpus, budget, num_layers, hidden_dim, lr, seed = curve
    settings = [
        *("trainer.eval_part=search", f"model.num_layers={num_layers}", f"model.hidden_dim={hidden_dim}"),
        *(f"optimizer.lr={lr}", f"seed={seed}"),
    ]
    config = compose_config([*CORPORA[corpus], *BUDGETS[budget], *settings])
    with tempfile.TemporaryDirectory() as folder:
        run(config, Path(folder, "run"), show=False)
        with Path(folder, "run", "evals.csv").open(newline="") as file:
            evals = list(csv.DictReader(file))
    key = dict(zip(KEYS, map(str, curve), strict=True))
    digits = {"val_loss": 5, "step": 6}
    return [key | {name: f"{float(row[name] or 'nan'):.{digits.get(name, 4)}g}" for name in VALUES} for row in evals]


if __name__ == "__main__":
    record_missing(__doc__, "stop_curves.csv.gz", grid(), record, "tempered_margin")
