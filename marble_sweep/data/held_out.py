"""Which windows of the held-out split are evaluated, and the document of each."""

import bisect

import torch
from torch import Tensor

from marble_sweep.checks import wrong_value
from marble_sweep.data.batches import eval_window_numbers
from marble_sweep.data.documents import documents_of_windows

MIN_DOCUMENTS = 20  # that have windows; with fewer, blocks are divided
NUM_BLOCKS = 32


def choose_windows(
    part: str, num_tokens: int, firsts: Tensor | None, seq_len: int, max_windows: int
) -> tuple[Tensor, Tensor | None]:
    """The numbers of the windows to evaluate, (num_windows,) int64 and ascending, and their documents, if known.

    `firsts` (num_documents,) are the first tokens of the documents. Of all windows at most `max_windows` are evaluated,
    evenly spaced. A `part` is `search` or `confirm`: whole documents, or blocks of windows, that the other part never
    sees. Of each of its documents about as many windows are taken, so that a long one does not decide a mean alone.
    Raises ValueError if the part has no window.
    """
    if part == "all":
        numbers = eval_window_numbers(num_tokens, seq_len, max_windows)
        return numbers, None if firsts is None else documents_of_windows(firsts, numbers, seq_len)
    numbers = torch.arange(num_tokens // seq_len)
    documents = None if firsts is None else documents_of_windows(firsts, numbers, seq_len)
    units = documents
    if units is None or len(units.unique()) < MIN_DOCUMENTS:
        units = numbers * NUM_BLOCKS // max(1, len(numbers))
    inside = in_search(units) == (part == "search")
    chosen = spread_over(units[inside], max_windows)
    if len(chosen) == 0:
        raise wrong_value("trainer.eval_part", part, f"all: {num_tokens} held-out tokens are too few to divide")
    return numbers[inside][chosen], None if documents is None else documents[inside][chosen]


def choose_all_windows(
    part: str, num_tokens: int, firsts: Tensor | None, seq_len: int, numbers: Tensor, max_windows: int
) -> tuple[Tensor, Tensor]:
    """All windows of a part, or as many as may be: their numbers (num_all,), and the stretch that each belongs to.

    `numbers` (num_windows,) are those that are evaluated as a rule, and that are among all. A stretch goes from one of
    these to the next; it is given as the position of its first window in `numbers`.
    """
    more, _ = choose_windows(part, num_tokens, firsts, seq_len, max_windows)
    every = torch.cat([numbers, more]).unique()
    return every, torch.searchsorted(numbers, every, right=True) - 1


def in_search(units: Tensor) -> Tensor:
    """Whether each window is of the search's part, (num_windows,) bool: whole units go in turn to the smaller part."""
    sizes = {True: 0, False: 0}
    owners = []
    for size in torch.unique_consecutive(units, return_counts=True)[1].tolist():
        owner = sizes[True] <= sizes[False]
        sizes[owner] += size
        owners += [owner] * size
    return torch.tensor(owners, dtype=torch.bool)


def spread_over(units: Tensor, max_windows: int) -> Tensor:
    """The positions of at most `max_windows` windows, ascending: as equally many of every unit as there are.

    `units` (num_windows,) is the unit of each window, ascending. Within a unit they are evenly spaced.
    """
    sizes = torch.unique_consecutive(units, return_counts=True)[1]
    if len(sizes) >= max_windows:
        return torch.arange(max_windows) * len(units) // max_windows
    largest = int(sizes.max()) if len(sizes) else 0
    caps = range(1, largest + 1)  # of which more windows are taken, the higher they are
    most = max(1, bisect.bisect_right(caps, max_windows, key=lambda cap: int(sizes.clamp(max=cap).sum())))
    ends = sizes.cumsum(0)
    positions = []
    for size, end in zip(sizes.tolist(), ends.tolist(), strict=True):
        taken = min(size, most)
        positions.append(end - size + torch.arange(taken) * size // taken)
    return torch.cat(positions) if positions else torch.arange(0)
