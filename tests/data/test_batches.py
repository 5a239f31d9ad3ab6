import io
import json
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from marble_sweep.data.batches import Batches, eval_windows, windows


def numbered(num_windows: int, seq_len: int = 3) -> Tensor:
    """Windows that carry their own number."""
    return torch.arange(num_windows, dtype=torch.int32)[:, None].expand(-1, seq_len).contiguous()


def take(batches: Batches, num: int) -> list[tuple[int, list[int]]]:
    return [(batch := next(batches)[:, 0].tolist(), (batches.epoch, batch))[1] for _ in range(num)]


def stored(state: dict[str, Any]) -> dict[str, Any]:
    """The state after a trip through a safetensors file and JSON."""
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    numbers = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
    return load(save(tensors)) | json.load(io.StringIO(json.dumps(numbers)))


def test_windows_are_the_notebooks() -> None:
    tokens = torch.arange(11, dtype=torch.int32)
    assert windows(tokens, 4).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert windows(tokens[:3], 4).shape == (0, 4)


@pytest.mark.parametrize("max_windows", [1, 3, 7, 10, 1000])
def test_eval_windows_are_evenly_spaced_distinct_and_at_most_so_many(max_windows: int) -> None:
    chosen = (eval_windows(torch.arange(43), 4, max_windows)[:, 0] // 4).tolist()
    assert len(chosen) == min(max_windows, 10)
    gaps = [after - before for before, after in zip(chosen, chosen[1:], strict=False)]
    assert all(gap > 0 for gap in gaps)
    gaps.append(10 - chosen[-1])  # from the last to the end
    assert max(gaps) - min(gaps) <= 1


def test_eval_windows_of_too_short_a_split() -> None:
    with pytest.raises(ValueError, match=r"^trainer.seq_len = 8: must be <= 7, the tokens there are to evaluate on$"):
        eval_windows(torch.arange(7), 8, 5)


def test_every_window_once_an_epoch_in_a_new_order() -> None:
    batches = Batches(numbered(12), 4, seed=0)
    assert batches.steps_per_epoch == 3
    epochs = []
    for epoch in (1, 2, 3):
        taken = take(batches, 3)
        assert [number for number, _ in taken] == [epoch] * 3
        epochs.append([window for _, batch in taken for window in batch])
    assert all(sorted(order) == list(range(12)) for order in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != list(range(12))


def test_last_partial_batch_is_dropped() -> None:
    batches = Batches(numbered(11), 4, seed=0)
    assert batches.steps_per_epoch == 2
    taken = take(batches, 6)
    assert [number for number, _ in taken] == [1, 1, 2, 2, 3, 3]
    for epoch in (1, 2, 3):
        seen = [window for number, batch in taken for window in batch if number == epoch]
        assert len(set(seen)) == 8


def test_batches_are_int64() -> None:
    batch = next(Batches(numbered(5), 2, seed=0))
    assert batch.dtype == torch.int64
    assert batch.shape == (2, 3)


def test_seed_decides_and_the_global_generator_does_not() -> None:
    torch.manual_seed(1)
    first = take(Batches(numbered(12), 4, seed=0), 7)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    batches = Batches(numbered(12), 4, seed=0)
    assert take(batches, 7) == first
    assert torch.equal(torch.get_rng_state(), before)
    assert take(Batches(numbered(12), 4, seed=1), 7) != first


@pytest.mark.parametrize("num_taken", range(8))
def test_resumed_stream_equals_the_unbroken_one(num_taken: int) -> None:
    unbroken = Batches(numbered(11), 4, seed=5)
    expected = take(unbroken, 12)
    interrupted = Batches(numbered(11), 4, seed=5)
    take(interrupted, num_taken)
    state = stored(interrupted.state_dict())
    take(interrupted, 3)  # what comes later must not reach into the state
    resumed = Batches(numbered(11), 4, seed=99)
    resumed.load_state_dict(state)
    assert resumed.epoch == (expected[num_taken - 1][0] if num_taken else 1)
    assert take(resumed, 12 - num_taken) == expected[num_taken:]


def test_too_few_windows_for_a_batch() -> None:
    allowed = r"must be <= 3, the training windows of 5 tokens \(trainer.seq_len\)$"
    with pytest.raises(ValueError, match=r"^trainer.batch_size = 4: " + allowed):
        Batches(numbered(3, seq_len=5), 4, seed=0)
    assert Batches(numbered(3), 3, seed=0).steps_per_epoch == 1
