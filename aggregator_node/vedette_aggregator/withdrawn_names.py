"""Names that were retained and are not any more: what a broker that was away then must still be cleared of."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from vedette_core.runtime.durable import write_durable

WITHDRAWN_MAX: Final = 256
"""Names of each kind that are remembered; oldest are forgotten first."""


class WithdrawnNames:
    """The memory of a repository; only the tidiness of a broker hangs on it.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> tuple[tuple[str, ...], dict[str, int]]:
        """Metadata files, and length by digest of artifacts; nothing where the file cannot be read."""
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            found = json.loads(self._path.read_bytes())
            return tuple(map(str, found["files"])), {str(d): int(n) for d, n in found["artifacts"].items()}
        return (), {}

    def remember(self, files: Iterable[str], artifacts: Mapping[str, int]) -> None:
        """Note, before a commit, everything that is retained now; what still is afterwards is left out when read.

        So a crash right after the commit cannot make us forget what has to be cleared from the broker.

        Raises:
            TransientError: the disk is full.
        """
        known, lengths = self.read()
        names = tuple(dict.fromkeys((*known, *files)))
        lengths |= artifacts
        text = {"files": names[-WITHDRAWN_MAX:], "artifacts": dict(list(lengths.items())[-WITHDRAWN_MAX:])}
        write_durable(self._path, json.dumps(text).encode())
