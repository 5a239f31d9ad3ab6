"""Whatever config is accepted reads back as it was from the file that a run keeps."""

from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from helpers import tiny_config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from marble_sweep.checks import Checked, is_plain_text
from marble_sweep.config import (
    AUTO_WORKERS,
    EVAL_PARTS,
    MAX_WORKERS,
    NOT_OF_A_RUN,
    OBJECTIVES,
    SCHEMAS,
    SPACINGS,
    Config,
    dump,
    load,
)
from marble_sweep.groups import DEVICES, HEADS, MATMULS, PRECISIONS, TOKEN_DTYPES
from marble_sweep.run import run
from marble_sweep.search_config import BASELINES, KEPT, MINIMISED, QUESTIONS

# What YAML, OmegaConf or Hydra might take for something other than text.
HOSTILE = [
    *(
        "",
        " a ",
        "~",
        "null",
        "yes",
        "No",
        "on",
        "1e3",
        "1.",
        "0x10",
        "0o17",
        "1_000",
        "12:30:00",
        "2020-01-01",
        ".inf",
    ),
    *(
        ".nan",
        "inf",
        "${x}",
        "$${x}",
        "\\${x}",
        "\\\\${x}",
        "${",
        "}",
        "${oc.env:HOME}",
        "a${b${c}}",
        "\\",
        "\\\\",
        "$x",
    ),
    *(
        "@",
        "`",
        "- a",
        "a: b # c",
        "#",
        "&a",
        "*a",
        "!a",
        "!!int 3",
        "%a",
        "{a: 1}",
        "[1",
        "|",
        ">",
        "'",
        '"',
        "a'b\"c",
    ),
    *(
        "a\nb",
        "\n",
        "a\n\n b\n",
        "\ta",
        "? a",
        ", ",
        "---",
        "...",
        "=",
        "<<",
        "\ufeff",
        "\u2028x",
        "\xa0",
        "é😀",
        "a\\",
    ),
]
text = st.sampled_from(HOSTILE) | st.text().filter(lambda drawn: drawn != "???" and is_plain_text(drawn))
thresholds = st.sampled_from(BASELINES) | st.floats(1e-3, 1e3).map(str) | st.just("1e3")
CHOICES = {
    "data.dtype": st.sampled_from(TOKEN_DTYPES),
    "device.type": st.sampled_from(DEVICES),
    "device.matmul": st.sampled_from(MATMULS),
    "device.head": st.sampled_from(HEADS),
    "precision.name": st.sampled_from(PRECISIONS),
    "trainer.eval_spacing": st.sampled_from(SPACINGS),
    "trainer.eval_part": st.sampled_from(EVAL_PARTS),
    "certify.threshold": thresholds,
    "certify.thresholds": st.none() | st.lists(thresholds, max_size=3),
    "search.thresholds": st.none() | st.lists(st.sampled_from(BASELINES), min_size=1, unique=True),
    "objective": st.none() | st.sampled_from(OBJECTIVES),
    "search.question": st.sampled_from(QUESTIONS),
    "search.keep": st.sampled_from(KEPT),
    "search.minimise": st.sampled_from(MINIMISED),
    "search.reuse": st.lists(st.sampled_from(["/runs", "/runs/0"]), max_size=2),
    "search.serve": st.none(),  # an address fits only some storages
    "search.study": text.filter(bool),
    "sweep.workers": st.just(AUTO_WORKERS) | st.integers(1, MAX_WORKERS).map(str),
}


def numbers(kind: type, interval: Any) -> st.SearchStrategy[Any]:
    if kind is int:
        high = int(interval.high) - interval.open_high
        return st.integers(int(interval.low) + interval.open_low, high)
    low, high = (None if abs(end) == float("inf") else end for end in (interval.low, interval.high))
    excluded = {"exclude_min": interval.open_low and low is not None, "exclude_max": interval.open_high}
    return st.floats(low, high, allow_nan=False, allow_infinity=False, **excluded)


def values(name: str, hint: Any, interval: Any) -> st.SearchStrategy[Any]:
    """What a field may hold, from its declared type and bounds."""
    if name in CHOICES:
        return CHOICES[name]
    arguments = get_args(hint)
    if type(None) in arguments:
        return st.none() | values(name, arguments[0], interval)
    if hint is bool:
        return st.booleans()
    if hint in (int, float):
        return numbers(hint, interval)
    if hint is str:
        return text
    part = values(name, arguments[0], interval)
    return st.tuples(*[part] * len(arguments)) if hint.__origin__ is tuple else st.lists(part, max_size=3)


def groups(cls: type[Checked]) -> st.SearchStrategy[dict[str, Any]]:
    """Keyword arguments for one group."""
    hints = get_type_hints(cls)
    drawn = {
        each.name: values(f"{cls.GROUP}.{each.name}", hints[each.name], each.metadata.get("interval"))
        for each in fields(cls)
        if not (cls.GROUP in SCHEMAS and each.name == "name")
    }
    return st.fixed_dictionaries(drawn)


PATHS = ("path", "corpus_path", "tokenizer_path", "dead_mask_path", "mapping_path", "storage")


@st.composite
def configs(draw: st.DrawFn) -> Config:
    """Every field of every group drawn; where two must agree, one is made to."""
    hints = get_type_hints(Config)
    arguments: dict[str, Any] = {}
    for each in fields(Config):
        hint = hints[each.name]
        if not (isinstance(hint, type) and issubclass(hint, Checked)):
            arguments[each.name] = draw(values(each.name, hint, each.metadata.get("interval")))
            continue
        cls = draw(st.sampled_from(list(SCHEMAS[each.name].values()))) if each.name in SCHEMAS else hint
        drawn = draw(groups(cls))
        if each.name == "model" and drawn["num_heads"]:
            drawn["num_heads"] = drawn["hidden_dim"]
        if "branching" in drawn:
            drawn |= {"vocab_size": max(8, drawn["vocab_size"]), "dead_fraction": 0.5, "branching": 2}
        drawn |= {name: f"/{drawn[name]}" for name in PATHS if drawn.get(name) is not None}
        if drawn.get("nesterov"):
            drawn["momentum"] = 0.5
        if drawn.get("token_ids") is not None:
            drawn["token_ids"] = sorted({*drawn["token_ids"]}) or None
        arguments[each.name] = cls(**drawn)
    if arguments["certify"].stop:
        arguments["data"].val_fraction = 0.25
        arguments["trainer"].eval_windows = max(2, arguments["trainer"].eval_windows)
    arguments["schedule"].warmup_steps = min(arguments["schedule"].warmup_steps, arguments["trainer"].total_steps - 1)
    return Config(**arguments)


def of_the_run(config: Config) -> Config:
    """Without what is not kept: the keys that leave what a run computes as it is."""
    return replace(config, **{name: getattr(tiny(), name) for name in NOT_OF_A_RUN})


@cache
def tiny() -> Config:
    return tiny_config()


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(config=configs())
def test_whatever_is_accepted_reads_back_as_it_was(config: Config, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_text(dump(config), encoding="utf-8")
    again = load(path)
    assert again == of_the_run(config)
    assert dump(again) == dump(config), "a sweep knows its jobs by this text"


@pytest.mark.parametrize("value", HOSTILE, ids=repr)
def test_text_that_looks_like_something_else_stays_text(value: str, tmp_path: Path) -> None:
    config = replace(tiny(), notes=value, experiment_name=value, model=replace(tiny().model, name=value))
    path = tmp_path / "config.yaml"
    path.write_text(dump(config), encoding="utf-8")
    again = load(path)
    assert (again.notes, again.experiment_name, again.model.name) == (value, value, value)


@pytest.mark.parametrize("value", ["???", "\x00", "a\rb", "\x85", "\ud800", "\x1b[31m"], ids=repr)
def test_text_that_cannot_be_kept_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match=r"notes = .*: must be") as caught:
        replace(tiny(), notes=value)
    assert "\n" not in str(caught.value)


def test_a_run_with_strange_notes_is_resumed(tmp_path: Path) -> None:
    config = replace(tiny(), notes="${x} and\n???: ~", trainer=replace(tiny().trainer, total_steps=3))
    assert run(config, tmp_path / "run", show=False) == "finished"
    assert run(load(tmp_path / "run" / "config.yaml"), tmp_path / "run", resume=True, show=False) == "finished"


@pytest.mark.parametrize(
    ("stored", "line"),
    [
        ("- 1\n", "must be a run's config"),
        ("", "must be a run's config"),
        ("model: [\n", "must be YAML"),
        ("optimizer: 3\n", "optimizer.name = : must be one of adamw"),
        ("optimizer: {name: [1]}\n", "optimizer.name = : must be one of adamw"),
    ],
)
def test_a_file_that_is_no_config_is_named(stored: str, line: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(stored)
    with pytest.raises(ValueError, match="must be") as caught:
        load(tmp_path / "config.yaml")
    assert line in str(caught.value)
    assert "config.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(b"notes: \xff\n")
    with pytest.raises(ValueError, match=r"config\.yaml: must be YAML in UTF-8"):
        load(tmp_path / "config.yaml")
