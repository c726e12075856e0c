"""New files for a bundle, all of them or none, also after a crash: a stage inside of the bundle's folder.

::

    renewal/            0700: keys of a request that waits for its answer
    renewal/*.crt       the answer, checked
    renewal/ready       everything is here: from now on the files are moved, whatever happens

Whoever reads a bundle finishes a move that a crash interrupted (`finish_swap`). Nothing is needed but the folder:
the one above it often belongs to somebody else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from vedette_core.runtime.durable import (
    file_error,
    make_directory,
    remove_durable,
    synchronise_directory,
    write_durable,
)

STAGE: Final = "renewal"
READY: Final = "ready"
PUBLIC_FILE: Final = 0o644
BUNDLE_FILES: Final = ("ca.crt", "aggregator.crt", "signing.key", "signing.crt", "tls.key", "tls.crt")
"""What may be staged, in the order in which it is moved; everything else in a stage is only for the request."""


def stage_of(directory: Path) -> Path:
    """The stage of a bundle; made if it is missing.

    Raises:
        ConfigError: it cannot be made there.
        TransientError: the disk is full.
    """
    make_directory(directory)
    make_directory(directory / STAGE)
    return directory / STAGE


def swap_in(directory: Path, files: dict[str, bytes]) -> None:
    """Put certificates beside the staged keys, and all of it into the bundle's place.

    Args:
        directory: the bundle's.
        files: public files by name, of `BUNDLE_FILES`.

    Raises:
        ConfigError: it cannot be written there.
        TransientError: the disk is full; the bundle is what it was.
    """
    stage = stage_of(directory)
    for name, data in files.items():
        assert name in BUNDLE_FILES, name
        write_durable(stage / name, data, PUBLIC_FILE)
    write_durable(stage / READY, b"")
    finish_swap(directory)


def finish_swap(directory: Path) -> bool:
    """Move what a stage holds, if it is complete; tells whether there was something to move.

    Raises:
        ConfigError: it cannot be written there.
        TransientError: the disk does not answer.
    """
    stage = directory / STAGE
    if not (stage / READY).exists():
        return False
    try:
        for name in BUNDLE_FILES:
            if (stage / name).exists():
                (stage / name).replace(directory / name)
        synchronise_directory(directory)
        for path in stage.iterdir():
            if path.name != READY:
                path.unlink()
    except OSError as fault:
        raise file_error(fault, f"finish the renewal of {directory}") from fault
    remove_durable(stage / READY)
    return True
