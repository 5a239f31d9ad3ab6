"""Numbers in words for people."""

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any


def amount(value: float) -> str:
    """A number of something: 30,262; below a thousand with three digits, as 0.0123."""
    return f"{value:,.0f}" if value >= 1000 or value == int(value) else f"{value:.3g}"


def counted(number: int, what: str) -> str:
    """1 head, 2 heads."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def plain(value: object) -> str:
    """A value of a config."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def some_of(names: Sequence[str], max_names: int = 3) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - max_names} more" if len(names) > max_names else ""
    return ", ".join(names[:max_names]) + more


def file_size(num_bytes: float) -> str:
    """A number of bytes: 40 kB, 14 MB, 1.2 GB."""
    unit, factor = next((pair for pair in (("GB", 1e9), ("MB", 1e6)) if num_bytes >= 0.9995 * pair[1]), ("kB", 1e3))
    return f"{num_bytes / factor:.{0 if num_bytes >= 9.95 * factor else 1}f} {unit}"


def duration(seconds: float) -> str:
    """A duration: 42 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def perplexity(loss: float) -> float:
    """exp of a loss in nats per token: so many equally likely tokens would be as hard to choose from."""
    return math.inf if loss >= math.log(sys.float_info.max) else math.exp(loss)


def finite(value: float) -> float | None:
    """The value, or None for NaN and infinities, which JSON does not have."""
    return value if math.isfinite(value) else None


def interval_words(interval: Sequence[float | None], form: str) -> str:
    """A value with the ends of its interval, as `0.85 (0.61 to 1.14)`; an end that is None cannot be told."""
    value, low, high = ("" if number is None else f"{number:{form}}" for number in interval)
    if low and high:
        return f"{value} ({low} to {high})"
    return f"{value} ({f'{low} or more' if low else f'up to {high}' if high else 'or any other'})"


def baselines_in_words(baselines: Mapping[str, Any]) -> str:
    """The baselines of a run's metadata.json, in a line."""
    of_all = f" of {baselines['num_held_out_windows']:,}" if baselines["num_held_out_windows"] else ""
    return (
        f"uniform {baselines['uniform']:.4f}, unigram {baselines['unigram_fitted']:.4f} "
        f"(tempered {baselines['unigram_tempered']:.4f}, oracle {baselines['unigram_oracle']:.4f}, at least "
        f"{baselines['oracle_flattery']:.2f} too low), "
        f"bigram {baselines['bigram']:.4f}, trigram {baselines['trigram']:.4f}, 4-gram {baselines['fourgram']:.4f} "
        f"nats per token, on {baselines['num_windows']:,}{of_all} {baselines['measured_on']}"
    )
