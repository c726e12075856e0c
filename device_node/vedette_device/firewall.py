"""The firewall's hand: runs nft on this site's own table, and on nothing else."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from vedette_device.firewall_script import FAMILIES, OWNER, Family, FirewallScript
from vedette_device.policy_effects import Measure, MeasureKind
from vedette_device.policy_protection import Address, Protection
from vedette_schemas.errors import ConfigError, TransientError

log = logging.getLogger("vedette.firewall")

SYSTEM_PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"
"""Where nft is looked for: never in a folder that somebody else's environment names."""
NFT_TIMEOUT_S: Final = 20.0
"""nft answers within milliseconds; a machine under load or swapping may take longer."""
CAP_NET_ADMIN: Final = 12
"""Source: linux/capability.h."""


class Firewall:
    """A site's table in the kernel.

    Args:
        script: its text.
        nft: the program; None looks for it in `SYSTEM_PATH`.

    Raises:
        ConfigError: nft is not installed.
    """

    def __init__(self, script: FirewallScript, nft: str | None = None) -> None:
        found = nft or shutil.which("nft", path=SYSTEM_PATH)
        if found is None:
            raise ConfigError(
                f"policy: found no program nft in {SYSTEM_PATH}, expected nftables 1.0 or newer: install the package "
                "nftables, or leave dry_run = true"
            )
        self._nft, self._script = found, script
        self._families: tuple[Family, ...] = FAMILIES

    @property
    def families(self) -> tuple[Family, ...]:
        """Families in which the table is in force."""
        return self._families

    async def install(self, protection: Protection, measures: Iterable[Measure], now: float) -> None:
        """Put the table in place, with everything that is in force; without a gap if it was there before.

        Raises:
            ConfigError: no right to, a table of another device, or a kernel without nftables.
            TransientError: nft did not answer.
        """
        in_force = tuple(measures)
        await self._check_owner()
        await self._run(self._script.install("inet", protection, in_force, now))
        self._families = FAMILIES
        try:
            await self._run(self._script.install("bridge", protection, in_force, now))
        except ConfigError as fault:
            self._families = ("inet",)
            log.warning("what passes between the ports of a bridge is not covered: %s", fault)

    async def begin(self, measure: Measure, now: float) -> None:
        """Put a measure into force, or draw it out; raises as `install` does."""
        await self._run(self._script.begin(self._families, measure, now))

    async def end(self, kind: MeasureKind, address: Address) -> None:
        """End a measure, if there is one; raises as `install` does."""
        await self._run(self._script.end(self._families, kind, address))

    async def protect(self, protection: Protection) -> None:
        """Change who is never touched; raises as `install` does."""
        await self._run(self._script.protect(self._families, protection))

    async def is_there(self) -> bool:
        """Whether the table is still in force: others may have flushed the whole ruleset.

        Raises:
            ConfigError: no right to look.
            TransientError: nft did not answer.
        """
        present = await self._chains()
        return all(self._script.owner in present.get(family, ()) for family in self._families)

    async def find(self) -> bool:
        """Look in which families the table is, and go on with those; tells whether it is in any.

        Raises:
            ConfigError: no right to look, or it is another device's.
            TransientError: nft did not answer.
        """
        await self._check_owner()
        present = await self._chains()
        self._families = tuple(family for family in FAMILIES if family in present)
        return bool(self._families)

    async def remove(self) -> None:
        """Remove the table, if it is there; raises as `install` does."""
        await self._check_owner()
        for family in self._families:
            await self._run(self._script.remove(family))

    async def _check_owner(self) -> None:
        for family, chains in (await self._chains()).items():
            if self._script.owner not in chains:
                found = next((c.removeprefix(OWNER) for c in chains if c.startswith(OWNER)), "nobody that is known")
                own = self._script.owner.removeprefix(OWNER)
                raise ConfigError(
                    f"firewall: found the table {family} {self._script.table} of {found}, expected none or {own}'s; "
                    "two device nodes of a site cannot enforce on one machine. If nothing of it runs any more: "
                    f"nft delete table {family} {self._script.table}"
                )

    async def _chains(self) -> dict[str, set[str]]:
        """Family → chains of the table of this name."""
        answer = await self._run("", "--json", "list", "chains")
        chains: dict[str, set[str]] = {}
        for item in json.loads(answer)["nftables"]:
            chain = item.get("chain")
            if chain is not None and chain["table"] == self._script.table:
                chains.setdefault(chain["family"], set()).add(chain["name"])
        return chains

    async def _run(self, script: str, *words: str) -> bytes:
        process = await asyncio.create_subprocess_exec(
            self._nft,
            *(words or ("--file", "-")),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={"PATH": SYSTEM_PATH, "LC_ALL": "C"},
        )
        try:
            async with asyncio.timeout(NFT_TIMEOUT_S):
                out, err = await process.communicate(script.encode())
        except TimeoutError as fault:
            raise TransientError(f"firewall: nft did not answer within {NFT_TIMEOUT_S:g} s") from fault
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            words_found = " ".join(err.decode("utf-8", "replace").split())[:300]
            raise ConfigError(f"firewall: nft refused ({words_found}); {_advice(words_found)}")
        return out


def _advice(answer: str) -> str:
    if "Operation not permitted" in answer:
        return (
            "expected the capability CAP_NET_ADMIN: run the node as root, or with AmbientCapabilities=CAP_NET_ADMIN "
            f"(nft is a program of its own: a capability on the interpreter's file does not reach it){_held()}"
        )
    return "expected nftables 1.0 or newer, and a kernel with nf_tables"


def _held() -> str:
    """What this process could pass on to nft, for people."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        ambient = int(next(line for line in lines if line.startswith("CapAmb:")).split()[1], 16)
    except (OSError, StopIteration, ValueError, IndexError):
        return ""
    has = "has" if ambient & 1 << CAP_NET_ADMIN else "lacks"
    return f"; this process runs as user {os.geteuid()} and {has} it among its ambient capabilities"
