"""Each field of each group refuses what it cannot hold, in one line that begins with the field's whole key."""

import math
import pickle
from dataclasses import fields
from functools import cache
from typing import Any, get_type_hints

import pytest
from hydra import compose
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from marble_sweep import config as schema
from marble_sweep.checks import Checked, CheckError
from marble_sweep.config import SCHEMAS, Config, UnknownKeyError
from marble_sweep.hydra_app.compose import CONF
from marble_sweep.hydra_app.errors import one_line
from marble_sweep.hydra_app.hydra_versions import composing_from
from marble_sweep.hydra_app.main import require_options

PATHS = {
    "text": ["data.path=c.txt"],
    "tokens": ["data.path=ids.safetensors"],
    "notebook": ["data.corpus_path=c.txt", "data.tokenizer_path=t.json", "data.dead_mask_path=m.safetensors"],
}
WRONG = {  # what is tried on a field of each type, as typed on the command line
    int: ["x", "1.5", "1e9", "1e30", "1" + 30 * "0", "-1" + 30 * "0", "true", "[1,2]", "{a:1}", "inf", "''"],
    float: ["x", "nan", "inf", "-inf", "[1,2]", "{a:1}", "''"],
    bool: ["x", "1.5", "[true]", "{a:1}"],
    str: ["[1,2]", "{a:1}", "???", "'\x07'", "'\ud800'", "${nowhere}"],
    list: ["{a:1}", "???", "'\x07'", "'\ud800'", "${nowhere}"],  # in one of text numbers become text
}


def kind_of(hint: Any) -> type:
    """The plain type that a field's own type is made of, or list."""
    if {list[str], list[int]} & {hint, *getattr(hint, "__args__", ())}:
        return list
    parts = [hint, *getattr(hint, "__args__", ())]
    parts += [inner for part in parts[1:] for inner in getattr(part, "__args__", ())]
    return next(kind for kind in (bool, int, float, str) if kind in parts)


def cases() -> list[tuple[tuple[str, ...], str, type, bool]]:
    """The options to choose first, the key, its type, and whether null is a value of it."""
    found = []

    def walk(cls: type[Checked], prefix: str, options: tuple[str, ...]) -> None:
        for name, hint in get_type_hints(cls).items():
            if name not in {each.name for each in fields(cls)}:
                continue
            if isinstance(hint, type) and issubclass(hint, Checked):
                for option, chosen in SCHEMAS.get(name, {"": hint}).items():
                    walk(chosen, f"{name}.", (f"{name}={option}", *PATHS.get(option, [])) if option else ())
            else:
                found.append((options, f"{prefix}{name}", kind_of(hint), type(None) in getattr(hint, "__args__", ())))

    walk(Config, "", ())
    return found


@cache
def composed(options: tuple[str, ...]) -> DictConfig:
    with composing_from(CONF):
        return compose("config", list(options))


def refusal(options: tuple[str, ...], override: str) -> str | None:
    """The line that the command line prints for an override; None where it is accepted."""
    try:
        require_options([override])
        schema.resolve(composed((*options, override)))
    except (ValueError, HydraException, OmegaConfBaseException) as error:
        return one_line(error)
    return None


GROUPS = [
    *(chosen for options in SCHEMAS.values() for chosen in options.values()),
    *(hint for name, hint in get_type_hints(Config).items() if isinstance(hint, type) and name not in SCHEMAS),
]


@pytest.mark.parametrize("cls", [each for each in GROUPS if issubclass(each, Checked)], ids=lambda cls: cls.__name__)
def test_every_number_has_bounds_and_names_itself_beyond_them(cls: type[Checked]) -> None:
    hints = get_type_hints(cls)
    for each in fields(cls):
        kind = kind_of(hints[each.name])
        for wrong in {int: [10**30, -(10**30), 1.5, "3", True], float: [math.inf, math.nan, "1", True]}.get(kind, []):
            assert "interval" in each.metadata, f"{cls.__name__}.{each.name}"
            value: Any = (wrong, 0.9) if each.name == "betas" else wrong
            with pytest.raises(ValueError, match="must be") as caught:
                cls(**{each.name: value})
            assert str(caught.value).startswith(f"{cls.GROUP}.{each.name} = {wrong}: must be "), str(caught.value)
            assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "key", "kind", "optional"), cases(), ids=lambda value: value if isinstance(value, str) else None
)
def test_what_a_field_cannot_hold_is_one_line_that_begins_with_its_key(
    options: tuple[str, ...], key: str, kind: type, optional: bool
) -> None:
    for value in [*WRONG[kind], *(() if optional else ("null",))]:
        line = refusal(options, f"{key}={value}")
        assert line is not None, f"{key}={value} is accepted"
        assert line.startswith(key), line
        assert "\n" not in line


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("model=[1,2]", "model = [1,2]: must be one of 0L64D"),
        ("model=1,2", "model = 1,2: must be one of 0L64D"),
        ("device=3", "device = 3: must be one of auto"),
        ("certify=3", "certify = 3: must be set by its keys, as in certify.KEY=VALUE"),
        ("search=[1]", "search = [1]: must be set by its keys"),
        ("seed=null", "seed = null: must be a whole number in [0, "),
        ("certify.stop=maybe", "certify.stop = maybe: must be true or false"),
        ("notes=[a]", "notes = [a]: must be text"),
        ("trainer={total_steps:x}", "trainer.total_steps = x: must be a whole number in [1, "),
        ("device.num_threads=1.5", "device.num_threads = 1.5: must be null or a whole number in [1, 1,024]"),
        ("model=", "model = '': must be one of 0L64D"),
        ("optimizer=null", "optimizer = null: must be one of adam"),
        ("experiment=null", "experiment = null: must be one of crucible"),
        ("model={a:1}", "model.a: no such key; the nearest known one is model."),
        ("data={path:a}", "data.path: no such key here; it belongs to data=text and data=tokens"),
        ("++optimizer=sgd", "++optimizer=sgd: must be optimizer=sgd"),
        ("=x", "=x: must be KEY=VALUE"),
        ("+trainer.foo=1", "trainer.foo: no such key; the nearest known one is trainer.seq_len"),
        ("++model.num_layer=1", "model.num_layer: no such key; the nearest known one is model.num_layers"),
        ("+model.num_layers=3", "model.num_layers: it has a value already"),
        ("+optimizer=sgd", "optimizer: it has a value already"),
        ("~trainer.total_steps", "~trainer.total_steps: must be left out"),
        ("~data", "data = ???: must be given"),
        ("optimizer.name=abc", "optimizer.name = abc: must be adamw, as optimizer=adamw has it"),
        ("schedule.name=foo", "schedule.name = foo: must be constant, as schedule=constant has it"),
        ("data.name=text", "data.name = text: must be pydocs, as data=pydocs has it"),
        ("optimizer.betas=[0.9,x]", "optimizer.betas = [0.9,x]: must be 2 numbers in brackets"),
        ("optimizer.betas=0.9", "optimizer.betas = 0.9: must be 2 numbers in brackets"),
        ("device.num_threads=1000000", "device.num_threads = 1000000: must be null or a whole number in [1, 1,024]"),
        ("data=markov data.seed=-1", "data.seed = -1: must be a whole number in [0, "),
    ],
)
def test_lines(override: str, line: str) -> None:
    *options, last = override.split()
    told = refusal(tuple(options), last)
    assert told is not None
    assert told.startswith(line), told
    assert "\n" not in told


@pytest.mark.parametrize("error", [CheckError("seed = -1: must be 0", "seed"), UnknownKeyError("a: no such key", "a")])
def test_a_complaint_comes_whole_from_another_process(error: CheckError) -> None:
    copied = pickle.loads(pickle.dumps(error))
    assert (type(copied), str(copied), copied.field) == (type(error), str(error), error.field)
