from collections.abc import Callable

import pytest

from marble_sweep.data import split as split_module
from marble_sweep.data.split import drop_twins, split_documents

Prose = Callable[..., str]


def normal(text: str) -> str:
    return " ".join(text.casefold().split())


def paragraphs(text: str) -> set[str]:
    return {normal(paragraph) for paragraph in text.split("\n\n")} - {""}


def documents(prose: Prose, num: int) -> dict[str, str]:
    return {f"doc{n:02}": prose(10, seed=n) for n in range(num)}


def test_many_documents_are_split_whole(prose: Prose) -> None:
    every = documents(prose, 40)
    split = split_documents(every, 0.2, "data.path = own.txt")
    held_out = {name for name, text in every.items() if text in split.val}
    assert {name for name, text in every.items() if text in split.train} == every.keys() - held_out
    total = sum(map(len, every.values()))
    assert 0.15 * total < sum(len(every[name]) for name in held_out) <= 0.2 * total
    # A document's name decides, not its place among the others.
    assert split_documents(dict(reversed(every.items())), 0.2, "data.path = own.txt").val.split() != []
    assert sorted(held_out) != sorted(every)[-len(held_out) :]


def test_few_documents_lose_their_tail_at_a_paragraph(prose: Prose) -> None:
    text = prose(100)
    split = split_documents({"a": text}, 0.1, "data.path = own.txt")
    assert split.train + split.val == text
    assert split.train.endswith(".\n\n")
    assert 0.09 < len(split.val) / len(text) <= 0.1


@pytest.mark.parametrize(("separator", "end"), [("\n", "\n"), (" ", " "), ("", "")])
def test_tail_is_cut_at_lines_or_words_or_anywhere(separator: str, end: str) -> None:
    text = separator.join(str(n) for n in range(1000, 3000))
    split = split_documents({"a": text}, 0.25, "data.path = own.txt")
    assert split.train + split.val == text
    assert split.train.endswith(end)
    assert 0.24 < len(split.val) / len(text) <= 0.25


def test_nothing_is_held_out_at_zero(prose: Prose) -> None:
    split = split_documents({"a": "one", "b": "two"}, 0, "data.path = own.txt")
    assert (split.train, split.val, split.num_duplicates_dropped) == ("one\n\ntwo", "", 0)


def test_held_out_text_has_no_twin_in_training(prose: Prose) -> None:
    shared = [prose(1, seed=1000 + n) for n in range(5)]
    # Every document repeats the same paragraphs, each with its own case and line breaks.
    every = {}
    for n in range(30):
        copies = [text.upper().replace(" ", "\n", n) if n % 2 else text for text in shared]
        every[f"doc{n}"] = "\n\n".join(
            [prose(5, seed=n), *copies, "SEE\nalso" if n % 2 else "See also", prose(5, seed=100 + n)]
        )
    split = split_documents(every, 0.2, "data.path = own.txt")
    assert split.val
    assert not paragraphs(split.train) & paragraphs(split.val)
    num_held_out = sum(prose(5, seed=n) in split.val for n in range(30))
    assert num_held_out > 1
    assert split.num_duplicates_dropped == 6 * num_held_out


def test_case_and_white_space_do_not_hide_a_short_twin() -> None:
    assert drop_twins("See also\n\nother words", "SEE\n  also\n\nfresh words", [0, 3, 14]) == (
        "fresh words",
        1,
        [0, 0, 2],
    )


def test_near_twins_are_dropped_and_others_kept(prose: Prose) -> None:
    train = prose(20)
    words = train.split("\n\n")[3].split()
    near = " ".join([*words[:13], "changed", *words[14:]])  # 8 of 23 runs of eight words hold the change
    far = " ".join(word if n % 6 else "changed" for n, word in enumerate(words))
    partly = " ".join([*words[:15], *reversed(words[15:])])  # 8 of 23 runs are those of training
    fresh = prose(3, seed=9)
    kept, num_dropped, _ = drop_twins(train, "\n\n".join([near, far, partly, fresh]), [])
    assert (kept, num_dropped) == (f"{far}\n\n{partly}\n\n{fresh}", 1)


def test_long_paragraphs_are_compared_line_by_line(prose: Prose) -> None:
    lines = prose(40).split("\n\n")
    fresh = prose(20, seed=9).split("\n\n")
    mixed = "\n".join(fresh[:10] + lines[5:15] + fresh[10:])
    assert len(mixed) > split_module.LONG_PARAGRAPH
    kept, num_dropped, _ = drop_twins("\n".join(lines), mixed, [])
    assert (kept, num_dropped) == ("\n".join(fresh), 10)


def test_nothing_left_to_hold_out() -> None:
    with pytest.raises(
        ValueError, match=r"^data.val_fraction = 0.1: must be 0: all \d+ held-out paragraphs have a twin in training$"
    ):
        split_documents({"a": "the same words again\n\n" * 100}, 0.1, "data.path = own.txt")


def test_text_too_short_to_split() -> None:
    with pytest.raises(ValueError, match=r"^data.path = own.txt: must be long enough for data.val_fraction = 0.1 to "):
        split_documents({"a": "x"}, 0.1, "data.path = own.txt")


def test_documents_are_known_in_the_held_out_part(prose: Prose) -> None:
    shared = prose(1, seed=1000)
    every = {f"doc{n}": f"Document {n}\n\n{shared}\n\n{prose(5, seed=n)}" for n in range(60)}
    split = split_documents(every, 0.3, "data.path = own.txt")
    assert split.num_duplicates_dropped > 1
    assert len(split.val_starts) > 10
    for start in split.val_starts:
        assert split.val[start:].startswith("Document ")
    assert split.val.count("Document ") == len(split.val_starts)


def test_documents_are_known_in_a_tail(prose: Prose) -> None:
    every = {name: prose(30, seed=seed) for seed, name in enumerate("abc")}
    split = split_documents(every, 0.5, "data.path = own.txt")
    assert split.val_starts[:2] == [0, 0]  # a ends before the tail, b is cut
    assert split.val[split.val_starts[2] :] == every["c"]
