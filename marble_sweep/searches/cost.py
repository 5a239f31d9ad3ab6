"""What a search minimises: the number by which its sizes are ordered, and the words for it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from marble_sweep.config import Config
from marble_sweep.humanize import amount
from marble_sweep.model.flops import training_flops_per_token
from marble_sweep.searches.space import Dimension, Size, Space, Value, build

PARAMETERS = "parameters"


@dataclass(frozen=True)
class Cost:
    """One value of search.minimise, with words that name its unit wherever "small" would mean parameters."""

    unit: str  # in the plural
    of: Callable[[Config], float] | None  # from a trial's config; None where it has to be measured

    @property
    def is_default(self) -> bool:
        return self.unit == PARAMETERS

    def show(self, cost: float) -> str:
        """As `30,262 parameters`."""
        return f"{amount(cost)} {self.unit}"

    def named(self, size: Size) -> str:
        """A size by its name, and its cost where that is not what "smaller" means by itself."""
        return str(size) if self.is_default else f"{size}, {self.show(size.cost)},"

    def describe(self, cost: float, num_parameters: int) -> str:
        """A size's cost, and how many parameters it has."""
        return self.show(cost) if self.is_default else f"{self.show(cost)} ({num_parameters:,} parameters)"

    @property
    def smallest(self) -> str:
        """What the answer is called."""
        return "smallest certified size" if self.is_default else f"certified size with the fewest {self.unit}"

    def smaller(self, noun: str, space: Space) -> str:
        """Sizes that come before the answer, which are called a `noun`: as `smaller size`."""
        if self.is_default:
            return f"smaller {noun}".rstrip()
        ties = ", or as many and fewer parameters" if space.has_ties else ""
        return f"{noun} with fewer {self.unit}{ties}".lstrip()


def non_embedding(config: Config) -> int:
    """The parameters that are not rows of the token embedding, of the head or of the positions.

    Without layers those of the final LayerNorm are left.
    """
    return config.num_parameters - config.num_vocabulary_parameters


def flops_per_token(config: Config) -> float:
    model = config.model
    return training_flops_per_token(
        vocab_size=config.data.vocab_size,
        seq_len=config.trainer.seq_len,
        num_layers=model.num_layers,
        hidden_dim=model.hidden_dim,
        mlp_dim=model.mlp_dim,
    )


COSTS = {
    "n_params": Cost(PARAMETERS, lambda config: config.num_parameters),
    "non_embedding": Cost("non-embedding parameters", non_embedding),
    "flops_per_token": Cost("FLOPs per token", flops_per_token),
    "seconds_per_step": Cost("seconds per step", None),
}


def build_space(dimensions: Sequence[Dimension], resolve: Callable[[dict[str, Value]], Config]) -> Space:
    """The space in the order of what the search minimises. `resolve` raises ValueError for an impossible size.

    Raises ValueError where every size is impossible.
    """
    return build(dimensions, lambda size: resolve(size).num_parameters, lambda size: cost_of(resolve(size)))


def cost_of(config: Config) -> float:
    """What is minimised, of a trial; where that is still to be measured, its number of parameters."""
    of = COSTS[config.search.minimise].of
    return config.num_parameters if of is None else of(config)
