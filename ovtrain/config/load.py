"""Strict loading: typed defaults <- one YAML <- dotlist; unknown keys fail; then plain objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Protocol, TypeVar, cast

from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

import ovtrain
from ovtrain.schema.errors import ConfigError


class Section(Protocol):
    """A config dataclass that lists its own problems, worded for the user."""

    def problems(self) -> list[str]: ...


T = TypeVar("T")


def data_folder(name: str) -> Path:
    """``configs`` or ``slurm``: inside an installed ovtrain, else beside the package."""
    installed = Path(str(files("ovtrain") / name))
    return installed if installed.is_dir() else Path(ovtrain.__file__).parents[1] / name


def find_config(name: str) -> Path:
    """A YAML path as given, or a name under the shipped configs. Raises ConfigError."""
    shipped = data_folder("configs")
    for path in (Path(name), shipped / name, shipped / f"{name}.yaml"):
        if path.is_file():
            return path
    known = sorted(str(p.relative_to(shipped).with_suffix("")) for p in shipped.rglob("*.yaml"))
    raise ConfigError(name, "no such config file", allowed=", ".join(known) or "a path to a YAML")


def load(schema: type[T], path: str | Path | None, overrides: Sequence[str] = ()) -> T:
    """Read a config of type ``schema``. Raises ConfigError with the key at fault."""
    where = str(path) if path else schema.__name__
    for override in overrides:
        if "=" not in override:
            raise ConfigError(override, "not an override", allowed="key=value")
    try:
        config = OmegaConf.structured(schema)
        if path:
            config = OmegaConf.merge(config, OmegaConf.load(path))
        for override in overrides:
            where = override
            config = OmegaConf.merge(config, OmegaConf.from_dotlist([override]))
        return cast(T, OmegaConf.to_object(config))
    except OmegaConfBaseException as error:
        raise ConfigError(*_explain(where, error)) from error
    except TypeError as error:  # a list where a section stands, or the other way round
        raise ConfigError(
            where,
            f"does not fit this config ({error})",
            allowed="key=value; a list only as a whole, as in data.sources=[{name: a, shards: b}]",
        ) from error
    except (YAMLError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(where, f"cannot be read ({str(error).splitlines()[0]})") from error


def overlay(section: T, changes: object, where: str) -> T:
    """A section with some of its fields changed, as strictly as ``load``. Raises ConfigError."""
    if not isinstance(changes, Mapping):
        raise ConfigError(where, f"is {changes}", allowed="{key: value, ...}")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(section), cast(dict[str, object], changes))
        return cast(T, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise ConfigError(*_explain(where, error)) from error
    except (TypeError, ValueError) as error:
        raise ConfigError(where, f"does not fit this section ({error})") from error


def _explain(where: str, error: OmegaConfBaseException) -> tuple[str, str]:
    text = (error.msg or str(error)).splitlines()[0]
    section = error.object_type
    if not isinstance(error, ConfigAttributeError | ConfigKeyError) or not is_dataclass(section):
        return where, f"{error.full_key}: {text}" if error.full_key else text
    known = sorted(entry.name for entry in fields(section))
    near = get_close_matches(str(error.key), known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ";"
    return where, f"unknown key '{error.full_key}'{hint} Known here: {', '.join(known)}"


def to_yaml(config: object) -> str:
    """The resolved config as YAML, written beside every run."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def raise_problems(where: str, problems: Sequence[str]) -> None:
    """Report all problems of a config at once. Raises ConfigError."""
    if problems:
        raise ConfigError(where, "\n  ".join(["", *problems]) if problems[1:] else problems[0])


def checked(where: str, section: Section) -> None:
    """Raise ConfigError when ``section`` has problems."""
    raise_problems(where, section.problems())
