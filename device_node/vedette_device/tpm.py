"""A TPM 2.0 through tpm2-tools: its keys, its quotes, and the secrets that it opens.

The tools are run as programs because the bindings (tpm2-pytss) must be compiled against the system's libraries. Each
command is a process of its own; without a resource manager (swtpm, ``/dev/tpm0``) what it loaded stays loaded until it
is flushed.

Source: tpm2-tools 5.4, tpm2_createek(1), tpm2_createak(1), tpm2_quote(1), tpm2_activatecredential(1).
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vedette_schemas.attestation import Pcr
from vedette_schemas.errors import ConfigError, TransientError

TIMEOUT_S: Final = 60.0
"""A discrete TPM takes seconds to make a key."""


@dataclass(frozen=True, slots=True)
class Tpm:
    """A TPM and the place of its attestation key; see `Proof`.

    Attributes:
        tcti: how the tools reach it, for example ``device:/dev/tpmrm0``; empty for their own choice.
        ak_handle: persistent handle of the attestation key.
        pcrs: registers that a quote is about, ascending.
        tier: 2.
    """

    tcti: str
    ak_handle: str
    pcrs: Sequence[int]
    tier: int = 2

    def prove(self, bound: bytes) -> dict[str, Any]:
        """Quote 32 bytes together with the registers.

        Raises:
            ConfigError: no tools, no TPM, or no attestation key in it.
            TransientError: it does not answer in time.
        """
        bank = f"sha256:{','.join(map(str, self.pcrs))}"
        with tempfile.TemporaryDirectory(prefix="vedette-tpm-") as name:
            folder = Path(name)
            self._run(folder, "tpm2_pcrread", bank, "-o", "pcrs")
            self._run(
                folder,
                "tpm2_quote",
                "-Q",
                "-c",
                self.ak_handle,
                "-l",
                bank,
                "-q",
                bound.hex(),
                "-g",
                "sha256",
                "-m",
                "quote",
                "-s",
                "signature",
            )
            self._flush(folder)
            values = (folder / "pcrs").read_bytes()
            if len(values) != 32 * len(self.pcrs):
                raise ConfigError(f"tpm: found {len(values)} bytes of registers {bank}, expected 32 each")
            registers = tuple(Pcr(index=index, value=values[32 * i : 32 * i + 32]) for i, index in enumerate(self.pcrs))
            return {
                "quote": (folder / "quote").read_bytes(),
                "quote_signature": (folder / "signature").read_bytes(),
                "pcrs": registers,
            }

    def registers(self) -> dict[int, bytes]:
        """The registers as they are now, for reference values."""
        return {pcr.index: pcr.value for pcr in self.prove(bytes(32))["pcrs"]}

    def make_keys(self) -> tuple[bytes, bytes]:
        """Make an attestation key below the endorsement key, in the place of an older one.

        Returns:
            ``TPM2B_PUBLIC`` of the endorsement key and of the attestation key.

        Raises:
            ConfigError: no tools, or no TPM, or it does not do ECC on P-256.
            TransientError: it does not answer in time.
        """
        with tempfile.TemporaryDirectory(prefix="vedette-tpm-") as name:
            folder = Path(name)
            self._run(folder, "tpm2_createek", "-Q", "-c", "ek.ctx", "-G", "ecc", "-u", "ek.pub")
            self._flush(folder)
            self._run(
                folder,
                "tpm2_createak",
                "-Q",
                "-C",
                "ek.ctx",
                "-c",
                "ak.ctx",
                "-G",
                "ecc",
                "-g",
                "sha256",
                "-s",
                "ecdsa",
                "-u",
                "ak.pub",
            )
            self._flush(folder)
            if self._has_key(folder):
                self._run(folder, "tpm2_evictcontrol", "-Q", "-C", "o", "-c", self.ak_handle)
            self._run(folder, "tpm2_evictcontrol", "-Q", "-C", "o", "-c", "ak.ctx", self.ak_handle)
            self._flush(folder)
            return (folder / "ek.pub").read_bytes(), (folder / "ak.pub").read_bytes()

    def open_credential(self, credential: bytes) -> bytes:
        """Open a secret that was made for this TPM and its attestation key.

        Raises:
            ConfigError: it was made for another TPM or another key, or the tools are missing.
            TransientError: the TPM does not answer in time.
        """
        with tempfile.TemporaryDirectory(prefix="vedette-tpm-") as name:
            folder = Path(name)
            (folder / "credential").write_bytes(credential)
            self._run(folder, "tpm2_createek", "-Q", "-c", "ek.ctx", "-G", "ecc", "-u", "ek.pub")
            self._flush(folder)
            self._run(folder, "tpm2_startauthsession", "-Q", "--policy-session", "-S", "session")
            try:
                self._run(folder, "tpm2_policysecret", "-Q", "-S", "session", "-c", "e")
                self._run(
                    folder,
                    "tpm2_activatecredential",
                    "-Q",
                    "-c",
                    self.ak_handle,
                    "-C",
                    "ek.ctx",
                    "-i",
                    "credential",
                    "-o",
                    "secret",
                    "-P",
                    "session:session",
                )
            finally:
                self._run(folder, "tpm2_flushcontext", "session")
                self._flush(folder)
            return (folder / "secret").read_bytes()

    def _has_key(self, folder: Path) -> bool:
        listed = self._run(folder, "tpm2_getcap", "handles-persistent")
        return any(int(found, 16) == int(self.ak_handle, 16) for found in re.findall(r"0x[0-9A-Fa-f]+", listed))

    def _flush(self, folder: Path) -> None:
        self._run(folder, "tpm2_flushcontext", "-t")

    def _run(self, folder: Path, *command: str) -> str:
        # Nothing of our own environment but where programs are: the tools take settings from it.
        environment = {"PATH": os.environ.get("PATH", os.defpath)}
        if self.tcti:
            environment["TPM2TOOLS_TCTI"] = self.tcti
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=TIMEOUT_S,
                check=False,
            )
        except FileNotFoundError as fault:
            raise ConfigError(f"{command[0]}: not found, expected tpm2-tools; install that package") from fault
        except subprocess.TimeoutExpired as fault:
            raise TransientError(f"{command[0]}: no answer of the TPM in {TIMEOUT_S:.0f} s") from fault
        if done.returncode:
            said = " ".join(done.stderr.split())[-300:]
            raise ConfigError(
                f"{command[0]}: found status {done.returncode} ({said}), expected a TPM 2.0 at "
                f"{self.tcti or 'its usual place'} with the keys of `vedette attest enrol request`"
            )
        return done.stdout


def fingerprint(public: bytes) -> str:
    """SHA-256 of a ``TPM2B_PUBLIC``, hexadecimal: how a person tells endorsement keys apart."""
    return hashlib.sha256(public).hexdigest()
