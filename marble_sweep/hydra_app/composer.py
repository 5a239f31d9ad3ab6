"""Configs of many jobs, without having Hydra compose each of them: that takes a tenth of a second."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from marble_sweep import config as schema


@dataclass
class Base:
    """A config that Hydra composed, and the keys in it that hold a single value, set or not."""

    config: DictConfig
    own_keys: set[str]


@dataclass
class Template:
    """A run's config as the next values are put into it, what it was checked to be, and which keys depend on others."""

    node: DictConfig
    checked: schema.Config
    dependent: set[str]  # at the top level, with an interpolation such as ${model.name} in or below them


class Composer:
    """Configs of jobs, from their overrides.

    Hydra composes one config for each choice of options. Numbers, texts and nulls for keys that are there are then put
    in, by the call that Hydra itself makes for them. Whatever else an override asks for is left to Hydra.
    """

    def __init__(self, loader: ConfigLoader, sweep_config: DictConfig) -> None:
        """`sweep_config` is the sweep's own config, from which Hydra composes those of its jobs."""
        self.loader = loader
        self.sweep_config = sweep_config
        self.parser = OverridesParser.create(loader)
        self.groups = set(loader.list_groups(""))
        self._parsed: dict[str, Override] = {}
        self._bases: dict[tuple[str, ...], Base] = {}
        self._templates: dict[tuple[tuple[str, ...], ...], Template] = {}

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """The whole config of the job with these overrides, Hydra's part included."""
        base_overrides, values = self._split(overrides)
        config = copy.deepcopy(self._base(base_overrides).config)
        put_in(config, values)
        config.hydra.overrides.task = list(overrides)
        return config

    def resolve(self, overrides: Sequence[str]) -> schema.Config:
        """The checked config of the job with these overrides.

        Raises CheckError, HydraException or OmegaConfBaseException for what cannot be.
        """
        base_overrides, values = self._split(overrides)
        try:
            return self._resolve(base_overrides, values)
        except OmegaConfBaseException:
            # A value of the wrong type: Hydra says where.
            return schema.resolve(without_hydra(self._compose_anew(overrides)))

    def _resolve(self, base_overrides: tuple[str, ...], values: Sequence[Override]) -> schema.Config:
        key = (base_overrides, tuple(value.key_or_group for value in values))
        template = self._templates.get(key)
        if template is None:
            node = without_hydra(self._base(base_overrides).config)
            put_in(node, values)
            dependent = {name for name, raw in raw_items(node) if "${" in repr(raw)}
            template = self._templates[key] = Template(node, schema.resolve(node), dependent)
        put_in(template.node, values)
        changed = template.dependent | {value.key_or_group.partition(".")[0] for value in values}
        names = [field.name for field in fields(schema.Config) if field.name in changed]
        return replace(template.checked, **{name: as_object(template.node, name) for name in names})

    def _base(self, overrides: tuple[str, ...]) -> Base:
        if overrides not in self._bases:
            config = self._compose_anew(overrides)
            self._bases[overrides] = Base(config, set(value_keys(OmegaConf.to_container(without_hydra(config)), "")))
        return self._bases[overrides]

    def _compose_anew(self, overrides: Sequence[str]) -> DictConfig:
        return self.loader.load_sweep_config(self.sweep_config, list(overrides))

    def _split(self, overrides: Sequence[str]) -> tuple[tuple[str, ...], list[Override]]:
        """The overrides that Hydra composes a config from, and the values that are put in afterwards."""
        values: list[Override] = []
        others: list[Override] = []
        for text in overrides:
            override = self._parse(text)
            (values if self._is_value(override) else others).append(override)
        base_overrides = tuple(override.input_line or "" for override in others)
        # Where two overrides change the same part of a config, their order counts.
        edited = [override.key_or_group for override in others if not self._is_choice(override)]
        keys = {value.key_or_group for value in values}
        if keys <= self._base(base_overrides).own_keys and not any(
            overlap(key, other) for key in keys for other in edited
        ):
            return base_overrides, values
        return tuple(overrides), []

    def _parse(self, text: str) -> Override:
        if text not in self._parsed:
            (self._parsed[text],) = self.parser.parse_overrides([text])
        return self._parsed[text]

    def _is_choice(self, override: Override) -> bool:
        """Whether it chooses an option of a group."""
        key = override.key_or_group
        grouped = key in self.groups or "/" in key or override.package is not None
        return grouped and not isinstance(override.value(), dict)

    def _is_value(self, override: Override) -> bool:
        """Whether it gives a key a number, a text or null."""
        value = override.value()
        single = value is None or isinstance(value, bool | int | float | str)
        return override.type == OverrideType.CHANGE and single and not self._is_choice(override)


def without_hydra(config: DictConfig) -> DictConfig:
    """A copy of a run's own keys, leaving out Hydra's."""
    own = copy.deepcopy(config)
    with open_dict(own):
        del own["hydra"]
    return own


def put_in(config: DictConfig, values: Sequence[Override]) -> None:
    for value in values:
        OmegaConf.update(config, value.key_or_group, value.value())


def raw_items(config: DictConfig) -> list[tuple[str, Any]]:
    """Keys and values at the top level, interpolations as they are written."""
    container = OmegaConf.to_container(config)
    assert isinstance(container, dict)
    return [(str(key), value) for key, value in container.items()]


def value_keys(container: Any, prefix: str) -> Iterator[str]:
    """The full keys of all single values."""
    for key, value in container.items():
        if isinstance(value, dict):
            yield from value_keys(value, f"{prefix}{key}.")
        elif not isinstance(value, list | tuple):
            yield f"{prefix}{key}"


def as_object(config: DictConfig, name: str) -> Any:
    value = config[name]
    return OmegaConf.to_object(value) if OmegaConf.is_config(value) else value


def overlap(key: str, other: str) -> bool:
    """Whether one key is the other, or stands above it."""
    return key == other or key.startswith(f"{other}.") or other.startswith(f"{key}.")
