"""What Hydra 1.3 with OmegaConf 2.3 and Hydra 1.4 with OmegaConf 2.4 want said in different words."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
import omegaconf
from hydra import initialize_config_dir, version
from omegaconf import OmegaConf

# Hydra 1.3 warns where it is not told which version's behaviour to keep, and 1.4 where it is told.
IS_HYDRA_1_3 = hydra.__version__.startswith("1.3.")
VERSION_BASE: dict[str, Any] = {"version_base": "1.3"} if IS_HYDRA_1_3 else {}

# Hydra 1.4 wants to know whose code a config may name: ours, and that of sweepers and launchers.
TRUSTED = ["marble_sweep.*", "hydra_plugins.*", "optuna.*"]
MAIN_ARGUMENTS = VERSION_BASE if IS_HYDRA_1_3 else {"execution_whitelist": TRUSTED}

# OmegaConf 2.4 gave today's function the name of the oldest one, and warns of the name that 2.3 knows it by.
_REGISTER = "register_new_resolver" if omegaconf.__version__.startswith("2.3.") else "register_resolver"


def register_resolver(name: str, resolver: Callable[..., Any], *, use_cache: bool = False) -> None:
    """Let configs say `${name:...}`."""
    getattr(OmegaConf, _REGISTER)(name, resolver, use_cache=use_cache, replace=True)


@contextlib.contextmanager
def composing_from(directory: Path) -> Iterator[None]:
    """Let `hydra.compose` read the files in `directory`. Hydra's global state is afterwards as it was."""
    before = version.VersionBase.instance().getbase() if IS_HYDRA_1_3 else None
    try:
        with initialize_config_dir(str(directory), **VERSION_BASE):
            yield
    finally:
        if IS_HYDRA_1_3:  # leaves the version that was asked for to whoever uses Hydra next
            version.VersionBase.instance().version_base = before
