"""Every complaint of config.py, and every file of conf/."""

import math
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from helpers import MANDATORY
from hydra import compose
from hydra.errors import ConfigCompositionException, MissingConfigException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from marble_sweep.config import SCHEMAS, Config, TrainerConfig, VerdictConfig, register_schemas, resolve
from marble_sweep.groups import (
    PRECISIONS,
    AdamConfig,
    AdamWConfig,
    ConstantConfig,
    CosineConfig,
    DataConfig,
    DeviceConfig,
    IIDConfig,
    MarkovConfig,
    ModelConfig,
    MuonConfig,
    NotebookConfig,
    PrecisionConfig,
    PydocsConfig,
    SGDConfig,
    TextConfig,
    WSDConfig,
)
from marble_sweep.hydra_app.compose import CONF
from marble_sweep.hydra_app.hydra_versions import composing_from
from marble_sweep.record_config import DeadRecorderConfig, FullRecorderConfig, TracersRecorderConfig
from marble_sweep.runs.damage import flat
from marble_sweep.training.schedule import lr_scale

OPTIONS = sorted(
    (path.parent.name, path.stem) for path in CONF.glob("*/*.yaml") if path.parent.name not in ("hydra", "experiment")
)
EXPERIMENTS = sorted(path.stem for path in CONF.glob("experiment/*.yaml"))


@pytest.fixture(scope="module", autouse=True)
def hydra_on_conf() -> Iterator[None]:
    register_schemas()
    with composing_from(CONF):
        yield


def composed(*overrides: str) -> Config:
    return resolve(compose("config", overrides=list(overrides)))


# --------------------------------------------------------------------------- complaints

RECORDERS = (DeadRecorderConfig, TracersRecorderConfig, FullRecorderConfig)
WRONG = [
    (ModelConfig, "num_layers", -1, "model.num_layers"),
    (ModelConfig, "hidden_dim", 0, "model.hidden_dim"),
    (ModelConfig, "mlp_ratio", 0.0, "model.mlp_ratio"),
    (ModelConfig, "mlp_ratio", -4.0, "model.mlp_ratio"),
    (ModelConfig, "mlp_ratio", math.nan, "model.mlp_ratio"),
    (ModelConfig, "mlp_ratio", math.inf, "model.mlp_ratio"),
    *[(ModelConfig, "embedding_std", value, "model.embedding_std") for value in (0.0, -0.02, math.nan)],
    (ModelConfig, "num_heads", 0, "model.num_heads"),
    (ModelConfig, "num_heads", 3, "model.num_heads"),
    (ModelConfig, "num_heads", -2, "model.num_heads"),
    *[
        (optimizer, name, value, f"optimizer.{name}")
        for optimizer in (AdamWConfig, AdamConfig, SGDConfig, MuonConfig)
        for name, values in {
            "lr": (0.0, -1e-3, math.nan, math.inf),
            "weight_decay": (-0.01, math.nan, math.inf),
            "grad_clip": (0.0, -1.0, math.inf),
        }.items()
        for value in values
    ],
    *[
        (optimizer, name, value, f"optimizer.{name}")
        for optimizer in (AdamWConfig, AdamConfig, MuonConfig)
        for name, values in {
            "eps": (0.0, -1e-8, math.nan, math.inf),
            "betas": ((1.0, 0.999), (0.9, 1.0), (-0.1, 0.9), (0.9, math.nan), (0.9,), (0.9, 0.99, 0.999)),
        }.items()
        for value in values
    ],
    *[(each, "momentum", value, "optimizer.momentum") for each in (SGDConfig, MuonConfig) for value in (1.0, -0.1)],
    *[(each, "warmup_steps", -1, "schedule.warmup_steps") for each in (ConstantConfig, CosineConfig, WSDConfig)],
    *[
        (each, "final_fraction", value, "schedule.final_fraction")
        for each in (CosineConfig, WSDConfig)
        for value in (-0.1, 1.1, math.nan)
    ],
    (WSDConfig, "decay_fraction", -0.1, "schedule.decay_fraction"),
    (WSDConfig, "decay_fraction", 1.1, "schedule.decay_fraction"),
    (DeviceConfig, "type", "tpu", "device.type"),
    (DeviceConfig, "num_threads", 0, "device.num_threads"),
    (PrecisionConfig, "name", "fp8", "precision.name"),
    *[
        (each, "val_fraction", value, "data.val_fraction")
        for each in (PydocsConfig, TextConfig, NotebookConfig, MarkovConfig, IIDConfig)
        for value in (-0.1, 1.0, math.nan)
    ],
    *[
        (each, "vocab_size", value, "data.vocab_size")
        for each, value in [
            (DataConfig, 1),
            (NotebookConfig, 0),
            (MarkovConfig, 2),  # the step's top 3 needs three
            (PydocsConfig, 255),
            (TextConfig, 255),
        ]
    ],
    *[
        (each, "dead_fraction", value, "data.dead_fraction")
        for each in (PydocsConfig, TextConfig, MarkovConfig, IIDConfig)
        for value in (-0.1, 1.0)
    ],
    (MarkovConfig, "num_tokens", 1, "data.num_tokens"),
    (MarkovConfig, "branching", 1, "data.branching"),
    (MarkovConfig, "branching", 324, "data.branching"),
    (IIDConfig, "branching", 324, "data.branching"),
    *[
        (TrainerConfig, name, 0, f"trainer.{name}")
        for name in ("total_steps", "batch_size", "checkpoint_interval", "eval_windows")
    ],
    (TrainerConfig, "seq_len", 1, "trainer.seq_len"),
    (TrainerConfig, "num_evals", 0, "trainer.num_evals"),
    (TrainerConfig, "eval_spacing", "cubic", "trainer.eval_spacing"),
    (TrainerConfig, "eval_part", "some", "trainer.eval_part"),
    *[(TrainerConfig, "state_interval", value, "trainer.state_interval") for value in (0.0, -1.0, math.inf)],
    *[(VerdictConfig, "min_standard_errors", value, "verdict.min_standard_errors") for value in (0.0, math.nan)],
    (VerdictConfig, "target_loss", math.nan, "verdict.target_loss"),  # verdict.json could not be written
    (VerdictConfig, "direction_lag", 1, "verdict.direction_lag"),
    *[
        (VerdictConfig, name, value, f"verdict.{name}")
        for name in ("min_non_unigram_top1", "min_dead_moving", "max_dead_slowdown")
        for value in (-0.1, 1.1, math.nan)
    ],
    *[(FullRecorderConfig, "every", value, "recorder.every") for value in (0, -1)],
    *[(each, "probe_windows", -1, "recorder.probe_windows") for each in RECORDERS],
    (TracersRecorderConfig, "num_tracers", 0, "recorder.num_tracers"),
    *[(TracersRecorderConfig, "token_ids", value, "recorder.token_ids") for value in ([], [3, 1, 3], 3)],
    (TracersRecorderConfig, "seed", -1, "recorder.seed"),
    *[(VerdictConfig, "min_direction_change", value, "verdict.min_direction_change") for value in (-0.1, 2.1)],
]


def assert_one_line(error: ValueError, name: str) -> None:
    """`field = value: must be ...`, and nothing more."""
    head, _, allowed = str(error).partition(": must be ")
    assert allowed
    assert "\n" not in str(error)
    assert head.split(" = ")[0] == name


@pytest.mark.parametrize(("group", "name", "value", "field"), WRONG, ids=lambda each: getattr(each, "__name__", None))
def test_what_is_wrong_is_named_with_its_value(group: type, name: str, value: object, field: str) -> None:
    with pytest.raises(ValueError, match="must be") as caught:
        group(**{name: value})
    assert_one_line(caught.value, field)
    if not isinstance(value, tuple):
        assert str(caught.value).startswith(f"{field} = {value}: must be ")


@pytest.mark.parametrize(
    "right",
    [
        lambda: ModelConfig(num_layers=0, hidden_dim=1, mlp_ratio=0.01),
        lambda: ModelConfig(hidden_dim=12, num_heads=12),
        lambda: AdamWConfig(weight_decay=0.0, betas=(0.0, 0.0)),
        lambda: SGDConfig(momentum=0.0),
        lambda: CosineConfig(final_fraction=0.0),
        lambda: CosineConfig(final_fraction=1.0),
        lambda: WSDConfig(decay_fraction=1.0),
        lambda: DeviceConfig(num_threads=1),
        lambda: PydocsConfig(vocab_size=256, dead_fraction=0.0, val_fraction=0.0),
        lambda: MarkovConfig(branching=323),  # 512 less 37 % dead
        lambda: TrainerConfig(1, 1, 2, 1, 1, "geometric", 1, 0.001),
        lambda: VerdictConfig(
            min_non_unigram_top1=0.0, min_dead_moving=1.0, max_dead_slowdown=1.0, min_direction_change=2.0
        ),
    ],
)
def test_bounds_themselves_are_allowed(right: Callable[[], object]) -> None:
    right()


def test_nesterov_needs_momentum() -> None:
    with pytest.raises(ValueError, match="must be") as caught:
        SGDConfig(momentum=0.0, nesterov=True)
    assert_one_line(caught.value, "optimizer.nesterov")


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("seed=-1", "seed"),
        (f"seed={2**64}", "seed"),  # torch takes 64 bits
        ("schedule.warmup_steps=5000", "schedule.warmup_steps"),
        ("trainer.total_steps=0", "trainer.total_steps"),
        ("model.num_heads=3", "model.num_heads"),
        ("optimizer.lr=0", "optimizer.lr"),
        ("model.mlp_ratio=inf", "model.mlp_ratio"),
        ("data=text", "data.path"),
        ("data=notebook", "data.corpus_path"),
    ],
)
def test_a_wrong_override_is_one_line(override: str, field: str) -> None:
    with pytest.raises(ValueError, match="must be") as caught:
        composed(override)
    assert_one_line(caught.value, field)


def test_betas_must_be_two() -> None:
    with pytest.raises((ValueError, ConfigCompositionException), match=r"optimizer\.betas"):  # OmegaConf 2.4 counts too
        composed("optimizer.betas=[0.9]")


def test_a_warm_up_must_end_before_the_run() -> None:
    assert composed("schedule.warmup_steps=9", "trainer.total_steps=10").schedule.warmup_steps == 9
    with pytest.raises(ValueError, match=r"schedule.warmup_steps = 10: must be < trainer.total_steps = 10"):
        composed("schedule.warmup_steps=10", "trainer.total_steps=10")


# ------------------------------------------------------------------------ derived values


@pytest.mark.parametrize(
    ("hidden_dim", "heads"),
    [(128, 4), (64, 2), (192, 6), (256, 8), (100, 2), (63, 1), (48, 1), (32, 1), (16, 1), (1, 1), (96, 3), (127, 1)],
)
def test_heads_follow_from_the_width(hidden_dim: int, heads: int) -> None:
    assert ModelConfig(hidden_dim=hidden_dim).heads == heads


def test_heads_are_the_most_that_leave_32_dimensions() -> None:
    for hidden_dim in range(1, 600):
        fitting = [count for count in range(1, hidden_dim + 1) if hidden_dim % count == 0 and hidden_dim / count >= 32]
        assert ModelConfig(hidden_dim=hidden_dim).heads == max(fitting, default=1)


def test_heads_that_are_given_stay() -> None:
    assert ModelConfig(hidden_dim=128, num_heads=16).heads == 16


@pytest.mark.parametrize(("ratio", "mlp_dim"), [(4.0, 512), (0.5, 64), (2.7, 346), (0.001, 1)])
def test_the_mlps_width(ratio: float, mlp_dim: int) -> None:
    assert ModelConfig(hidden_dim=128, mlp_ratio=ratio).mlp_dim == mlp_dim


def test_live_tokens_of_a_chain() -> None:
    assert MarkovConfig(vocab_size=10_000).num_live == 6_300
    assert MarkovConfig(vocab_size=10, dead_fraction=0.0).num_live == 10


@pytest.mark.parametrize("overrides", [["model=2L64D"], ["model.num_layers=2", "model.hidden_dim=64"]], ids=" ".join)
def test_the_models_name_follows_its_numbers(overrides: list[str]) -> None:
    assert composed(*overrides).model.name == "2L64D"
    assert composed(*overrides).experiment_name == "2L64D"


# -------------------------------------------------------------------------------- conf/


def test_defaults_are_the_notebooks() -> None:
    config = composed()
    assert (config.model.num_layers, config.model.hidden_dim, config.model.heads, config.model.mlp_dim) == (
        4,
        128,
        4,
        512,
    )
    assert isinstance(config.optimizer, AdamWConfig)
    betas = config.optimizer.betas  # a list, or from OmegaConf 2.4 on a tuple
    assert list(betas) == [0.9, 0.999]
    assert config.optimizer == AdamWConfig(lr=3e-4, weight_decay=0.01, betas=betas, eps=1e-8)
    trainer = config.trainer
    assert (trainer.total_steps, trainer.batch_size, trainer.seq_len, trainer.checkpoint_interval) == (
        5000,
        128,
        128,
        500,
    )
    assert (config.seed, config.data.vocab_size, config.precision.name) == (42, 10_000, "bf16")
    assert config.schedule == ConstantConfig()
    assert (config.device.type, config.data.name, config.resume) == ("auto", "pydocs", None)


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids="=".join)
def test_every_option_of_every_group_composes(group: str, option: str) -> None:
    config = composed(f"{group}={option}", *MANDATORY.get(option, []))
    chosen = getattr(config, group)
    if group in ("model", "optimizer", "schedule", "precision", "data", "recorder"):
        assert chosen.name == option, "a file is named after what it holds"
    if group in SCHEMAS:
        assert type(chosen) is SCHEMAS[group][option]


def settings_in(path: Path) -> tuple[list[str], dict[str, object]]:
    """The options that a file of conf/ chooses, as overrides, and its values by key, in the order of the file."""
    content: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False) or {}
    entries = [entry for entry in content.pop("defaults", []) if isinstance(entry, dict)]
    choices = [f"{key.removeprefix('override /')}={option}" for entry in entries for key, option in entry.items()]
    content.pop("hydra", None)
    return choices, dict(flat(content, ""))


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids="=".join)
def test_no_option_repeats_a_default_of_its_schema(group: str, option: str) -> None:
    """It would have to be changed in two places, and built plainly the config would differ."""
    _, values = settings_in(CONF / group / f"{option}.yaml")
    schema = SCHEMAS[group][option] if group in SCHEMAS else get_type_hints(Config)[group]
    defaults = {field.name: field.default for field in fields(schema)}
    assert not [key for key, value in values.items() if value == defaults[key]]


@pytest.mark.parametrize("name", ["config", *(f"experiment/{each}" for each in EXPERIMENTS)])
def test_neither_the_program_nor_an_experiment_repeats_a_default(name: str) -> None:
    choices, values = settings_in(CONF / f"{name}.yaml")
    default = OmegaConf.structured(composed(*choices if name != "config" else []))
    assert not [key for key, value in values.items() if value == OmegaConf.select(default, key)]


def test_a_config_built_plainly_is_the_composed_one() -> None:
    for group, options in SCHEMAS.items():
        for option, schema in options.items():
            overrides = MANDATORY.get(option, [])
            given = {key.partition(".")[2]: path for key, _, path in (word.partition("=") for word in overrides)}
            assert vars(getattr(composed(f"{group}={option}", *overrides), group)) == vars(schema(**given))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("others", [[], ["optimizer=sgd"], ["data=markov"], ["schedule=wsd"]], ids=str)
def test_every_experiment_composes_and_leaves_room(experiment: str, others: list[str]) -> None:
    config = composed(f"experiment={experiment}", *others)
    assert config.schedule.warmup_steps < config.trainer.total_steps
    for other in others:
        group, option = other.split("=")
        assert getattr(config, group).name == option


def test_experiments_are_what_they_are_named_after() -> None:
    marble, flannel = composed("experiment=marble_1"), composed("experiment=flannel")
    crucible, quick = composed("experiment=crucible"), composed("experiment=quick")
    assert (marble.precision.name, marble.data.val_fraction, marble.model.name) == ("bf16_pure", 0.0, "4L128D")
    assert (marble.optimizer.lr, marble.optimizer.weight_decay, marble.seed) == (3e-4, 0.01, 42)
    assert (flannel.model.name, flannel.optimizer.lr, flannel.optimizer.weight_decay) == ("2L64D", 3e-4, 0.1)
    assert (crucible.optimizer.lr, crucible.optimizer.weight_decay) == (1e-3, 0.0)
    assert quick.data.name == "pydocs"
    assert quick.data.val_fraction > 0


def test_duckling_has_the_platforms_1510912_parameters() -> None:
    """GPT-2's layout: embeddings, positions, two blocks and the final LayerNorm, biases everywhere, the head tied."""
    duckling = composed("experiment=duckling", "data=tokens", *MANDATORY["tokens"])
    width, mlp = 128, 512
    norm = 2 * width  # scale and shift
    attention = (width + 1) * 3 * width + (width + 1) * width  # queries, keys and values; projection
    block = norm + attention + norm + (width + 1) * mlp + (mlp + 1) * width
    assert 8_192 * width + 512 * width + 2 * block + norm == 1_510_912
    assert duckling.num_parameters == 1_510_912
    assert (duckling.model.name, duckling.model.heads, duckling.model.mlp_dim) == ("2L128D", 2, 512)
    assert (duckling.schedule.warmup_steps, duckling.optimizer.weight_decay) == (0, 0.01)
    assert lr_scale(duckling.schedule, 10_000, 10_000) == pytest.approx(1 / 10_000)
    assert composed("experiment=duckling", "optimizer.lr=1e-3").data.name == "pydocs"


def test_the_marble_experiment_takes_the_notebooks_own_files() -> None:
    config = composed("experiment=marble_1", "data=notebook", *MANDATORY["notebook"])
    assert (config.data.name, config.data.val_fraction) == ("notebook", 0.0)


def test_there_is_an_option_for_everything_the_schema_knows() -> None:
    for group, options in SCHEMAS.items():
        assert {option for its_group, option in OPTIONS if its_group == group} == set(options)
    assert {option for group, option in OPTIONS if group == "precision"} == set(PRECISIONS)
    assert {"1L16D", "2L64D", "4L128D", "6L192D", "8L256D"} <= {option for group, option in OPTIONS if group == "model"}


@pytest.mark.parametrize(
    "override",
    [
        "model.num_layer=3",
        "optimizer.learning_rate=1",
        "optimizer.momentum=0.9",  # of sgd, while adamw is chosen
        "trainer.steps=3",
        "data.path=x",
        "sead=1",
    ],
)
def test_an_unknown_key_fails(override: str) -> None:
    with pytest.raises((ConfigCompositionException, OmegaConfBaseException)):
        composed(override)


@pytest.mark.parametrize("override", ["model=9L9D", "precision=fp8", "experiment=nothing"])
def test_an_unknown_option_fails(override: str) -> None:
    with pytest.raises(MissingConfigException):
        composed(override)


@pytest.mark.parametrize(
    "override", ["model.num_layers=two", "trainer.total_steps=1.5", "optimizer.betas=high", "seed=x"]
)
def test_a_value_of_the_wrong_type_fails(override: str) -> None:
    with pytest.raises((ConfigCompositionException, OmegaConfBaseException)):
        composed(override)
