"""Which text is held out, and the removal of held-out text that has a twin in training."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from marble_sweep.checks import CheckError, require

MIN_DOCUMENTS = 20  # from here on whole documents are held out
SHINGLE = 8  # words
MAX_OVERLAP = 0.5  # share of a paragraph's shingles that may occur in training
LONG_PARAGRAPH = 2_000  # characters; a longer one is taken line by line

BETWEEN = "\n\n"  # two documents
BLANK_LINE = re.compile(r"\n\s*\n")


@dataclass(frozen=True)
class Split:
    train: str
    val: str
    num_duplicates_dropped: int  # held-out paragraphs with a twin in training
    val_starts: list[int]  # where in `val` each document begins, in characters; two begin together where one is dropped


def split_documents(documents: dict[str, str], val_fraction: float, origin: str) -> Split:
    """Hold out about `val_fraction` of the characters, then drop held-out text that training also has.

    Of many documents whole ones are held out, of few the tail of the joined text.
    Raises ValueError, which begins with `origin`, if nothing is left on one side.
    """
    if val_fraction == 0:
        return Split(_join(documents), "", 0, [])
    if len(documents) >= MIN_DOCUMENTS:
        in_train, in_val = _split_by_name(documents, val_fraction)
        train, val, starts = _join(in_train), _join(in_val), _starts(in_val)
    else:
        train, val = _split_tail(_join(documents), val_fraction)
        # The document that is cut begins before the tail.
        starts = [max(0, start - len(train)) for start in _starts(documents)]
    kept, num_dropped, starts = drop_twins(train, val, starts)
    if not kept.strip() and num_dropped:
        allowed = f"0: all {num_dropped:,} held-out paragraphs have a twin in training"
        require(False, "data.val_fraction", val_fraction, allowed)
    require_both_sides(bool(train.strip() and kept.strip()), origin, val_fraction)
    return Split(train, kept, num_dropped, starts)


def require_both_sides(condition: bool, origin: str, val_fraction: float) -> None:
    """Raise ValueError for data from `origin` that are too short to be split, where not `condition`."""
    if not condition:
        raise CheckError(
            f"{origin}: must be long enough for data.val_fraction = {val_fraction:g} to leave something on both sides; "
            "training needs trainer.batch_size x trainer.seq_len tokens, held out are at least trainer.seq_len",
            origin.partition(" = ")[0],
        )


def _join(documents: dict[str, str]) -> str:
    return BETWEEN.join(documents.values())


def _starts(documents: dict[str, str]) -> list[int]:
    """Where each document begins in the joined text."""
    lengths = [len(text) + len(BETWEEN) for text in documents.values()]
    return list(accumulate(lengths[:-1], initial=0)) if lengths else []


def _split_by_name(documents: dict[str, str], val_fraction: float) -> tuple[dict[str, str], dict[str, str]]:
    """Documents in the order of their names' hashes are held out as long as they fit."""
    room = val_fraction * sum(map(len, documents.values()))
    held_out = set()
    for name in sorted(documents, key=lambda name: hashlib.sha256(name.encode(errors="surrogateescape")).digest()):
        if len(documents[name]) <= room:
            room -= len(documents[name])
            held_out.add(name)
    train = {name: text for name, text in documents.items() if name not in held_out}
    val = {name: text for name, text in documents.items() if name in held_out}
    return train, val


def _split_tail(text: str, val_fraction: float) -> tuple[str, str]:
    """Cut between paragraphs, or else lines, or else words, at the first such gap that is near enough."""
    target = round(len(text) * (1 - val_fraction))
    latest = target + (len(text) - target) // 2
    for separator in ("\n\n", "\n", " "):
        start = text.find(separator, target, latest)
        if start >= 0:
            cut = start + len(separator)
            return text[:cut], text[cut:]
    return text[:target], text[target:]


def drop_twins(train: str, val: str, starts: Sequence[int]) -> tuple[str, int, list[int]]:
    """Drop the paragraphs of `val` that occur in `train`; returns the rest and the number dropped.

    Also where the places `starts`, in characters of `val`, are in the rest.
    Case and white space do not count. A paragraph is a twin if it is also a paragraph of training,
    or if more than half of its runs of eight words occur anywhere in training.
    """
    twins = {_normalise(piece) for piece in _pieces(train)}
    ids: dict[str, int] = {}
    known = np.unique(_shingles(train, ids))
    pieces = _pieces(val)
    kept = []
    for piece in pieces:
        normal = _normalise(piece)
        kept.append(not (normal and (normal in twins or _overlap(_shingles(piece, ids), known) > MAX_OVERLAP)))
    rest = "".join(piece for piece, keep in zip(pieces, kept, strict=True) if keep)
    # As a place moves on by a character of a piece that is kept it moves on in the rest too, else it stays.
    ends = np.cumsum([0, *map(len, pieces)])
    ends_in_rest = np.cumsum([0, *(len(piece) * keep for piece, keep in zip(pieces, kept, strict=True))])
    return rest, kept.count(False), np.interp(starts, ends, ends_in_rest).astype(int).tolist()


def _overlap(hashes: NDArray[np.uint64], known: NDArray[np.uint64]) -> float:
    """The share of `hashes` that is among the sorted `known`."""
    if len(hashes) == 0 or len(known) == 0:
        return 0.0
    indices = np.searchsorted(known, hashes).clip(max=len(known) - 1)
    return float(np.mean(known[indices] == hashes))


def _pieces(text: str) -> list[str]:
    """Paragraphs with the white space after them; joined they are the text again."""
    starts = [0, *(match.end() for match in BLANK_LINE.finditer(text)), len(text)]
    pieces = []
    for start, end in pairwise(starts):
        paragraph = text[start:end]
        pieces.extend(paragraph.splitlines(keepends=True) if end - start > LONG_PARAGRAPH else [paragraph])
    return pieces


def _normalise(text: str) -> str:
    return " ".join(text.casefold().split())


def _shingles(text: str, ids: dict[str, int]) -> NDArray[np.uint64]:
    """Hashes (num_words - 7,) of the runs of eight words; none for a shorter text. `ids` numbers the words seen."""
    numbers = [ids.setdefault(word, len(ids) + 1) for word in text.casefold().split()]
    values = np.array(numbers, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    values ^= values >> np.uint64(29)
    num_runs = max(0, len(values) - SHINGLE + 1)
    hashes = np.zeros(num_runs, dtype=np.uint64)
    for offset in range(SHINGLE):  # a polynomial modulo 2^64
        hashes = hashes * np.uint64(0xBF58476D1CE4E5B9) + values[offset : offset + num_runs]
    return hashes
