"""A TPM in a process of its own (swtpm), with a state that can be copied, put back, and started again."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

PROGRAMS = ("swtpm", "tpm2_quote", "tpm2_createek")
START_S = 60.0


def missing() -> list[str]:
    return [program for program in PROGRAMS if shutil.which(program) is None]


class SoftwareTpm:
    """One swtpm; its socket lies in a short folder, because the system limits the length of such paths."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tpm-"))
        self.state = self.folder / "state"
        self.state.mkdir()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def tcti(self) -> str:
        return f"swtpm:path={self.folder}/tpm"

    def start(self) -> None:
        """Switch it on: what it counts of its starts goes up by one."""
        assert self._process is None
        command = [
            "swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self.state}",
            "--ctrl", f"type=unixio,path={self.folder}/tpm.ctrl", "--server", f"type=unixio,path={self.folder}/tpm",
            "--flags", "not-need-init,startup-clear", "--log", f"file={self.folder}/log",
        ]  # fmt: skip
        with (self.folder / "out").open("ab") as out:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        limit = time.monotonic() + START_S
        while not self._listens():
            assert self._process.poll() is None, (self.folder / "out").read_text()
            assert time.monotonic() < limit, "swtpm does not listen"
            time.sleep(0.02)

    def _listens(self) -> bool:
        """Whether both of its sockets are there, and listen: each is made first, and listens a moment later."""
        for name in ("tpm.ctrl", "tpm"):
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(str(self.folder / name))
                except OSError:
                    return False
        return True

    def stop(self, *, orderly: bool = True) -> None:
        """Switch it off; without the command that tells it so beforehand its clock is not safe at the next start."""
        if self._process is None:
            return
        if orderly:
            self.tool("tpm2_shutdown", "-c", check=False)
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
        for name in ("tpm", "tpm.ctrl"):
            (self.folder / name).unlink(missing_ok=True)

    def copied_state(self) -> Path:
        """A copy of what it remembers; to be taken while it is off."""
        assert self._process is None
        copy = self.folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.state, copy)
        return copy

    def put_back(self, copy: Path) -> None:
        assert self._process is None
        shutil.rmtree(self.state)
        shutil.copytree(copy, self.state)

    def tool(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run one of the tools against it."""
        done = subprocess.run(
            command, cwd=self.folder, env={"PATH": "/usr/bin:/bin", "TPM2TOOLS_TCTI": self.tcti}, capture_output=True,
            text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0 or not check, done.stderr
        return done

    def extend(self, index: int, digest: bytes) -> None:
        """Measure something into a register, as a boot loader does."""
        self.tool("tpm2_pcrextend", f"{index}:sha256={digest.hex()}")

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
