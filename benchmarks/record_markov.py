"""Record learning curves on a Markov chain of known entropy rate, for search_replay.py to replay searches on.

    python benchmarks/record_markov.py [--workers 2] [--file benchmarks/markov_curves.csv.gz]

Each (layers, width, lr, seed) is one ordinary run of the search's budget on the default chain (`data=markov`), never
stopped early and evaluated at every look of the search. Its vocabulary of 512 makes layers dear and width cheap, where
the default corpus with 10,000 has it the other way round. Curves already in the file are not run again, so an
interrupted recording goes on. On a core that other work shared, the 156 curves took about 50 minutes.
"""

import itertools

from record_curves import record_missing
from record_stops import Curve, record

NARROW, WIDE, LAYERS = (2, 3, 4, 6), (8, 12, 16), (0, 1, 2)
RATES, NEAR_RATES = (0.01, 0.0316, 0.1, 0.316), (0.0316, 0.1, 0.316)


def grid() -> list[Curve]:
    """So that what an interrupted recording has is of use: the boundaries that are replayed first, on every seed."""
    parts = [
        ((0, 1), NARROW, NEAR_RATES, (1, 2, 3)),
        ((2,), NARROW, NEAR_RATES, (1, 2, 3)),
        (LAYERS, NARROW + WIDE, RATES, (1,)),
    ]
    curves = [
        ("markov", "search", num_layers, hidden_dim, lr, seed)
        for layers, widths, rates, seeds in parts
        for seed, num_layers, hidden_dim, lr in itertools.product(seeds, layers, widths, rates)
    ]
    return list(dict.fromkeys(curves))


if __name__ == "__main__":
    record_missing(__doc__, "markov_curves.csv.gz", grid(), record, "tempered_margin")
