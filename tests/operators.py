"""Every operator that torch calls, forward and backward."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Operators(TorchDispatchMode):
    """Calls `seen` with each operator's name, as "aten::mm", the tensors among its arguments, and its result."""

    def __init__(self, seen: Callable[[str, list[torch.Tensor], Any], None]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.seen(func.name(), [argument for argument in args if isinstance(argument, torch.Tensor)], result)
        return result
