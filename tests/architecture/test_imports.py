"""The floors of the house, and what computes does no I/O, reads no clock and no global random state."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = [ROOT / path for path in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]]
MODULES = sorted(path for package in PACKAGES for path in package.rglob("*.py"))

PURE_PLACES = (
    "schemas/vedette_schemas/",
    "core/vedette_core/machine.py",
    "core/vedette_core/attestation/",
    "core/vedette_core/crypto/",
    "core/vedette_core/learning/",
    "core/vedette_core/privacy/",
    "core/vedette_core/secagg/",
    "core/vedette_core/export/",
)
FORBIDDEN = frozenset(
    {
        "asyncio",
        "socket",
        "socketserver",
        "select",
        "selectors",
        "ssl",
        "time",
        "sched",
        "sqlite3",
        "threading",
        "multiprocessing",
        "concurrent",
        "queue",
        "subprocess",
        "signal",
        "shutil",
        "tempfile",
        "http",
        "urllib",
        "random",
        "secrets",
        "uuid",
        "os",
        "pathlib",
        "logging",
        "paho",
        "amqtt",
        "tuf",
        "prometheus_client",
        "typer",
        "rich",
    }
)
CLOCK_READS = frozenset({"now", "utcnow", "today", "time", "time_ns", "monotonic", "perf_counter"})
SEEDED = frozenset({"default_rng", "Generator", "SeedSequence", "PCG64", "Philox", "BitGenerator", "SFC64"})
"""What of ``numpy.random`` is no global state; `default_rng` only with a seed."""


def is_pure(path: Path) -> bool:
    relative = path.relative_to(ROOT).as_posix()
    return path.stem.endswith("_machine") or any(
        relative == place or (place.endswith("/") and relative.startswith(place)) for place in PURE_PLACES
    )


def faults(tree: ast.AST) -> Iterator[str]:
    """What a pure module does that it must not."""
    numpy_names = {"np", "numpy"}
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import):
            for name in node.names:
                if name.name.split(".")[0] in FORBIDDEN or name.name.startswith("numpy.random"):
                    yield f"line {line}: imports {name.name}"
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if module.split(".")[0] in FORBIDDEN or module.startswith("vedette_core.runtime"):
                yield f"line {line}: imports from {module}"
            if module == "numpy.random" and not {n.name for n in node.names} <= SEEDED:
                yield f"line {line}: imports the global state of numpy.random"
            if module == "vedette_core" and any(n.name == "runtime" for n in node.names):
                yield f"line {line}: imports vedette_core.runtime"
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            parts = called.split(".")
            if called in ("open", "input", "print", "exec", "eval", "__import__", "importlib.import_module"):
                yield f"line {line}: calls {called}"
            if len(parts) > 1 and parts[-1] in CLOCK_READS and parts[-2] in ("datetime", "date", "time"):
                yield f"line {line}: reads the clock with {called}"
            if parts[-1] == "default_rng" and not (node.args or node.keywords):
                yield f"line {line}: takes randomness from the operating system with {called}()"
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute):
            chain = ast.unparse(node.value)
            if chain.split(".")[0] in numpy_names and chain.endswith(".random") and node.attr not in SEEDED:
                yield f"line {line}: uses the global state of {chain}.{node.attr}"


def test_there_is_something_to_check() -> None:
    assert len(MODULES) > 20
    assert sum(is_pure(path) for path in MODULES) > 10


@pytest.mark.parametrize("path", [p for p in MODULES if is_pure(p)], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_what_computes_does_no_io_and_reads_no_clock(path: Path) -> None:
    assert list(faults(ast.parse(path.read_text()))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import asyncio",
        "import os.path",
        "from time import monotonic",
        "from vedette_core.runtime import clock",
        "from vedette_core import runtime",
        "def f():\n    import sqlite3",
        "x = datetime.now(UTC)",
        "x = datetime.datetime.utcnow()",
        "x = date.today()",
        "x = np.random.normal(0, 1)",
        "x = numpy.random.seed(1)",
        "import numpy.random",
        "from numpy.random import normal",
        "x = np.random.default_rng()",
        "x = open('a')",
    ],
)
def test_the_check_finds_what_it_is_for(source: str) -> None:
    assert list(faults(ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    [
        "from datetime import UTC, datetime\nx = datetime.fromtimestamp(now, UTC)",
        "x = np.random.default_rng(seed).normal(0, 1)",
        "def f(rng: np.random.Generator) -> None: ...",
        "import hashlib, hmac, struct, zlib, io",
    ],
)
def test_the_check_lets_pass_what_is_pure(source: str) -> None:
    assert list(faults(ast.parse(source))) == []


def test_the_import_contracts_hold(tmp_path: Path) -> None:
    # In a process of its own: its console takes hold of standard output for good.
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    options = ["--config", str(ROOT / "pyproject.toml"), "--cache-dir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", program, *options], capture_output=True, text=True, check=False, timeout=120, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_siblings_never_import_each_other() -> None:
    """The same as a contract of the linter, in a second way: by reading the sources."""
    components = {"vedette_broker", "vedette_device", "vedette_aggregator"}
    for path in MODULES:
        own = path.relative_to(ROOT).parts[1]
        for node in ast.walk(ast.parse(path.read_text())):
            names = [n.name for n in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            foreign = {n.split(".")[0] for n in names} & (components | {"vedette"}) - {own}
            assert own == "vedette" or not foreign, f"{path.relative_to(ROOT)} imports {foreign}"
