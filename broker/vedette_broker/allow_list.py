"""The operator's word on who may enrol: a file of ids and serial numbers, a program that is asked, or both."""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from vedette_schemas.errors import ConfigError, RefusedError, TransientError

FILE_BYTES_MAX: Final = 4 * 1024 * 1024
"""Some ten thousand lines."""
PROGRAM_S: Final = 10.0
"""How long the program may think; the node asks again."""


@dataclass(frozen=True, slots=True)
class Applicant:
    """Who wants to enrol.

    Attributes:
        id: the id that it would get.
        role: the role that it would get.
        serial: hardware serial number that it claims; may be empty.
        token: id of its token.
        site: the site's id.
    """

    id: str
    role: str
    serial: str
    token: str
    site: str


@dataclass(frozen=True, slots=True)
class AllowList:
    """Who may enrol.

    Attributes:
        file: ids and serial numbers, one a line, ``#`` begins a comment; None: no file restricts it.
        program: run with a JSON object (`Applicant`) on standard input; exit status 0 allows. None: none is asked.
    """

    file: Path | None = None
    program: Path | None = None

    def check(self, applicant: Applicant) -> None:
        """Check that an applicant is allowed. May block for `PROGRAM_S`.

        Raises:
            RefusedError: the file does not name it, or the program said no.
            ConfigError: the file cannot be read, or the program not run.
            TransientError: the program did not answer in time.
        """
        if self.file is not None and not {applicant.id, applicant.serial} & self._lines():
            serial = f" with serial number {applicant.serial!r}" if applicant.serial else " without a serial number"
            raise RefusedError(f"{applicant.id}{serial}: found neither on the allow-list", rule="not-allowed")
        if self.program is not None:
            self._ask(self.program, applicant)

    def _lines(self) -> frozenset[str]:
        assert self.file is not None
        try:
            with self.file.open("rb") as opened:
                data = opened.read(FILE_BYTES_MAX + 1)
            text = data.decode()
        except (OSError, UnicodeDecodeError) as fault:
            raise ConfigError(f"{self.file}: cannot be read as the allow-list ({fault})") from fault
        if len(data) > FILE_BYTES_MAX:
            raise ConfigError(f"{self.file}: found more than {FILE_BYTES_MAX} bytes, expected an allow-list")
        return frozenset(word for line in text.splitlines() if (word := line.split("#")[0].strip()))

    @staticmethod
    def _ask(program: Path, applicant: Applicant) -> None:
        try:
            ran = subprocess.run(
                [str(program.absolute())],
                input=json.dumps(asdict(applicant)).encode(),
                stdout=subprocess.DEVNULL,
                timeout=PROGRAM_S,
                check=False,
            )
        except subprocess.TimeoutExpired as fault:
            raise TransientError(f"{program}: found no answer within {PROGRAM_S:g} s") from fault
        except OSError as fault:
            raise ConfigError(f"{program}: cannot be run ({fault.strerror}); check its path and mode") from fault
        if ran.returncode != 0:
            raise RefusedError(
                f"{applicant.id}: {program.name} found a reason against it (exit status {ran.returncode})",
                rule="not-allowed",
            )
