"""The held-out windows are divided once, by whole documents or blocks, and a long document does not decide a mean."""

import pytest
import torch

from marble_sweep.data.batches import eval_window_numbers
from marble_sweep.data.held_out import choose_all_windows, choose_windows, in_search, spread_over

SEQ_LEN = 4
LENGTHS = [40, 7, 200, 9, 13] * 8  # of documents, in tokens
FIRSTS = torch.tensor([sum(LENGTHS[:number]) for number in range(len(LENGTHS))])
NUM_TOKENS = sum(LENGTHS)


def test_all_windows_are_those_of_ever() -> None:
    numbers, documents = choose_windows("all", NUM_TOKENS, FIRSTS, SEQ_LEN, 50)
    assert torch.equal(numbers, eval_window_numbers(NUM_TOKENS, SEQ_LEN, 50))
    assert documents is not None
    assert len(documents) == 50


@pytest.mark.parametrize("firsts", [FIRSTS, FIRSTS[:3], None])
def test_no_window_is_in_both_parts_and_none_is_lost(firsts: torch.Tensor | None) -> None:
    (searched, _), (confirmed, _) = (
        choose_windows(part, NUM_TOKENS, firsts, SEQ_LEN, 10**6) for part in ("search", "confirm")
    )
    assert sorted([*searched.tolist(), *confirmed.tolist()]) == list(range(NUM_TOKENS // SEQ_LEN))
    assert abs(len(searched) - len(confirmed)) <= max(LENGTHS) // SEQ_LEN
    assert searched.tolist() == sorted(searched.tolist())


def test_documents_stay_whole_and_give_about_as_many_windows() -> None:
    (searched, first), (_, second) = (
        choose_windows(part, NUM_TOKENS, FIRSTS, SEQ_LEN, 60) for part in ("search", "confirm")
    )
    assert first is not None
    assert second is not None
    assert not {*first.tolist()} & {*second.tolist()}
    assert 50 <= len(searched) <= 60
    assert first.unique(return_counts=True)[1].max() <= 5


@pytest.mark.parametrize("part", ["all", "search"])
@pytest.mark.parametrize("firsts", [FIRSTS, None])
def test_all_windows_of_a_part_belong_to_the_evaluated_one_before_them(part: str, firsts: torch.Tensor | None) -> None:
    numbers, documents = choose_windows(part, NUM_TOKENS, firsts, SEQ_LEN, 60)
    every, stretches = choose_all_windows(part, NUM_TOKENS, firsts, SEQ_LEN, numbers, 10**6)
    assert torch.equal(every, choose_windows(part, NUM_TOKENS, firsts, SEQ_LEN, 10**6)[0])
    assert len(every) > len(numbers)
    assert [max(n for n in numbers.tolist() if n <= number) for number in every.tolist()] == numbers[stretches].tolist()
    assert torch.equal(stretches.unique(), torch.arange(len(numbers))), "every evaluated window has a stretch"
    if documents is not None and part == "search":  # where each document has an evaluated window
        of_every = choose_windows(part, NUM_TOKENS, firsts, SEQ_LEN, 10**6)[1]
        assert of_every is not None
        assert torch.equal(of_every, documents[stretches])


def test_where_all_windows_are_too_many_the_evaluated_ones_are_among_those_taken() -> None:
    numbers, _ = choose_windows("search", NUM_TOKENS, FIRSTS, SEQ_LEN, 60)
    every, stretches = choose_all_windows("search", NUM_TOKENS, FIRSTS, SEQ_LEN, numbers, 100)
    assert 60 < len(every) <= 160
    assert {*numbers.tolist()} <= {*every.tolist()}
    assert len(stretches) == len(every)


def test_blocks_are_divided_where_documents_are_few() -> None:
    in_blocks = choose_windows("search", 3200, None, 1, 10**6)[0]
    borders = (in_blocks.diff() > 1).sum() + 1
    assert (len(in_blocks), int(borders)) == (1600, 16)


def test_windows_are_spread_evenly() -> None:
    units = torch.tensor([0] * 10 + [1] + [2] * 4)
    assert spread_over(units, 7).tolist() == [0, 3, 6, 10, 11, 12, 13]
    assert spread_over(units, 100).tolist() == list(range(15))
    assert spread_over(units, 2).tolist() == [0, 7]
    assert in_search(units).tolist() == [True] * 10 + [False] * 5


def test_of_every_unit_as_many_windows_are_taken_as_the_highest_cap_allows() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        num_units, largest, more = (int(torch.randint(1, high, (), generator=generator)) for high in (9, 30, 90))
        sizes = torch.randint(1, largest + 1, (num_units,), generator=generator)
        units = torch.arange(num_units).repeat_interleave(sizes)
        by_cap = [sizes.clamp(max=cap) for cap in range(1, largest + 1)]
        expected = [taken for taken in by_cap if taken.sum() <= num_units + more][-1]
        assert torch.equal(units[spread_over(units, num_units + more)].bincount(), expected)


def test_the_highest_cap_takes_few_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []
    clamp = torch.Tensor.clamp

    def counted(sizes: torch.Tensor, **cap: int) -> torch.Tensor:
        tries.append(cap)
        return clamp(sizes, **cap)

    monkeypatch.setattr(torch.Tensor, "clamp", counted)
    assert len(spread_over(torch.arange(30).repeat_interleave(torch.arange(1, 31) * 1000), 100_000)) <= 100_000
    assert 1 <= len(tries) <= 16, "2^15 > 30,000"


def test_too_few_windows_to_divide() -> None:
    with pytest.raises(ValueError, match=r"^trainer.eval_part = confirm: must be all: 5 held-out tokens are too few"):
        choose_windows("confirm", 5, None, 4, 10)
