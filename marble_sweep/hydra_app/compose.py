"""Overrides in Hydra's syntax become one checked config."""

from collections.abc import Sequence
from pathlib import Path

from hydra import compose

from marble_sweep import config as schema
from marble_sweep.hydra_app.hydra_versions import composing_from

PACKAGE = Path(__file__).resolve().parents[1]
# A wheel carries conf/ inside, and what lies beside the package is then somebody else's; a checkout has it there.
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"


def compose_config(overrides: Sequence[str]) -> schema.Config:
    """The checked config of one run, from the files in conf/ and `overrides`, as "model=2L64D".

    Hydra's global state is afterwards as it was. Raises CheckError for a value that cannot be, and Hydra's own
    errors for an override that it cannot read.
    """
    schema.register_schemas()
    with composing_from(CONF):
        return schema.resolve(compose("config", list(overrides)))
