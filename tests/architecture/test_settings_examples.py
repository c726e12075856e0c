"""Every setting is in the example file beside its component, and every key of an example is a setting."""

from __future__ import annotations

import os
import re
import tomllib
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from vedette_core.runtime.config import Settings, load

ROOT = Path(__file__).parents[2]
EXAMPLES = {
    "vedette_device.settings": ROOT / "device_node" / "device.example.toml",
    "vedette_device.helper_settings": ROOT / "device_node" / "committee.example.toml",
    "vedette_aggregator.settings": ROOT / "aggregator_node" / "aggregator.example.toml",
    "vedette_aggregator.validator_settings": ROOT / "aggregator_node" / "validator.example.toml",
    "vedette_broker.settings": ROOT / "broker" / "broker.example.toml",
    "vedette_broker.ca_settings": ROOT / "broker" / "ca.example.toml",
}


def settings_class(module: str) -> type[Settings]:
    """The one class of settings of a component."""
    (found,) = (
        c
        for c in vars(import_module(module)).values()
        if isinstance(c, type) and issubclass(c, Settings) and c is not Settings
    )
    return found


def nested(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, alone, optional or in a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inside = [nested(a) for a in get_args(annotation)] if not isinstance(annotation, str) else []
    return next((n for n in inside if n is not None), None)


def keys(cls: type[BaseModel], prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Path of every setting → its default."""
    found: dict[tuple[str, ...], Any] = {}
    for name, field in cls.model_fields.items():
        section = nested(field.annotation)
        if section is not None:
            found.update(keys(section, (*prefix, name)))
        else:
            found[*prefix, name] = field.default
    return found


def uncommented(text: str) -> str:
    """The example with every commented-out setting and table put in force; prose stays a comment."""
    return re.sub(r"^# ?(?=[a-z_]+ = |\[+[a-z_.\"/+#-]+\]+ *$)", "", text, flags=re.MULTILINE)


def leaves(plain: Any, known: set[tuple[str, ...]], prefix: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    """Paths of the keys of a TOML document; a setting that is itself a table is a leaf."""
    if isinstance(plain, list) and plain and all(isinstance(item, dict) for item in plain):
        return set().union(*(leaves(item, known, prefix) for item in plain))
    if not isinstance(plain, dict) or prefix in known:
        return {prefix}
    return set().union(*(leaves(v, known, (*prefix, k)) for k, v in plain.items()))


@pytest.mark.parametrize("module", EXAMPLES)
def test_the_example_has_every_setting_and_no_other(module: str) -> None:
    known = set(keys(settings_class(module)))
    in_example = leaves(tomllib.loads(uncommented(EXAMPLES[module].read_text())), known)
    assert {".".join(k) for k in known - in_example} == set(), "settings that the example does not tell about"
    assert {".".join(k) for k in in_example - known} == set(), "keys of the example that are no settings"


@pytest.mark.parametrize("module", EXAMPLES)
def test_the_example_is_accepted_as_it_is(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("VEDETTE_"):
            monkeypatch.delenv(name)
    load(settings_class(module), EXAMPLES[module])


@pytest.mark.parametrize("module", EXAMPLES)
def test_a_default_in_the_example_is_the_default_of_the_code(module: str) -> None:
    """What is commented out shows the default: it must be the one that is in force."""
    text = EXAMPLES[module].read_text()
    defaults = keys(settings_class(module))
    shown = tomllib.loads(uncommented(text))
    in_force = leaves(tomllib.loads(text), set(defaults))
    for path, default in defaults.items():
        if path in in_force or default in (PydanticUndefined, None):
            continue
        value = shown
        for level in path:
            value = value[0] if isinstance(value, list) else value
            value = value.get(level, {}) if isinstance(value, dict) else {}
        comparable = list(default) if isinstance(default, tuple) else default
        if value not in ({}, []):
            assert value == comparable, f"{'.'.join(path)}: the example shows {value!r}, the code has {default!r}"


@pytest.mark.parametrize("module", EXAMPLES)
def test_every_key_of_the_example_is_explained(module: str) -> None:
    """Each key has a comment on its line, or on the line above it, where the key comes first."""
    lines = EXAMPLES[module].read_text().splitlines()
    explained: dict[str, bool] = {}
    for above, line in zip(["", *lines], lines, strict=False):
        if found := re.match(r"#? ?([a-z_]+) = ", line):
            explained.setdefault(found[1], "  #" in line or "#" in above)
    assert [key for key, is_explained in explained.items() if not is_explained] == []


def test_a_union_is_understood() -> None:
    assert isinstance(int | None, UnionType)
    assert nested(int | None) is None
