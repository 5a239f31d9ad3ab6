"""What Hydra 1.3 with OmegaConf 2.3 and Hydra 1.4 with OmegaConf 2.4 want said in different words."""

from collections.abc import Callable
from typing import Any

import hydra
import omegaconf
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
