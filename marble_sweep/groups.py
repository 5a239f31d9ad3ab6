"""The groups that say what a run is made of: model, optimizer, schedule, device, precision and data."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from marble_sweep.checks import BELOW_ONE, MISSING, NOT_NEGATIVE, POSITIVE, UNIT, Checked, Interval, bounded, require

PRECISIONS = ("bf16", "bf16_pure", "bf16_stochastic", "mixed", "fp32")
DEVICES = ("auto", "cpu", "cuda", "mps")
MATMULS = ("auto", "float32", "bfloat16")
HEADS = ("auto", "float32", "float32_as_bf16", "bfloat16", "fused", "float32_compiled", "bfloat16_compiled")
TOKEN_DTYPES = ("uint16", "uint32")
MODEL_NAME = "${.num_layers}L${.hidden_dim}D"
MIN_HEAD_DIM = 32
NUM_BYTES = 256  # a byte-level vocabulary starts with one token a byte

# Bounds that no run comes near, so that a slip of the keyboard is refused at once instead of filling the memory.
MAX_LAYERS = 10_000
MAX_WIDTH = 2**17
MAX_MLP_RATIO = 1000
MAX_VOCAB = 2**24  # the step's top tokens are written from float32, which counts so far
MAX_STATES = 2**16  # of a Markov chain: drawing their successors takes time that goes as their square
MAX_THREADS = 1024
MAX_COUNT = 10**9  # of steps, windows and tokens
COUNT = Interval(1, MAX_COUNT)
COUNT_OR_NONE = Interval(0, MAX_COUNT)
SEED = Interval(0, 2**63, open_high=True)  # torch's generators take no more


# ----------------------------------------------------------------------------- model


@dataclass
class ModelConfig(Checked):
    """A decoder-only transformer. Its name follows its numbers: 4 layers of width 128 are 4L128D."""

    GROUP: ClassVar[str] = "model"

    name: str = MODEL_NAME
    num_layers: int = bounded(4, Interval(0, MAX_LAYERS))  # 0 leaves embeddings and the final LayerNorm
    hidden_dim: int = bounded(128, Interval(1, MAX_WIDTH))  # D
    # null: the largest divisor of D that leaves >= 32 dimensions a head
    num_heads: int | None = bounded(None, Interval(1, MAX_WIDTH))
    mlp_ratio: float = bounded(4.0, Interval(0, MAX_MLP_RATIO, open_low=True))  # MLP width / D
    # true: the token embedding is also the head; false: the head has a weight (V, D) of its own
    tied: bool = True
    # standard deviation of the token embedding's initial weights, which are normal; null: 0.02
    embedding_std: float | None = bounded(None, POSITIVE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name == MODEL_NAME:  # built without OmegaConf, which would have resolved it
            self.name = f"{self.num_layers}L{self.hidden_dim}D"
        divides = self.num_heads is None or self.hidden_dim % self.num_heads == 0
        allowed = f"null or a divisor of model.hidden_dim = {self.hidden_dim}"
        require(divides, "model.num_heads", self.num_heads, allowed)

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
class OptimizerConfig(Checked):
    """What every optimizer has."""

    GROUP: ClassVar[str] = "optimizer"

    name: str = MISSING
    lr: float = bounded(3e-4, POSITIVE)
    weight_decay: float = bounded(0.01, NOT_NEGATIVE)
    # the largest L2 norm of all weights' gradient together, which is scaled down to it; null: it is left as it is
    grad_clip: float | None = bounded(None, POSITIVE)


@dataclass
class AdamWConfig(OptimizerConfig):
    """AdamW: weight decay decoupled from the gradient."""

    name: str = "adamw"
    betas: tuple[float, float] = bounded((0.9, 0.999), BELOW_ONE)
    eps: float = bounded(1e-8, POSITIVE)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.betas = (self.betas[0], self.betas[1])  # OmegaConf makes a list of it


@dataclass
class AdamConfig(AdamWConfig):
    """Adam: weight decay, where there is any, is added to the gradient."""

    name: str = "adam"
    weight_decay: float = bounded(0.0, NOT_NEGATIVE)


@dataclass
class SGDConfig(OptimizerConfig):
    """Stochastic gradient descent with momentum."""

    name: str = "sgd"
    lr: float = bounded(0.1, POSITIVE)
    weight_decay: float = bounded(0.0, NOT_NEGATIVE)
    momentum: float = bounded(0.9, BELOW_ONE)
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(not self.nesterov or self.momentum > 0, "optimizer.nesterov", self.nesterov, "false without momentum")


@dataclass
class MuonConfig(AdamWConfig):
    """Muon for the matrices inside the blocks (queries, keys and values as one); AdamW for all else.

    Muon's step is scaled to AdamW's root mean square, so one learning rate serves both.
    """

    name: str = "muon"
    momentum: float = bounded(0.95, BELOW_ONE)


# -------------------------------------------------------------------------- schedule


@dataclass
class ScheduleConfig(Checked):
    """The learning rate over a run, as a multiple of `optimizer.lr`. Steps are counted from 1."""

    GROUP: ClassVar[str] = "schedule"

    name: str = MISSING
    warmup_steps: int = bounded(0, COUNT_OR_NONE)  # linear from lr / warmup_steps to lr


@dataclass
class ConstantConfig(ScheduleConfig):
    name: str = "constant"


@dataclass
class CosineConfig(ScheduleConfig):
    """After the warm-up, half a cosine down to `final_fraction` of lr at the last step."""

    name: str = "cosine"
    warmup_steps: int = bounded(100, COUNT_OR_NONE)
    final_fraction: float = bounded(0.1, UNIT)


@dataclass
class LinearConfig(CosineConfig):
    """After the warm-up, where one is set, a line down to `final_fraction` of lr at the last step.

    Unless told otherwise it goes down to practically nothing: with a rate of 0 nothing would move in the last step.
    """

    name: str = "linear"
    warmup_steps: int = bounded(0, COUNT_OR_NONE)
    final_fraction: float = bounded(1e-4, UNIT)


@dataclass
class WSDConfig(CosineConfig):
    """Warmup-stable-decay: lr holds, then falls linearly over the last `decay_fraction` of the steps."""

    name: str = "wsd"
    decay_fraction: float = bounded(0.2, UNIT)
    final_fraction: float = bounded(0.0, UNIT)


# --------------------------------------------------------------- device and precision


@dataclass
class DeviceConfig(Checked):
    GROUP: ClassVar[str] = "device"

    type: str = "auto"  # auto takes cuda, then mps, then cpu
    num_threads: int | None = bounded(None, Interval(1, MAX_THREADS))  # of the CPU; null leaves torch's choice
    # How a CPU multiplies; auto takes what it measures to be quickest.
    matmul: str = "auto"
    head: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in (("type", DEVICES), ("matmul", MATMULS), ("head", HEADS)):
            value = getattr(self, name)
            require(value in allowed, f"device.{name}", value, f"one of {', '.join(allowed)}")


@dataclass
class PrecisionConfig(Checked):
    GROUP: ClassVar[str] = "precision"

    name: str = "bf16"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.name in PRECISIONS, "precision.name", self.name, f"one of {', '.join(PRECISIONS)}")


# ------------------------------------------------------------------------------ data


def absolute_path(name: str, path: str) -> str:
    """The path from the root on, so that a run finds its data from any folder; `~` is the user's home."""
    if path == MISSING:
        return path
    require(path != "", name, repr(path), "a path")
    path = os.path.expanduser(path)
    # What `..` leads to after a symbolic link only the file system knows.
    return os.path.realpath(path) if ".." in Path(path).parts else os.path.abspath(path)


@dataclass
class DataConfig(Checked):
    """What every corpus has. `val_fraction` is the share held out; 0 trains on everything."""

    GROUP: ClassVar[str] = "data"

    name: str = MISSING
    vocab_size: int = bounded(10_000, Interval(3, MAX_VOCAB))  # each step has its top three
    val_fraction: float = bounded(0.1, BELOW_ONE)


@dataclass
class TokenizedConfig(DataConfig):
    """Text for which a tokenizer is trained, with a share of the vocabulary that never occurs."""

    vocab_size: int = bounded(10_000, Interval(NUM_BYTES, MAX_VOCAB))
    dead_fraction: float = bounded(0.37, BELOW_ONE)


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

    def __post_init__(self) -> None:
        super().__post_init__()
        self.path = absolute_path("data.path", self.path)


@dataclass
class NotebookConfig(DataConfig):
    """A corpus with its own tokenizer and dead mask, in the notebook's formats."""

    name: str = "notebook"
    corpus_path: str = MISSING
    tokenizer_path: str = MISSING  # tokenizers JSON
    dead_mask_path: str = MISSING  # safetensors: dead_mask (V,), dead_indices (num_dead,)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("corpus_path", "tokenizer_path", "dead_mask_path"):
            setattr(self, name, absolute_path(f"data.{name}", getattr(self, name)))


@dataclass
class TokensConfig(DataConfig):
    """Ids made elsewhere, which stay on the disk where they are many. Ids that do not occur in training are dead."""

    name: str = "tokens"
    # .bin: raw numbers; .npy; a folder that save_to_disk of `datasets` wrote; any other: safetensors with `tokens`
    path: str = MISSING
    dtype: str = "uint16"  # of the numbers in a .bin file: uint16 or uint32, little-endian
    tokenizer_path: str | None = None  # tokenizers JSON of these ids, or of the original ones that mapping_path has
    mapping_path: str | None = None  # JSON: what an id stands for, its text or its original id

    def __post_init__(self) -> None:
        super().__post_init__()
        self.path = absolute_path("data.path", self.path)
        require(self.dtype in TOKEN_DTYPES, "data.dtype", self.dtype, f"one of {', '.join(TOKEN_DTYPES)}")
        if self.tokenizer_path is not None:
            self.tokenizer_path = absolute_path("data.tokenizer_path", self.tokenizer_path)
        if self.mapping_path is not None:
            self.mapping_path = absolute_path("data.mapping_path", self.mapping_path)


@dataclass
class MarkovConfig(DataConfig):
    """A first-order Markov chain over the live tokens: each has `branching` successors, Zipf-weighted."""

    name: str = "markov"
    vocab_size: int = bounded(512, Interval(3, MAX_STATES))
    dead_fraction: float = bounded(0.37, BELOW_ONE)
    num_tokens: int = bounded(1_000_000, Interval(2, MAX_COUNT))
    branching: int = bounded(8, Interval(2, MAX_STATES))
    seed: int = bounded(0, SEED)  # of the chain and its text; the run's seed is another

    def __post_init__(self) -> None:
        super().__post_init__()
        most = self.num_live
        require(2 <= self.branching <= most, "data.branching", self.branching, f"in [2, {most}], the live tokens")

    @property
    def num_live(self) -> int:
        return self.vocab_size - round(self.vocab_size * self.dead_fraction)


@dataclass
class IIDConfig(MarkovConfig):
    """The Markov chain's control: the same unigram distribution, every token drawn on its own."""

    name: str = "iid"
