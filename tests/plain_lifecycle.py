"""The lifecycle once more, in plain loops over numbers, as docs/lifecycle.md states it."""

import math
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
from planted_records import Planted


@dataclass
class PlainToken:
    """What a token's row did, by transition."""

    l1: dict[int, float] = field(default_factory=dict)
    linf: dict[int, float] = field(default_factory=dict)
    phase: dict[int, str] = field(default_factory=dict)  # how it moved in that transition alone

    def last(self, *phases: str) -> float:
        return max((step for step, phase in self.phase.items() if phase in phases), default=math.nan)

    def retrospective(self, step: int) -> str:
        for phase in ("early", "midlife", "late"):
            if step <= self.last(phase):
                return phase
        return "frozen"


def ulp(value: float) -> float:
    """Of a bfloat16, away from zero."""
    if value == 0:
        return 2.0**-133
    return 2.0 ** (max(math.floor(math.log2(abs(value))), -126) - 7)


def exact_values(bits: np.ndarray) -> np.ndarray:
    return bits.view(ml_dtypes.bfloat16 if bits.dtype == np.uint16 else np.float32).astype(np.float64)


def seen_values(bits: np.ndarray) -> np.ndarray:
    """Masters rounded to bfloat16 by ml_dtypes."""
    masters = bits.view(ml_dtypes.bfloat16 if bits.dtype == np.uint16 else np.float32)
    return masters.astype(ml_dtypes.bfloat16).astype(np.float64)


def plain_tokens(record: Planted) -> list[PlainToken]:
    weights = seen_values(record.bits)
    tokens = [PlainToken() for _ in record.token_ids]
    dim = weights.shape[2]
    for place in range(1, len(weights)):
        step = int(record.steps[place])
        for row, token in enumerate(tokens):
            cells = [abs(b - a) / ulp(a) for a, b in zip(weights[place - 1, row], weights[place, row], strict=True)]
            token.l1[step], token.linf[step] = math.fsum(cells), max(cells)
            l2 = math.sqrt(math.fsum(c * c for c in cells))
            if token.l1[step] == 0:
                token.phase[step] = "frozen"
            elif token.linf[step] <= 1:
                token.phase[step] = "late"
            else:
                token.phase[step] = "early" if l2 > math.sqrt(dim) else "midlife"
    return tokens
