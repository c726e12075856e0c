"""Settings: precedence, and errors that tell a person what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field

from vedette_core.runtime.config import Section, Settings, load
from vedette_schemas.errors import ConfigError


class Inner(Section):
    host: str = "a"
    port: Annotated[int, Field(ge=1, le=10)] = 1


class Example(Settings):
    site: str
    inner: Inner = Inner()


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "x.toml"
    path.write_text(text)
    return path


def test_flags_win_over_environment_over_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, 'site = "file"\n[inner]\nport = 2\nhost = "file"\n')
    assert load(Example, path).inner == Inner(host="file", port=2)
    monkeypatch.setenv("VEDETTE_INNER__PORT", "3")
    assert load(Example, path).inner == Inner(host="file", port=3)
    assert load(Example, path, {"inner": {"port": 4}}).inner == Inner(host="file", port=4)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('site = "s"\n[inner]\nprot = 3\n', "unknown key 'inner.prot'; did you mean 'port'"),
        ('site = "s"\n[zzz]\n', "unknown key 'zzz'; expected one of inner, site"),
        ('site = "s"\n[inner]\nport = 11\n', "inner.port: found 11, input should be less than or equal to 10"),
        ("[inner]\n", "key 'site' is missing"),
        ("site = \n", "found no valid TOML"),
    ],
)
def test_bad_file_says_what_to_do(tmp_path: Path, text: str, says: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match="x.toml") as caught:
        load(Example, path)
    assert says in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load(Example, tmp_path / "absent.toml")


def test_unknown_key_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEDETTE_INNER__PROT", "3")
    with pytest.raises(ConfigError, match="did you mean 'port'"):
        load(Example, write(tmp_path, 'site = "s"\n'))
