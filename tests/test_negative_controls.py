"""Controls with nothing to learn, or nothing of context: none may pass criterion 1 without criterion 2's evidence."""

import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import compose_config, tiny_config
from negative_controls import (
    PREDICTORS,
    SEQ_LEN,
    VOCAB_SIZE,
    TablePredictor,
    count_passes,
    everywhere,
    is_below,
    verdict_of,
)

from marble_sweep.config import Config
from marble_sweep.data.baselines import Baselines, measure_baselines
from marble_sweep.data.batches import eval_windows
from marble_sweep.data.corpus import Corpus, load_corpus
from marble_sweep.metadata import describe_baselines, describe_corpus, warnings
from marble_sweep.model.transformer import Transformer
from marble_sweep.run import run
from marble_sweep.verdict import Verdict

FEW_WORDS = 400
TINY_TEXT = (
    *("data=text", "data.vocab_size=600", "data.dead_fraction=0.2", "model=1L16D", "optimizer.lr=1e-2"),
    *("trainer.seq_len=32", "trainer.batch_size=8", "trainer.total_steps=40", "trainer.num_evals=4"),
    "trainer.checkpoint_interval=40",
)


def prose(num_words: int, seed: int = 0) -> list[str]:
    """Words of a chain in which every word has four successors."""
    rng = random.Random(seed)
    letters = random.Random(7)  # the same vocabulary for every seed
    words = ["".join(letters.choices("etaoinshrdlu", k=letters.randint(2, 8))) for _ in range(FEW_WORDS)]
    successors = [letters.choices(range(FEW_WORDS), k=4) for _ in words]
    state, text = 0, []
    for _ in range(num_words):
        text.append(words[state])
        state = rng.choice(successors[state])
    return text


def paragraphs(words: list[str], length: int = 60) -> str:
    return "\n\n".join(" ".join(words[start : start + length]) for start in range(0, len(words), length))


def greek(num_words: int) -> str:
    rng = random.Random(1)
    return paragraphs(["".join(rng.choices("αβγδεζηθικλμνξοπρστυφχψω", k=rng.randint(2, 8))) for _ in range(num_words)])


def digits(num_words: int) -> str:
    rng = random.Random(1)
    return paragraphs([str(rng.randrange(10**6)) for _ in range(num_words)])


def source_code(num_words: int) -> str:
    rng = random.Random(1)
    lines = [f"    if (x[{rng.randrange(99)}] != NULL) {{ return f_{rng.randrange(999)}(*p++); }}" for _ in range(99)]
    return "\n".join(rng.choices(lines, k=num_words // 9))


def near_repetition(words: list[str]) -> str:
    """The words again, every eighth of them replaced."""
    rng = random.Random(1)
    return paragraphs([rng.choice(words) if number % 8 == 0 else word for number, word in enumerate(words)])


def text_config(folder: Path, text: str, *overrides: str) -> Config:
    (folder / "text.txt").write_text(text, encoding="utf-8")
    return compose_config(*TINY_TEXT, f"data.path='{folder / 'text.txt'}'", *overrides)


def measured(config: Config) -> tuple[Corpus, torch.Tensor, Baselines, list[str]]:
    """The corpus, its held-out windows, their baselines, and what the header warns of."""
    corpus = load_corpus(config.data)
    held_out = eval_windows(corpus.val_tokens, config.trainer.seq_len, 256)
    baselines = measure_baselines(corpus.train_tokens, held_out, len(corpus.dead_mask))
    warned = warnings(describe_corpus(corpus), describe_baselines(baselines, 1))
    return corpus, held_out, baselines, warned


def require_no_pass_without_evidence(verdict: Verdict) -> None:
    if verdict.criteria[0].passed:
        assert verdict.criteria[1].passed is True
        assert verdict.beats_unigram is True


# --------------------------------------------------------- predictors without use of the context, on made-up sources


def test_of_five_rounds_of_each_control_none_passes() -> None:
    """`python benchmarks/negative_controls.py` does the same a thousand times."""
    passes = count_passes(5)
    assert set(passes) == {(control, name) for control in ("iid", "shift") for name in PREDICTORS}
    for counts in passes.values():
        assert (counts["beats unigram"], counts["without context"]) == (0, 0)
    # What the fitted unigram or the oracle alone would have let pass: the controls do put the verdict to the test.
    assert passes["shift", "untrained"]["below fitted"] >= 3
    assert passes["iid", "held-out frequencies"]["below fitted"] >= 1
    assert passes["shift", "positions alone"]["below oracle"] >= 1


def test_use_of_the_context_passes() -> None:
    """The positive control: each token follows from the one before it, three times in four."""
    generator = torch.Generator().manual_seed(0)
    stream = [0]
    for guess in torch.randint(VOCAB_SIZE, (5000,), generator=generator).tolist():
        stream.append(guess if guess % 4 == 0 else (3 * stream[-1] + 1) % VOCAB_SIZE)
    train, windows = torch.tensor(stream[:4000]), eval_windows(torch.tensor(stream[4000:]), SEQ_LEN, 64)
    baselines = measure_baselines(train, windows, VOCAB_SIZE)
    verdict = verdict_of(PREDICTORS["memorised pairs"](train, windows, generator), windows, baselines)
    assert [criterion.passed for criterion in verdict.criteria[:2]] == [True, True]


def test_below_the_oracle_is_not_yet_context() -> None:
    """Tokens that depend on the position alone, and a model that knows it: no fixed distribution does so well."""
    generator = torch.Generator().manual_seed(0)
    by_position = torch.softmax(2 * torch.randn(SEQ_LEN, VOCAB_SIZE, generator=generator), dim=1)
    tokens = torch.multinomial(by_position, 300, replacement=True, generator=generator).T  # (num_windows, T)
    table = by_position.roll(-1, 0).log()[:, None].expand(-1, VOCAB_SIZE, -1)
    windows = tokens[200:].contiguous()
    verdict = verdict_of(TablePredictor(table), windows, measure_baselines(tokens[:200].flatten(), windows, VOCAB_SIZE))
    assert is_below(verdict, "oracle")
    assert is_below(verdict, "tempered")
    assert [criterion.passed for criterion in verdict.criteria[:2]] == [False, False]
    assert (verdict.beats_unigram, verdict.beats_oracle) == (False, False)
    assert "context or position is used" in verdict.as_text()
    assert "the context does not help (see 2): a fixed distribution, or the position," in verdict.as_text()


# ------------------------------------------------------------------------------- texts whose held-out part is another


@pytest.mark.parametrize("other", [greek, digits, source_code])
def test_another_kind_of_text_is_named_and_beaten_by_nothing_that_knows_no_context(
    other: Callable[[int], str], tmp_path: Path
) -> None:
    config = text_config(tmp_path, paragraphs(prose(9_000)) + "\n\n" + other(1_200))
    corpus, held_out, baselines, warned = measured(config)
    assert any("the held-out part is of another kind than training" in line for line in warned)
    vocab_size = len(corpus.dead_mask)
    assert baselines.unigram_tempered.mean().item() <= math.log(vocab_size) + 1e-12
    uniform = TablePredictor(everywhere(torch.zeros(vocab_size).log_softmax(0), 32))
    for model in (uniform, *(Transformer(vocab_size, 32, 1, 8, 2, 16, seed) for seed in range(3))):
        verdict = verdict_of(model, held_out, baselines)
        assert verdict.criteria[0].passed is not True
        require_no_pass_without_evidence(verdict)


def test_text_of_one_kind_is_not_warned_of(tmp_path: Path) -> None:
    *_, warned = measured(text_config(tmp_path, paragraphs(prose(10_000))))
    assert warned == []


def test_a_near_repetition_is_dropped_or_warned_of(tmp_path: Path) -> None:
    words = random.Random(3).choices(prose(3_000), k=6_000)  # no chain: no run of words is frequent
    corpus, *_, warned = measured(text_config(tmp_path, paragraphs(words) + "\n\n" + near_repetition(words[:650])))
    assert corpus.num_duplicates_dropped == 0
    assert any("of the held-out runs of" in line and "also occur in training" in line for line in warned)
    whole = paragraphs(words) + "\n\n" + paragraphs(words[:1000])
    with pytest.raises(ValueError, match="have a twin in training"):
        load_corpus(text_config(tmp_path, whole).data)


# ------------------------------------------------------------------------------------------------ models that trained


def trained(config: Config, directory: Path) -> Verdict:
    import marble_sweep as ms

    run(config, directory, show=False)
    verdict = ms.load_run(directory).verdict
    assert verdict is not None
    require_no_pass_without_evidence(verdict)
    return verdict


def test_a_model_trained_before_a_shift_passes_nothing(tmp_path: Path) -> None:
    config = text_config(tmp_path, paragraphs(prose(9_000)) + "\n\n" + greek(1_200))
    assert trained(config, tmp_path / "run").criteria[0].passed is not True
    log = (tmp_path / "run" / "run.log").read_text(encoding="utf-8")
    assert "Warning     the held-out part is of another kind" in log


def test_a_model_trained_on_independent_tokens_passes_nothing(tmp_path: Path) -> None:
    verdict = trained(tiny_config("data=iid"), tmp_path / "run")
    assert True not in [criterion.passed for criterion in verdict.criteria[:2]]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_more_models_trained_on_independent_tokens(seed: int, tmp_path: Path) -> None:
    """Longer, with a larger model: it memorises, and the margin is far below 0."""
    overrides = ("data=iid", f"data.seed={seed}", f"seed={seed}", "model=2L64D", "trainer.total_steps=300")
    assert trained(tiny_config(*overrides), tmp_path / "run").criteria[0].passed is not True


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_shuffled_words_may_pass_by_the_pieces_of_words(seed: int, tmp_path: Path) -> None:
    """Words in any order: a model still learns which pieces follow each other within one."""
    words = prose(30_000)
    random.Random(seed).shuffle(words)
    verdict = trained(text_config(tmp_path, paragraphs(words), "trainer.total_steps=300"), tmp_path / "run")
    assert "word" not in verdict.as_text(), "what it beat are frequencies of tokens"
