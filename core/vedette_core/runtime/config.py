"""Settings: TOML file, then ``VEDETTE_SECTION__KEY`` in the environment, then flags, in rising precedence.

An unknown key is an error with a suggestion. Secrets are only named by file.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from vedette_schemas.errors import ConfigError

S = TypeVar("S", bound="Settings")
CONFIG_BYTES_MAX = 1024 * 1024


class Section(BaseModel):
    """Base of a table in the TOML file."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Settings(BaseSettings):
    """Base of a component's settings."""

    model_config = SettingsConfigDict(
        env_prefix="VEDETTE_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources: flags, environment, file."""
        assert isinstance(init_settings, InitSettingsSource)
        given = dict(init_settings.init_kwargs)
        file = InitSettingsSource(settings_cls, given.pop("_file", {}))
        return (InitSettingsSource(settings_cls, given), env_settings, file)


def load(cls: type[S], path: Path | None, flags: Mapping[str, Any] | None = None) -> S:
    """Read a component's settings.

    Args:
        cls: the settings class.
        path: TOML file, or None for none.
        flags: values that win over everything, nested as the tables are.

    Raises:
        ConfigError: missing or unreadable file, no TOML, unknown key (with a suggestion), value out of range.
    """
    file = {} if path is None else _read(path)
    try:
        return cls(_file=file, **dict(flags or {}))  # type: ignore[call-arg]
    except ValidationError as fault:
        where = "settings" if path is None else str(path)
        lines = [_explain(cls, error) for error in fault.errors(include_url=False)[:8]]
        raise ConfigError(f"{where}: " + "; ".join(lines)) from fault


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > CONFIG_BYTES_MAX:
            raise ConfigError(f"{path}: found {path.stat().st_size} bytes, expected at most {CONFIG_BYTES_MAX}")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as fault:
        raise ConfigError(
            f"{path}: no such file; expected a TOML file: see the example beside the component"
        ) from fault
    except OSError as fault:
        raise ConfigError(f"{path}: cannot read ({fault.strerror}); check the path and its permissions") from fault
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as fault:
        raise ConfigError(f"{path}: found no valid TOML ({fault})") from fault


def _explain(cls: type[BaseModel], error: Any) -> str:
    path = [str(p) for p in error["loc"]]
    name = ".".join(path)
    if error["type"] == "extra_forbidden":
        known = _keys(cls, path[:-1])
        close = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(sorted(known))}"
        return f"unknown key {name!r}; {hint}"
    if error["type"] == "missing":
        return f"key {name!r} is missing"
    return f"{name}: found {error.get('input')!r}, {error['msg'][0].lower()}{error['msg'][1:]}"


def _keys(cls: type[BaseModel], path: list[str]) -> list[str]:
    """Names of the keys that are known in the table at `path`."""
    for level in path:
        field = cls.model_fields.get(level)
        if field is None:
            return []
        nested = next((t for t in (field.annotation, *get_args(field.annotation)) if _is_model(t)), None)
        if nested is None:
            return []
        cls = nested
    return list(cls.model_fields)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
