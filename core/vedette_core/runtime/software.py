"""Measures the software that runs here: this distribution, what it depends on, and what Python starts by itself.

Contents are hashed, never believed: a distribution's RECORD only says which files belong to it. Not measured are
Python itself and the operating system (that is what higher tiers are for), console scripts (they hold the path of their
interpreter), and compiled caches (``.pyc``), which whoever can write them can make differ from their source.

Source: Python packaging user guide, "Recording installed projects" (RECORD).
"""

from __future__ import annotations

import hashlib
import re
import site
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from vedette_schemas.attestation import MEASUREMENTS_MAX, Measurement
from vedette_schemas.errors import ConfigError

DISTRIBUTION: Final = "vedette"
PACKAGES: Final = (
    "vedette",
    "vedette_aggregator",
    "vedette_broker",
    "vedette_core",
    "vedette_device",
    "vedette_schemas",
)
_INSTALLERS_OWN: Final = frozenset({"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"})
"""Files of a ``.dist-info`` folder that differ between two installations of the same wheel."""
_CHUNK: Final = 1 << 20


def measure_software() -> tuple[Measurement, ...]:
    """Measure what is installed and started; sorted by component. Takes some 100 ms to read the files.

    Raises:
        ConfigError: the distribution is not installed, or a file cannot be read.
    """
    try:
        own = distribution(DISTRIBUTION)
        found = [
            Measurement(component=DISTRIBUTION, version=own.version, digest=_packages()),
            Measurement(component="startup", digest=_digest(_startup_files())),
            *(
                Measurement(component=f"dependency/{name}", version=d.version, digest=_digest(_recorded(d)))
                for name, d in _dependencies(own).items()
            ),
        ]
    except PackageNotFoundError as fault:
        raise ConfigError(f"software: found no installed distribution {fault}; install vedette as a package") from fault
    except OSError as fault:
        raise ConfigError(f"software: {fault.filename} cannot be read ({fault.strerror}); check its mode") from fault
    if len(found) > MEASUREMENTS_MAX:
        raise ConfigError(f"software: found {len(found)} distributions, expected at most {MEASUREMENTS_MAX}")
    return tuple(sorted(found, key=lambda m: m.component))


def _packages() -> bytes:
    """Every file of the packages where Python finds them, added ones included, whatever RECORD says."""
    files = []
    for package in PACKAGES:
        spec = find_spec(package)
        for place in (spec.submodule_search_locations or ()) if spec is not None else ():
            root = Path(place)
            files += [
                (f"{package}/{path.relative_to(root).as_posix()}", path)
                for path in root.rglob("*")
                if path.is_file() and not _is_cache(path)
            ]
    return _digest(files)


def _startup_files() -> Iterator[tuple[str, Path]]:
    """What Python runs before any of ours: path files, and the two modules that customise it."""
    for folder in (*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])):
        yield from ((path.name, path) for path in Path(folder).glob("*.pth"))
    for name in ("sitecustomize", "usercustomize"):
        spec = find_spec(name)
        if spec is not None and spec.origin is not None and Path(spec.origin).is_file():
            yield name, Path(spec.origin)


def _recorded(found: Distribution) -> Iterator[tuple[str, Path]]:
    """The files of a distribution, as its RECORD names them; a file that is gone is named all the same."""
    for path in found.files or ():
        if path.parts[0] == ".." or path.name in _INSTALLERS_OWN or _is_cache(Path(path)):
            continue
        yield path.as_posix(), Path(str(found.locate_file(path)))


def _dependencies(own: Distribution) -> dict[str, Distribution]:
    """What is installed of a distribution's requirements and theirs, by normal name; extras left out."""
    found: dict[str, Distribution] = {}
    waiting = [own]
    while waiting:
        for name in _required(waiting.pop().requires or ()):
            if name in found or name == DISTRIBUTION:
                continue
            try:
                found[name] = distribution(name)
            except PackageNotFoundError:
                continue  # for another platform, or another Python
            waiting.append(found[name])
    return found


def _required(requirements: Iterable[str]) -> Iterator[str]:
    for line in requirements:
        name, _, marker = line.partition(";")
        matched = re.match(r"[A-Za-z0-9._-]+", name.strip())
        if matched is not None and "extra" not in marker:
            yield re.sub(r"[-_.]+", "-", matched[0]).lower()


def _digest(files: Iterable[tuple[str, Path]]) -> bytes:
    """SHA-256 over names and digests, in the order of the names."""
    whole = hashlib.sha256()
    for name, path in sorted(files):
        content = _content(path)
        whole.update(len(name.encode()).to_bytes(4, "big") + name.encode() + content)
    return whole.digest()


def _content(path: Path) -> bytes:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except FileNotFoundError:
        return bytes(32)
    return digest.digest()


def _is_cache(path: Path) -> bool:
    return path.suffix == ".pyc" or "__pycache__" in path.parts
