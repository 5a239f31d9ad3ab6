"""How a CPU multiplies: of several ways, equal but for rounding, the ones that layers and head use now.

Which is the quickest depends on the CPU, on torch and on the shapes, so it is measured (training/products.py).
GPUs multiply operands as they are.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

# Of bfloat16 operands: widened to float32, which is exact; or as they are, by whatever the CPU has for that.
MATMULS = ("float32", "bfloat16")
# float32_as_bf16: torch may round float32 operands to bfloat16 inside, with float32 sums. fused: all of it is compiled
# code. …_compiled: torch's products, and compiled code for what is between them.
HEADS = ("float32", "float32_as_bf16", "bfloat16", "fused", "float32_compiled", "bfloat16_compiled")
FLOAT32_HEADS = ("float32", "fused", "float32_compiled")  # which round no float32 operand
COMPILED_HEADS = ("fused", "float32_compiled", "bfloat16_compiled")


@dataclass(frozen=True)
class Products:
    """What makes the numbers of a run on a CPU bit-identical, beside its config and the number of threads."""

    matmul: str  # of layers and attention with bfloat16 operands; one of MATMULS
    head: str  # one of HEADS


# Tiles (AMX); a torch that cannot tell is taken to have none.
HAS_TILES = hasattr(torch.cpu, "get_capabilities") and torch.cpu.get_capabilities().get("amx_bf16", False)
# What runs that say nothing of their products were made with.
DEFAULT = Products(matmul="bfloat16" if HAS_TILES else "float32", head="float32_as_bf16")

_current = DEFAULT


def current() -> Products:
    return _current


@contextlib.contextmanager
def using(products: Products) -> Iterator[None]:
    """Have all layers and heads of this process multiply so, and afterwards as before."""
    global _current
    before, _current = _current, products
    try:
        yield
    finally:
        _current = before
