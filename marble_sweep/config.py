"""The typed schema of every config group, each with its own checks.

Nothing here imports torch: printing a config or refusing a wrong one must be instant.
Dataclasses check themselves when they are built (`resolve` builds them); every complaint is a
`ValueError` of one line: the field, the value and what is allowed.
"""

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

BASELINES = ("unigram", "oracle", "bigram")
OBJECTIVES = ("val_loss", "val_margin", "n_params")
MAX_LOOKS = 20  # more would look at the same step twice in any run of a thousand steps
PRECISIONS = ("bf16", "bf16_pure", "bf16_stochastic", "mixed", "fp32")
DEVICES = ("auto", "cpu", "cuda", "mps")
MODEL_NAME = "${.num_layers}L${.hidden_dim}D"
EXPERIMENT_NAME = "${model.name}"
MIN_HEAD_DIM = 32
NUM_BYTES = 256  # a byte-level vocabulary starts with one token a byte


def require(condition: bool, name: str, value: object, allowed: str) -> None:
    """Raise ValueError in the one form every complaint about a setting takes."""
    if not condition:
        raise ValueError(f"{name} = {value}: must be {allowed}")


def require_positive(name: str, value: float) -> None:
    require(0 < value < math.inf, name, value, "finite and > 0")


def require_in_unit_interval(name: str, value: float, *, closed: bool = False) -> None:
    require(0 <= value < 1 or (closed and value == 1), name, value, f"in [0, 1{']' if closed else ')'}")


# ----------------------------------------------------------------------------- model


@dataclass
class ModelConfig:
    """A decoder-only transformer. Its name follows its numbers: 4 layers of width 128 are 4L128D."""

    name: str = MODEL_NAME
    num_layers: int = 4  # 0 leaves embeddings and the final LayerNorm: a bigram-like model
    hidden_dim: int = 128  # D
    num_heads: int | None = None  # null: the largest divisor of D that leaves >= 32 dimensions a head
    mlp_ratio: float = 4.0  # MLP width / D

    def __post_init__(self) -> None:
        if self.name == MODEL_NAME:  # built without OmegaConf, which would have resolved it
            self.name = f"{self.num_layers}L{self.hidden_dim}D"
        require(self.num_layers >= 0, "model.num_layers", self.num_layers, ">= 0")
        require(self.hidden_dim >= 1, "model.hidden_dim", self.hidden_dim, ">= 1")
        require_positive("model.mlp_ratio", self.mlp_ratio)
        if self.num_heads is not None:
            require(
                self.num_heads >= 1 and self.hidden_dim % self.num_heads == 0,
                "model.num_heads",
                self.num_heads,
                f"null or a divisor of model.hidden_dim = {self.hidden_dim}",
            )

    @property
    def heads(self) -> int:
        """The number of attention heads, whether given or derived from the width."""
        if self.num_heads is not None:
            return self.num_heads
        most = max(1, self.hidden_dim // MIN_HEAD_DIM)
        return max(heads for heads in range(1, most + 1) if self.hidden_dim % heads == 0)

    @property
    def mlp_dim(self) -> int:
        return max(1, round(self.hidden_dim * self.mlp_ratio))


# ------------------------------------------------------------------------- optimizer


@dataclass
class OptimizerConfig:
    """What every optimizer has."""

    name: str = MISSING
    lr: float = 3e-4
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        require_positive("optimizer.lr", self.lr)
        require(0 <= self.weight_decay < math.inf, "optimizer.weight_decay", self.weight_decay, "finite and >= 0")


@dataclass
class AdamWConfig(OptimizerConfig):
    """AdamW: weight decay decoupled from the gradient."""

    name: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.betas) == 2, "optimizer.betas", list(self.betas), "two numbers")
        for beta in self.betas:
            require_in_unit_interval("optimizer.betas", beta)
        require_positive("optimizer.eps", self.eps)


@dataclass
class AdamConfig(AdamWConfig):
    """Adam: weight decay, where there is any, is added to the gradient."""

    name: str = "adam"
    weight_decay: float = 0.0


@dataclass
class SGDConfig(OptimizerConfig):
    """Stochastic gradient descent with momentum."""

    name: str = "sgd"
    lr: float = 0.1
    weight_decay: float = 0.0
    momentum: float = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_in_unit_interval("optimizer.momentum", self.momentum)
        require(not self.nesterov or self.momentum > 0, "optimizer.nesterov", self.nesterov, "false without momentum")


@dataclass
class MuonConfig(AdamWConfig):
    """Muon for the matrices inside the blocks (queries, keys and values as one); AdamW for all else.

    Muon's step is scaled to AdamW's root mean square, so one learning rate serves both.
    """

    name: str = "muon"
    momentum: float = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        require_in_unit_interval("optimizer.momentum", self.momentum)


# -------------------------------------------------------------------------- schedule


@dataclass
class ScheduleConfig:
    """The learning rate over a run, as a multiple of `optimizer.lr`. Steps are counted from 1."""

    name: str = MISSING
    warmup_steps: int = 0  # linear from lr / warmup_steps to lr

    def __post_init__(self) -> None:
        require(self.warmup_steps >= 0, "schedule.warmup_steps", self.warmup_steps, ">= 0")


@dataclass
class ConstantConfig(ScheduleConfig):
    name: str = "constant"


@dataclass
class CosineConfig(ScheduleConfig):
    """After the warm-up, half a cosine down to `final_fraction` of lr at the last step."""

    name: str = "cosine"
    final_fraction: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_in_unit_interval("schedule.final_fraction", self.final_fraction, closed=True)


@dataclass
class WSDConfig(CosineConfig):
    """Warmup-stable-decay: lr holds, then falls linearly over the last `decay_fraction` of the steps."""

    name: str = "wsd"
    decay_fraction: float = 0.2
    final_fraction: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_in_unit_interval("schedule.decay_fraction", self.decay_fraction, closed=True)


# --------------------------------------------------------------- device and precision


@dataclass
class DeviceConfig:
    type: str = "auto"  # auto takes cuda, then mps, then cpu
    num_threads: int | None = None  # CPU threads; null leaves torch's choice

    def __post_init__(self) -> None:
        require(self.type in DEVICES, "device.type", self.type, f"one of {', '.join(DEVICES)}")
        threads = self.num_threads
        require(threads is None or threads >= 1, "device.num_threads", threads, "null or >= 1")


@dataclass
class PrecisionConfig:
    name: str = "bf16"

    def __post_init__(self) -> None:
        require(self.name in PRECISIONS, "precision.name", self.name, f"one of {', '.join(PRECISIONS)}")


# ------------------------------------------------------------------------------ data


@dataclass
class DataConfig:
    """What every corpus has. `val_fraction` is the share held out; 0 trains on everything."""

    name: str = MISSING
    vocab_size: int = 10_000
    val_fraction: float = 0.1

    def __post_init__(self) -> None:
        require(self.vocab_size >= 3, "data.vocab_size", self.vocab_size, ">= 3 (top1 to top3)")
        require_in_unit_interval("data.val_fraction", self.val_fraction)


@dataclass
class TokenizedConfig(DataConfig):
    """Text for which a tokenizer is trained, with a share of the vocabulary that never occurs."""

    dead_fraction: float = 0.37

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.vocab_size >= NUM_BYTES, "data.vocab_size", self.vocab_size, f">= {NUM_BYTES} (one a byte)")
        require_in_unit_interval("data.dead_fraction", self.dead_fraction)


@dataclass
class PydocsConfig(TokenizedConfig):
    """Docstrings and help topics of this interpreter's standard library and of installed packages."""

    name: str = "pydocs"
    packages: list[str] = field(default_factory=lambda: ["numpy", "pandas"])


@dataclass
class TextConfig(TokenizedConfig):
    """The user's own UTF-8 text: a file, a glob, or a folder of .txt and .md files."""

    name: str = "text"
    path: str = MISSING


@dataclass
class NotebookConfig(DataConfig):
    """A corpus with its own tokenizer and dead mask, in the notebook's formats."""

    name: str = "notebook"
    corpus_path: str = MISSING
    tokenizer_path: str = MISSING  # tokenizers JSON
    dead_mask_path: str = MISSING  # safetensors: dead_mask (V,), dead_indices (num_dead,)


@dataclass
class TokensConfig(DataConfig):
    """Ids made elsewhere: `tokens` (num_tokens,), whole numbers, in a safetensors file."""

    name: str = "tokens"
    path: str = MISSING


@dataclass
class MarkovConfig(DataConfig):
    """A first-order Markov chain over the live tokens: each has `branching` successors, Zipf-weighted."""

    name: str = "markov"
    vocab_size: int = 512
    dead_fraction: float = 0.37
    num_tokens: int = 1_000_000
    branching: int = 8
    seed: int = 0  # of the chain and its text; the run's seed is another

    def __post_init__(self) -> None:
        super().__post_init__()
        require_in_unit_interval("data.dead_fraction", self.dead_fraction)
        require(self.num_tokens >= 2, "data.num_tokens", self.num_tokens, ">= 2")
        most = self.num_live
        require(2 <= self.branching <= most, "data.branching", self.branching, f"in [2, {most}], the live tokens")

    @property
    def num_live(self) -> int:
        return self.vocab_size - round(self.vocab_size * self.dead_fraction)


@dataclass
class IIDConfig(MarkovConfig):
    """The Markov chain's control: the same unigram distribution, every token drawn on its own."""

    name: str = "iid"


# --------------------------------------------------------------- trainer and verdict


@dataclass
class TrainerConfig:
    total_steps: int = 5_000
    batch_size: int = 128  # B, windows a step
    seq_len: int = 128  # T, tokens a window
    checkpoint_interval: int = 500  # steps between checkpoints of the embedding
    eval_interval: int = 250  # steps between held-out evaluations; 0: only the last step's
    eval_windows: int = 1_024  # at most this many held-out windows, evenly spaced over the split
    state_interval: float = 60.0  # seconds between saves of the state that `resume` needs

    def __post_init__(self) -> None:
        for name in ("total_steps", "batch_size", "checkpoint_interval", "eval_windows"):
            require(getattr(self, name) >= 1, f"trainer.{name}", getattr(self, name), ">= 1")
        require(self.seq_len >= 2, "trainer.seq_len", self.seq_len, ">= 2 (a context and a target)")
        require(self.eval_interval >= 0, "trainer.eval_interval", self.eval_interval, ">= 0")
        require_positive("trainer.state_interval", self.state_interval)


@dataclass
class VerdictConfig:
    """Thresholds of the success criteria."""

    target_loss: float = 5.0  # nats per token; the notebook's first criterion
    min_standard_errors: float = 3.0  # a margin counts once it is this many standard errors
    min_off_unigram: float = 0.1  # share of top predictions outside the unigram's top three
    direction_lag: int = 200  # steps over which h_mean must turn
    min_direction_change: float = 0.01  # 1 - cosine over that lag, beyond the change of one step
    min_dead_moving: float = 0.5  # share of dead tokens moving in the first tenth of the run
    max_dead_slowdown: float = 0.5  # dead tokens going farther than a cell: last tenth of the run / first tenth

    def __post_init__(self) -> None:
        require(math.isfinite(self.target_loss), "verdict.target_loss", self.target_loss, "finite")
        require_positive("verdict.min_standard_errors", self.min_standard_errors)
        require(self.direction_lag >= 2, "verdict.direction_lag", self.direction_lag, ">= 2")
        for name in ("min_off_unigram", "min_dead_moving", "max_dead_slowdown"):
            require_in_unit_interval(f"verdict.{name}", getattr(self, name), closed=True)
        change = self.min_direction_change
        require(0 <= change <= 2, "verdict.min_direction_change", change, "in [0, 2]")


@dataclass
class CertifyConfig:
    """When held-out loss counts as better than a threshold, and whether a run ends once that is settled."""

    threshold: str = "unigram"  # unigram (fitted), oracle, bigram, or a loss in nats per token
    looks: int = 0  # evaluate at so many geometrically spaced steps; 0: at every trainer.eval_interval
    stop: bool = False  # end the run at the first look that certifies it or leaves it no hope

    def __post_init__(self) -> None:
        allowed = f"{', '.join(BASELINES)}, or a loss > 0 in nats per token"
        require(self.threshold in BASELINES or self.loss is not None, "certify.threshold", self.threshold, allowed)
        require(0 <= self.looks <= MAX_LOOKS, "certify.looks", self.looks, f"in [0, {MAX_LOOKS}]")
        require(not self.stop or self.looks > 0, "certify.looks", self.looks, "> 0 with certify.stop=true")

    @property
    def loss(self) -> float | None:
        """The threshold, where it is a number."""
        try:
            value = float(self.threshold)
        except ValueError:
            return None
        return value if 0 < value < math.inf else None


# ------------------------------------------------------------------------- the whole


@dataclass
class SearchConfig:
    """What concerns a search for the smallest model as a whole (hydra/sweeper=smallest)."""

    n_trials: int = 300  # in all, over every worker and every resumption
    max_tokens: int | None = None  # tokens to train on, over all trials; null: no limit
    max_minutes: float | None = None  # of training and waiting, over every resumption; null: no limit
    confirm_seeds: int = 3  # fresh seeds on which the answer must certify again
    min_steps_per_minute: float | None = None  # what trains more slowly here is ruled out
    storage: str | None = None  # a journal file or a database URL; null: a journal file in the sweep directory
    study: str = "smallest"  # its name in the storage: workers that name the same one share the work
    worker_timeout: float = 60.0  # seconds without a sign of life after which a worker's trial is taken up again

    def __post_init__(self) -> None:
        require(self.n_trials >= 1, "search.n_trials", self.n_trials, ">= 1")
        require(self.confirm_seeds >= 0, "search.confirm_seeds", self.confirm_seeds, ">= 0")
        for name in ("max_tokens", "max_minutes", "min_steps_per_minute"):
            value = getattr(self, name)
            require(value is None or 0 < value < math.inf, f"search.{name}", value, "null or > 0")
        require_positive("search.worker_timeout", self.worker_timeout)
        require(self.study != "", "search.study", repr(self.study), "a name")


@dataclass
class SweepConfig:
    """What concerns a sweep as a whole."""

    max_failures: int | None = None  # start no further job once so many have failed; null: never stop

    def __post_init__(self) -> None:
        most = self.max_failures
        require(most is None or most >= 1, "sweep.max_failures", most, "null or >= 1")


@dataclass
class Config:
    """One run. Its identity is all of this, resolved, with the data's hash and the code's."""

    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=AdamWConfig)
    schedule: ScheduleConfig = field(default_factory=ConstantConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    data: DataConfig = field(default_factory=PydocsConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    verdict: VerdictConfig = field(default_factory=VerdictConfig)
    certify: CertifyConfig = field(default_factory=CertifyConfig)
    seed: int = 42
    experiment_name: str = EXPERIMENT_NAME
    notes: str = ""  # kept in metadata.json
    resume: str | None = None  # a run directory to continue; its own config is used
    objective: str | None = None  # what a job of a sweep returns to its sweeper; null: nothing
    sweep: SweepConfig = field(default_factory=SweepConfig)
    search: SearchConfig = field(default_factory=SearchConfig)

    def __post_init__(self) -> None:
        if self.experiment_name == EXPERIMENT_NAME:
            self.experiment_name = self.model.name
        allowed = f"null or one of {', '.join(OBJECTIVES)}"
        require(self.objective is None or self.objective in OBJECTIVES, "objective", self.objective, allowed)
        require(0 <= self.seed < 2**63, "seed", self.seed, "in [0, 2^63)")
        warmup, total = self.schedule.warmup_steps, self.trainer.total_steps
        require(warmup < total, "schedule.warmup_steps", warmup, f"< trainer.total_steps = {total}")
        held_out = self.data.val_fraction > 0
        require(held_out or not self.certify.stop, "data.val_fraction", 0, "> 0 with certify.stop=true")

    @property
    def num_parameters(self) -> int:
        """The number of weights, known before there is a model (the tied embedding counts once)."""
        width, mlp = self.model.hidden_dim, self.model.mlp_dim
        norm = 2 * width
        attention = (width + 1) * 3 * width + (width + 1) * width
        feed_forward = (width + 1) * mlp + (mlp + 1) * width
        block = 2 * norm + attention + feed_forward
        embeddings = (self.data.vocab_size + self.trainer.seq_len) * width
        return embeddings + self.model.num_layers * block + norm


# Groups whose options differ in shape: the name in the file picks the schema.
SCHEMAS: dict[str, dict[str, type[Any]]] = {
    "optimizer": {"adamw": AdamWConfig, "adam": AdamConfig, "sgd": SGDConfig, "muon": MuonConfig},
    "schedule": {"constant": ConstantConfig, "cosine": CosineConfig, "wsd": WSDConfig},
    "data": {
        "pydocs": PydocsConfig,
        "text": TextConfig,
        "notebook": NotebookConfig,
        "tokens": TokensConfig,
        "markov": MarkovConfig,
        "iid": IIDConfig,
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


def resolve(config: DictConfig) -> Config:
    """Build the checked dataclasses from what Hydra composed.

    Raises ValueError for a value that is missing, out of range, or at odds with another.
    """
    known = {each.name for each in fields(Config)}
    for key in map(str, config):
        require(key in known, key, config[key], f"left out: there are only {', '.join(sorted(known))}")
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ValueError(f"{missing[0]} = ???: must be given, as in {missing[0]}=VALUE")
    resolved = OmegaConf.to_object(config)
    assert isinstance(resolved, Config)
    return resolved


NOT_OF_A_RUN = ("resume", "objective", "sweep", "search")  # keys that leave what a run computes as it is


def dump(config: Config) -> str:
    """A run's `config.yaml`: all that makes it the run it is. `load` reads it back."""
    node = OmegaConf.structured(config)
    return OmegaConf.to_yaml(OmegaConf.masked_copy(node, [key for key in node if key not in NOT_OF_A_RUN]))


def load(path: Path) -> Config:
    """Read a run's `config.yaml` back into the checked dataclasses."""
    stored = OmegaConf.load(path)
    typed = OmegaConf.structured(Config)
    assert isinstance(stored, DictConfig)
    for group, options in SCHEMAS.items():
        name = OmegaConf.select(stored, f"{group}.name")
        require(name in options, f"{group}.name", name, f"one of {', '.join(options)} (in {path})")
        typed[group] = options[name]
    typed.merge_with(stored)
    return resolve(typed)
