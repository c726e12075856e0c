"""What is measured of the software: contents, added files, what it depends on, and how a process is looked into."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from vedette_core.runtime.software import PACKAGES, measure_software
from vedette_device import attester

PROGRAM = (
    "import json; from vedette_core.runtime.software import measure_software; "
    "print(json.dumps({m.component: m.digest.hex() for m in measure_software()}))"
)


def measured(copy: Path | None = None) -> dict[str, str]:
    """Measured by another process, with a copy of the packages in front of its path."""
    environment = {"PATH": "/usr/bin:/bin"} | ({} if copy is None else {"PYTHONPATH": str(copy)})
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def here() -> dict[str, str]:
    return measured()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for package in PACKAGES:
        spec = find_spec(package)
        assert spec is not None
        (place,) = spec.submodule_search_locations or ()
        shutil.copytree(place, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "recordings"))
    # The recordings are large and never altered here; a link has the same content.
    spec = find_spec("vedette")
    assert spec is not None
    (place,) = spec.submodule_search_locations or ()
    shutil.copytree(Path(place) / "recordings", tmp_path / "vedette" / "recordings", copy_function=linked)
    return tmp_path


def linked(source: str, target: str) -> None:
    Path(target).symlink_to(source)


def test_it_is_the_same_wherever_it_lies_and_whoever_measures(here: dict[str, str], copy: Path) -> None:
    assert measured(copy) == here
    assert {m.component: m.digest.hex() for m in measure_software()} == here


def alter(path: Path) -> None:
    path.write_text(path.read_text() + "\n")


def rename(path: Path) -> None:
    path.rename(path.with_name("other.py"))


def add(path: Path) -> None:
    path.with_name("added.py").write_text("")


@pytest.mark.parametrize("change", [alter, rename, add, Path.unlink], ids=lambda c: c.__name__)
def test_every_change_of_our_packages_shows(here: dict[str, str], copy: Path, change: Callable[[Path], None]) -> None:
    change(copy / "vedette_broker" / "mosquitto.py")
    found = measured(copy)
    assert found["vedette"] != here["vedette"]
    assert {c: d for c, d in found.items() if c != "vedette"} == {c: d for c, d in here.items() if c != "vedette"}


def test_compiled_caches_do_not_count(here: dict[str, str], copy: Path) -> None:
    cache = copy / "vedette_core" / "__pycache__"
    cache.mkdir(exist_ok=True)
    (cache / "anything.cpython-311.pyc").write_bytes(b"x")
    assert measured(copy)["vedette"] == here["vedette"]


def test_the_dependencies_of_a_gateway_are_measured_and_those_of_extras_are_not(here: dict[str, str]) -> None:
    assert {"vedette", "startup", "dependency/cryptography", "dependency/msgpack", "dependency/cffi"} <= here.keys()
    assert not {"dependency/pytest", "dependency/amqtt", "dependency/vedette"} & here.keys()


# --- debugging ---


def test_a_process_that_is_traced_is_debugged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = tmp_path / "status"
    monkeypatch.setattr(attester, "STATUS_FILE", status)
    monkeypatch.setattr(sys, "gettrace", lambda: None)
    for text, debugged in (("Name:\tx\nTracerPid:\t0\n", False), ("TracerPid:\t17\n", True), ("Name:\tx\n", False)):
        status.write_text(text)
        assert attester.is_debugged() is debugged
    status.unlink()
    assert attester.is_debugged() is False
    monkeypatch.setattr(sys, "gettrace", lambda: print)
    assert attester.is_debugged() is True
