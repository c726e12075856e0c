"""Size and names of modules, and what the wheel exposes."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = ("schemas", "core", "broker", "device_node", "aggregator_node", "cli", "grafana", "bench", "tests")
SOURCES = sorted(p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py"))
LINES_MAX = 500
"""About 400 are wanted; past this nobody sees one thing in a file any more. There is no list of exceptions."""
EMPTY_NAMES = {"utils", "util", "helpers", "manager", "common", "misc"}
ROLE = "helper"
"""Says something in front of another word only: a committee's helper is a role of the protocol."""


def test_no_file_is_longer_than_one_thing() -> None:
    sizes = {p.relative_to(ROOT).as_posix(): len(p.read_text().splitlines()) for p in SOURCES}
    assert len(sizes) > 30
    assert {name: n for name, n in sizes.items() if n > LINES_MAX} == {}


def test_no_module_has_a_name_that_says_nothing() -> None:
    named = {p.relative_to(ROOT).as_posix(): [n.lower().split("_") for n in (p.stem, p.parent.name)] for p in SOURCES}
    assert {name for name, parts in named.items() if any(says_nothing(words) for words in parts)} == set()


def says_nothing(words: list[str]) -> bool:
    return bool(set(words) & EMPTY_NAMES) or words[-1] == ROLE


@pytest.mark.parametrize("name", ["utils", "test_utils", "io_helpers", "helper", "topic_helper", "common_parts"])
def test_the_check_finds_names_that_say_nothing(name: str) -> None:
    assert says_nothing(name.split("_"))
    assert not says_nothing(["helper", "machine"])


def test_every_package_is_typed_and_branded() -> None:
    for package in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        assert (ROOT / package / "py.typed").is_file()
        assert Path(package).name.split("_")[0] == "vedette"


def test_two_test_files_never_share_a_name() -> None:
    """pytest imports test modules by their bare name."""
    names = [p.name for p in (ROOT / "tests").rglob("*.py") if p.name not in ("conftest.py", "__init__.py")]
    assert sorted(n for n in set(names) if names.count(n) > 1) == []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Names of the files of a freshly built wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def test_the_wheel_exposes_only_vedette(wheel: list[str]) -> None:
    tops = {name.split("/")[0] for name in wheel}
    assert all(top.startswith("vedette") for top in tops), tops
    importable = {top for top in tops if not top.endswith(".dist-info")}
    assert importable == {Path(p).name for p in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]}


def test_the_wheel_holds_no_test_key_example_or_unit(wheel: list[str]) -> None:
    unwanted = re.compile(r"(^|/)(tests?|bench)/|\.(pem|key|toml|service|pcap|pcapng)$|\.example\.")
    assert [name for name in wheel if unwanted.search(name)] == []


def test_the_wheel_brings_its_licence_and_its_command(wheel: list[str]) -> None:
    assert any(name.endswith("licenses/LICENSE") for name in wheel)
    assert any(name.endswith("entry_points.txt") for name in wheel)


def test_what_a_gateway_installs_is_little() -> None:
    """scipy, the quantizer, the broker, the SDKs and the reader of Parquet files come only with extras."""
    names = {re.split(r"[\s<>=!~;\[]", d)[0] for d in PROJECT["project"]["dependencies"]}
    assert not names & {
        "scipy",
        "ai-edge-quantizer",
        "amqtt",
        "grafana-foundation-sdk",
        "scapy",
        "tensorflow",
        "pandas",
        "pyarrow",
    }
