"""The typed schema of every config group, each with its own checks.

Nothing here imports torch: printing a config or refusing a wrong one must be instant.
Dataclasses check themselves when they are built (`resolve` builds them); every complaint is a
`CheckError` of one line: the field, the value and what is allowed.
"""

import copy
import functools
import re
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from marble_sweep.checks import FINITE, MISSING, POSITIVE, UNIT, Checked, CheckError, Interval, bounded, require
from marble_sweep.groups import (
    COUNT,
    MAX_COUNT,
    MODEL_NAME,
    SEED,
    AdamConfig,
    AdamWConfig,
    ConstantConfig,
    CosineConfig,
    DataConfig,
    DeviceConfig,
    IIDConfig,
    LinearConfig,
    MarkovConfig,
    ModelConfig,
    MuonConfig,
    NotebookConfig,
    OptimizerConfig,
    PrecisionConfig,
    PydocsConfig,
    ScheduleConfig,
    SGDConfig,
    TextConfig,
    TokensConfig,
    WSDConfig,
)
from marble_sweep.record_config import (
    DeadRecorderConfig,
    FullRecorderConfig,
    NoRecorderConfig,
    RecorderConfig,
    TracersRecorderConfig,
)
from marble_sweep.renamed_keys import with_current_keys
from marble_sweep.safe_yaml import parse_yaml
from marble_sweep.search_config import CertifyConfig, SearchConfig

EXPERIMENT_NAME = "${model.name}"
OBJECTIVES = ("val_loss", "val_margin", "n_params")
SPACINGS = ("linear", "geometric")
EVAL_PARTS = ("all", "search", "confirm")
AUTO_WORKERS = "auto"

# Bounds that no run comes near, as in groups.py.
MAX_SEQ_LEN = 2**20
MAX_EVALS = 100_000  # of a run
MAX_JOBS = 100_000  # of a grid, and sizes of a search
MAX_WORKERS = 1024


# --------------------------------------------------------------- trainer and verdict


@dataclass
class TrainerConfig(Checked):
    GROUP: ClassVar[str] = "trainer"

    total_steps: int = bounded(5_000, COUNT)
    batch_size: int = bounded(128, COUNT)  # B, windows a step
    seq_len: int = bounded(128, Interval(2, MAX_SEQ_LEN))  # T, tokens a window: a context and a target at least
    checkpoint_interval: int = bounded(500, COUNT)  # steps between checkpoints of the embedding
    # held-out evaluations of a run, the last after its last step; never more than it has steps
    num_evals: int = bounded(20, Interval(1, MAX_EVALS))
    eval_spacing: str = "linear"  # linear: equally far apart; geometric: at steps √2 times the one before
    eval_windows: int = bounded(1_024, COUNT)  # at most this many held-out windows
    state_interval: float = bounded(60.0, POSITIVE)  # seconds between saves of the state that `resume` needs
    # held-out windows: all, or the part that a search looks at, or the part that only its confirmations see
    eval_part: str = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        allowed = f"one of {', '.join(SPACINGS)}"
        require(self.eval_spacing in SPACINGS, "trainer.eval_spacing", self.eval_spacing, allowed)
        allowed = f"one of {', '.join(EVAL_PARTS)}"
        require(self.eval_part in EVAL_PARTS, "trainer.eval_part", self.eval_part, allowed)


@dataclass
class VerdictConfig(Checked):
    """Thresholds of the success criteria."""

    GROUP: ClassVar[str] = "verdict"

    target_loss: float = bounded(5.0, FINITE)  # nats per token; the notebook's first criterion
    min_standard_errors: float = bounded(3.0, POSITIVE)  # a margin counts once it is this many standard errors
    min_non_unigram_top1: float = bounded(0.1, UNIT)  # share of top predictions outside the unigram's top three
    direction_lag: int = bounded(200, Interval(2, MAX_COUNT))  # steps over which h_mean must turn
    # 1 - cosine over that lag, beyond the change of one step
    min_direction_change: float = bounded(0.01, Interval(0, 2))
    min_dead_moving: float = bounded(0.5, UNIT)  # share of dead tokens moving in the first tenth of the run
    # dead tokens going farther than a cell: last tenth of the run / first tenth
    max_dead_slowdown: float = bounded(0.5, UNIT)


# ------------------------------------------------------------------------- the whole


@dataclass
class SweepConfig(Checked):
    """What concerns a sweep as a whole."""

    GROUP: ClassVar[str] = "sweep"

    # start no further job once so many have failed; null: never stop
    max_failures: int | None = bounded(None, COUNT)
    # jobs, or trials of a search, that this machine trains at once; auto: one a core, as far as they fit in memory.
    # In a search with a launcher: the workers that it starts
    workers: str = AUTO_WORKERS

    def __post_init__(self) -> None:
        super().__post_init__()
        is_number = self.workers.isascii() and self.workers.isdecimal() and len(self.workers) < 10
        allowed = f"{AUTO_WORKERS} or a whole number in [1, {MAX_WORKERS:,}]"
        fits = self.workers == AUTO_WORKERS or (is_number and 1 <= int(self.workers) <= MAX_WORKERS)
        require(fits, "sweep.workers", self.workers, allowed)


@dataclass
class Config(Checked):
    """One run. Its identity is all of this, resolved, with the data's hash and the code's."""

    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=AdamWConfig)
    schedule: ScheduleConfig = field(default_factory=ConstantConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    data: DataConfig = field(default_factory=PydocsConfig)
    recorder: RecorderConfig = field(default_factory=NoRecorderConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    verdict: VerdictConfig = field(default_factory=VerdictConfig)
    certify: CertifyConfig = field(default_factory=CertifyConfig)
    seed: int = bounded(42, SEED)
    experiment_name: str = EXPERIMENT_NAME
    notes: str = ""  # kept in metadata.json
    resume: str | None = None  # a run directory to continue; its own config is used
    objective: str | None = None  # what a job of a sweep returns to its sweeper; null: nothing
    sweep: SweepConfig = field(default_factory=SweepConfig)
    search: SearchConfig = field(default_factory=SearchConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.experiment_name == EXPERIMENT_NAME:
            self.experiment_name = self.model.name
        for group, options in SCHEMAS.items():
            chosen = getattr(self, group)
            names = [name for name, option in options.items() if option is type(chosen)]
            its_own = f"{' or '.join(names)}, as {group}={' or '.join(names)} has it"
            require(chosen.name in names, f"{group}.name", chosen.name, its_own)
        allowed = f"null or one of {', '.join(OBJECTIVES)}"
        require(self.objective is None or self.objective in OBJECTIVES, "objective", self.objective, allowed)
        warmup, total = self.schedule.warmup_steps, self.trainer.total_steps
        require(warmup < total, "schedule.warmup_steps", warmup, f"< trainer.total_steps = {total}")
        held_out = self.data.val_fraction > 0
        require(held_out or not self.certify.stop, "data.val_fraction", 0, "> 0 with certify.stop=true")
        scored = self.trainer.eval_windows
        # A single window has no standard error, so no margin to certify.
        require(scored >= 2 or not self.certify.stop, "trainer.eval_windows", scored, ">= 2 with certify.stop=true")

    @property
    def autocorrelation_lag(self) -> int:
        """Steps between the h_means that h_autocorr_lag compares: a quarter of the run where it is a short one."""
        return max(1, min(self.verdict.direction_lag, self.trainer.total_steps // 4))

    @property
    def num_parameters(self) -> int:
        """The number of weights, known before there is a model (a tied embedding counts once)."""
        width, mlp = self.model.hidden_dim, self.model.mlp_dim
        norm = 2 * width
        attention = (width + 1) * 3 * width + (width + 1) * width
        feed_forward = (width + 1) * mlp + (mlp + 1) * width
        block = 2 * norm + attention + feed_forward
        return self.num_vocabulary_parameters + self.model.num_layers * block + norm

    @property
    def num_vocabulary_parameters(self) -> int:
        """The weights that belong to a token or a position: the embeddings, and a head that is not tied."""
        matrices = 1 if self.model.tied else 2
        return (matrices * self.data.vocab_size + self.trainer.seq_len) * self.model.hidden_dim


# Groups whose options differ in shape: the name in the file picks the schema.
SCHEMAS: dict[str, dict[str, type[Any]]] = {
    "optimizer": {"adamw": AdamWConfig, "adam": AdamConfig, "sgd": SGDConfig, "muon": MuonConfig},
    "schedule": {"constant": ConstantConfig, "cosine": CosineConfig, "linear": LinearConfig, "wsd": WSDConfig},
    "data": {
        "pydocs": PydocsConfig,
        "text": TextConfig,
        "notebook": NotebookConfig,
        "tokens": TokensConfig,
        "markov": MarkovConfig,
        "iid": IIDConfig,
    },
    "recorder": {
        "none": NoRecorderConfig,
        "dead": DeadRecorderConfig,
        "tracers": TracersRecorderConfig,
        "full": FullRecorderConfig,
    },
}


def register_schemas() -> None:
    """Put the schemas where the files in conf/ find them: `schema` and `schema/<group>/<option>`."""
    store = ConfigStore.instance()
    schema = OmegaConf.structured(Config)
    for group in SCHEMAS:
        schema[group] = MISSING  # a group's file says which of its schemas it is
    # What was derived for the defaults must follow the numbers that a command line gives.
    schema.model.name, schema.experiment_name = MODEL_NAME, EXPERIMENT_NAME
    store.store(name="schema", node=schema)
    for group, options in SCHEMAS.items():
        for name, option in options.items():
            store.store(group=f"schema/{group}", name=name, node=option)


class UnknownKeyError(CheckError):
    """The schema does not have the key `field`; whoever prints it may say which one is near."""


def require_same_keys(node: DictConfig, prefix: str = "") -> None:
    """Raise CheckError for a key that `+` has put in, which OmegaConf would ignore, and for one without a value."""
    schema: Any = OmegaConf.get_type(node)
    known = [field.name for field in fields(schema)]
    for key in map(str, node):
        if key not in known:
            raise UnknownKeyError(f"{prefix}{key}: no such key", f"{prefix}{key}")
    for key in known:
        missing = key not in node or OmegaConf.is_missing(node, key)
        require(not missing, f"{prefix}{key}", MISSING, f"given, as in {prefix}{key}=VALUE")
        child = node[key]
        if isinstance(child, DictConfig):
            require_same_keys(child, f"{prefix}{key}.")


def resolve(config: DictConfig) -> Config:
    """Build the checked dataclasses from what Hydra composed.

    Raises CheckError for a value that is missing, out of range, or at odds with another.
    """
    known = {field.name for field in fields(Config)}
    for key in map(str, config):
        if key not in known:
            require(False, key, config[key], f"left out: there are only {', '.join(sorted(known))}")
    require_same_keys(config)
    resolved = OmegaConf.to_object(config)
    assert isinstance(resolved, Config)
    return resolved


NOT_OF_A_RUN = ("resume", "objective", "sweep", "search")  # keys that leave what a run computes as it is
# Settings that came later. At its default one of them is not written, nor is a recorder that records nothing: a sweep
# knows its jobs by this text.
ADDED = (
    *("model.tied", "model.embedding_std", "optimizer.grad_clip"),
    *("data.dtype", "data.tokenizer_path", "data.mapping_path"),
)


def dump(config: Config, *, whole: bool = False) -> str:
    """A run's `config.yaml`: all that makes it the run it is. `load` reads it back.

    `whole` asks for the settings of ADDED too where they hold their defaults.
    """
    return _dump(_ByContent(repr(config), config), whole)


@dataclass(frozen=True)
class _ByContent:
    """A config that equals any other with the same fields, as they are now."""

    content: str
    config: Config = field(compare=False)


@functools.lru_cache(maxsize=4)  # a trial needs the text of its config several times, and it takes 10 ms
def _dump(key: _ByContent, whole: bool) -> str:
    node = OmegaConf.structured(escaped(key.config))
    run = OmegaConf.masked_copy(node, [name for name in node if name not in NOT_OF_A_RUN])
    settings: Any = OmegaConf.to_container(run, resolve=True)
    for group, name in () if whole else (setting.split(".") for setting in ADDED):
        chosen = getattr(key.config, group)
        defaults = {field.name: field.default for field in fields(chosen)}
        if name in defaults and getattr(chosen, name) == defaults[name]:
            del settings[group][name]
    if not whole and key.config.recorder == NoRecorderConfig():
        del settings["recorder"]
    return OmegaConf.to_yaml(OmegaConf.create(escaped(settings)), resolve=True)


def load(path: Path) -> Config:
    """Read a run's `config.yaml` back into the checked dataclasses. What looks like an interpolation is text there.

    Raises CheckError that begins with the path.
    """
    try:
        return _parse(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise CheckError(f"{path}: must be YAML in UTF-8 ({error})") from None
    except CheckError as error:
        raise CheckError(f"{path}: {error}", error.field) from None
    except OmegaConfBaseException as error:  # a value of another type than its field
        raise CheckError(f"{path}: {error.full_key}: {str(error).splitlines()[0]}", error.full_key) from None


def _parse(text: str) -> Config:
    """The config in the text of a run's `config.yaml`."""
    stored = parse_yaml(text)
    if not isinstance(stored, dict):
        raise CheckError(f"must be a run's config, groups and their settings; it is of type {type(stored).__name__}")
    stored = in_current_keys(stored)
    typed = OmegaConf.structured(Config)
    for group, options in SCHEMAS.items():
        settings = stored.get(group)
        name = settings.get("name") if isinstance(settings, dict) else settings
        name = name if isinstance(name, str) else ""
        require(name in options, f"{group}.name", name, f"one of {', '.join(options)}")
        typed[group] = options[name]
    typed.merge_with(escaped(stored))
    return resolve(typed)


def in_current_keys(stored: dict[str, Any]) -> dict[str, Any]:
    """The groups of a config.yaml that any version wrote, under the keys of this one."""
    names = [name for name in ("trainer", "certify", "verdict") if isinstance(stored.get(name), dict)]
    settings = {f"{name}.{key}": value for name in names for key, value in stored[name].items()}
    current: dict[str, Any] = {name: {} for name in names}
    for path, value in with_current_keys(settings).items():
        name, _, key = path.partition(".")
        current.setdefault(name, {})[key] = value
    return {"recorder": {"name": "none"}} | stored | current  # earlier versions had no recorder


def escaped(value: Any) -> Any:
    """A copy in which every string stands for itself: OmegaConf would look up what ${…} names."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda match: f"{match[1]}{match[1]}\\${{", value)
    if is_dataclass(value) and not isinstance(value, type):
        copied = copy.copy(value)
        for field in fields(value):
            setattr(copied, field.name, escaped(getattr(value, field.name)))
        return copied
    if isinstance(value, dict):
        return {key: escaped(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(escaped, value))
    return value
