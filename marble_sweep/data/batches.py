"""Token streams as windows, and windows as shuffled batches that can be resumed."""

from typing import Any, overload

import torch
from torch import Tensor

from marble_sweep.checks import wrong_value
from marble_sweep.data.tokens import MappedWindows, Tokens, TokenStream

Windows = Tensor | MappedWindows


@overload
def windows(tokens: Tensor, seq_len: int) -> Tensor: ...
@overload
def windows(tokens: TokenStream, seq_len: int) -> MappedWindows: ...
def windows(tokens: Tokens, seq_len: int) -> Windows:
    """Cut (num_tokens,) into non-overlapping windows (num_windows, T); the last partial one is dropped."""
    if isinstance(tokens, TokenStream):
        return MappedWindows(tokens, seq_len)
    num_windows = len(tokens) // seq_len
    return tokens[: num_windows * seq_len].view(num_windows, seq_len)


def eval_window_numbers(num_tokens: int, seq_len: int, max_windows: int) -> Tensor:
    """Which windows of a split are evaluated, (num_windows,) int64: at most `max_windows`, evenly spaced over it.

    Raises ValueError if the split is shorter than one window.
    """
    all_windows = num_tokens // seq_len
    if all_windows == 0:
        raise wrong_value("trainer.seq_len", seq_len, f"<= {num_tokens}, the tokens there are to evaluate on")
    num_windows = min(max_windows, all_windows)
    # Integer arithmetic: the same windows on every machine.
    return torch.arange(num_windows) * all_windows // num_windows


def eval_windows(tokens: Tokens, seq_len: int, max_windows: int) -> Tensor:
    """The windows that are evaluated, (num_windows, T). Raises ValueError if the split is shorter than one window."""
    return windows(tokens, seq_len)[eval_window_numbers(len(tokens), seq_len, max_windows)]


class Batches:
    """An endless stream of batches: every window once an epoch, in a new random order every epoch.

    The order comes from its own CPU generator, so neither training nor evaluation changes it, and
    it is the same on every device. The last partial batch of an epoch is dropped.
    """

    def __init__(self, windows: Windows, batch_size: int, seed: int) -> None:
        """`windows` (num_windows, T) stay where they are. Raises ValueError if they do not fill one batch."""
        if len(windows) < batch_size:
            allowed = f"<= {len(windows)}, the training windows of {windows.shape[1]} tokens (trainer.seq_len)"
            raise wrong_value("trainer.batch_size", batch_size, allowed)
        self._windows = windows
        self._batch_size = batch_size
        self._generator = torch.Generator().manual_seed(seed)
        self.steps_per_epoch = len(windows) // batch_size
        self.epoch = 1  # of the batch last returned
        self._position = 0  # batches returned in this epoch
        self._draw_order()

    def __iter__(self) -> "Batches":
        return self

    def _draw_order(self) -> None:
        self._epoch_state = self._generator.get_state()
        order = torch.randperm(len(self._windows), generator=self._generator)
        self._order = order if isinstance(self._windows, MappedWindows) else order.to(self._windows.device)

    def __next__(self) -> Tensor:
        """The next batch: (B, T) int64 on the device of the windows."""
        if self._position == self.steps_per_epoch:
            self.epoch += 1
            self._position = 0
            self._draw_order()
        start = self._position * self._batch_size
        self._position += 1
        return self._windows[self._order[start : start + self._batch_size]].long()

    def state_dict(self) -> dict[str, Any]:
        """`epoch` and `position` (int), and `generator`: its state when the epoch began (uint8 tensor)."""
        return {"epoch": self.epoch, "position": self._position, "generator": self._epoch_state.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue as the stream that gave this state would have."""
        self._generator.set_state(state["generator"])
        self._draw_order()
        self.epoch = int(state["epoch"])
        self._position = int(state["position"])
