"""Overrides in Hydra's syntax become one checked config."""

from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir

from marble_sweep import config as schema

VERSION_BASE = "1.3"  # the behaviour of Hydra that this program was written for
PACKAGE = Path(__file__).resolve().parents[1]
# In a checkout conf/ lies beside the package; a wheel carries it inside.
CONF = next(path for path in (PACKAGE.parent / "conf", PACKAGE / "conf") if path.is_dir())


def compose_config(overrides: Sequence[str]) -> schema.Config:
    """The checked config of one run, from the files in conf/ and `overrides`, as "model=2L64D".

    Hydra's global state is afterwards as it was. Raises ValueError for a value that cannot be, and Hydra's own
    errors for an override that it cannot read.
    """
    schema.register_schemas()
    with initialize_config_dir(str(CONF), version_base=VERSION_BASE):
        return schema.resolve(compose("config", list(overrides)))
