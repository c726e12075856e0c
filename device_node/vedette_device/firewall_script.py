"""A site's own nftables table as text: sets of addresses that end by themselves, and the rules that look into them.

::

    protected4/6      never matched by any rule, whatever else they are in
    quarantined4/6    everything from and to them is dropped
    throttled…_R      from and to them, R kilobytes a second pass, each way and each address

The table is in two families: ``inet`` for what is routed and what this machine sends and receives, ``bridge`` for what
passes between the ports of a bridge and is never routed. DHCP between a quarantined host and this machine passes: a
host that lost its lease would come back under another address, outside of the quarantine.

Source: nft(8) 1.0.6, «SETS», «LIMIT STATEMENT», «SET STATEMENT»; wiki.nftables.org «Meters».
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Final, Literal

from vedette_device.policy_effects import Measure, MeasureKind
from vedette_device.policy_protection import Address, Protection

Family = Literal["inet", "bridge"]
FAMILIES: Final[tuple[Family, ...]] = ("inet", "bridge")

PRIORITY: Final = -10
"""Before the usual filters (0), so that what is cut off costs them nothing; a drop here is final whatever they say."""
SET_SIZE: Final = 4096
"""Addresses a set: an ended one takes its room until the kernel collects it."""
METER_S: Final = 60
"""Seconds after its last packet for which the rate of an address is remembered."""
BURST_KBYTES: Final = 64
"""More than the largest packet (64 kB after segmentation offload): a smaller burst would never let one pass."""
OWNER: Final = "of_"
"""An empty chain of this name tells whose table it is."""

_TYPES: Final = {4: ("ipv4_addr", "ip"), 6: ("ipv6_addr", "ip6")}
_DHCP: Final = {4: ("68", "67"), 6: ("546", "547")}


class FirewallScript:
    """Commands for ``nft -f``.

    Args:
        site: the site's id; the table is ``vedette_{site}``.
        device: this device's id.
        rates: rates of throttles, kilobytes a second.
    """

    def __init__(self, site: str, device: str, rates: Iterable[int]) -> None:
        self.table = f"vedette_{site}"
        self.owner = f"{OWNER}{device}"
        self._rates = sorted(set(rates))

    def install(self, family: Family, protection: Protection, measures: Iterable[Measure], now: float) -> str:
        """Put the table in place of whatever is there under its name, in one transaction.

        Args:
            family: ``inet`` or ``bridge``.
            protection: who is never touched.
            measures: what is in force.
            now: seconds, of the same clock as the measures' ends.
        """
        lines = [f"chain {self.owner} {{\n}}"]
        for version in (4, 6):
            kind, _ = _TYPES[version]
            protected = ", ".join(map(str, protection.networks(version)))
            lines.append(f"set protected{version} {{ type {kind}; flags interval; elements = {{ {protected} }}; }}")
            lines.append(_timed_set(_set_name("quarantine", version, 0), version))
            for rate in self._rates:
                lines.append(_timed_set(_set_name("throttle", version, rate), version))
                for way in ("from", "to"):
                    lines.append(
                        f"set {way}{version}_{rate} {{ type {kind}; flags dynamic,timeout; timeout {METER_S}s; "
                        f"size {SET_SIZE}; }}"
                    )
        for hook in ("forward",) if family == "bridge" else ("forward", "input", "output"):
            lines += [
                f"chain {hook} {{",
                f"type filter hook {hook} priority {PRIORITY}; policy accept;",
                *self._rules(hook),
                "}",
            ]
        timed = [add for m in measures for add in self._elements(family, m, now)]
        return "\n".join([*self._replace(family), f"table {family} {self.table} {{", *lines, "}", *timed, ""])

    def begin(self, families: Iterable[Family], measure: Measure, now: float) -> str:
        """Put a measure into force, or draw it out."""
        lines = []
        for family in families:
            lines += self._ends(family, measure.kind, measure.address)
            lines += self._elements(family, measure, now)
        return "\n".join([*lines, ""])

    def end(self, families: Iterable[Family], kind: MeasureKind, address: Address) -> str:
        """End a measure; also where there is none (it may have timed out a moment ago)."""
        return "\n".join([line for family in families for line in self._ends(family, kind, address)] + [""])

    def protect(self, families: Iterable[Family], protection: Protection) -> str:
        """Change who is never touched."""
        lines = []
        for family in families:
            for version in (4, 6):
                name = f"{family} {self.table} protected{version}"
                elements = ", ".join(map(str, protection.networks(version)))
                lines += [f"flush set {name}", f"add element {name} {{ {elements} }}"]
        return "\n".join([*lines, ""])

    def remove(self, family: Family) -> str:
        """Remove the table, whether it is there or not; nothing else."""
        return "\n".join([*self._replace(family), ""])

    def _replace(self, family: Family) -> list[str]:
        # To add what is there changes nothing, and makes that the deletion never fails.
        return [f"add table {family} {self.table}", f"delete table {family} {self.table}"]

    def _rules(self, hook: str) -> Iterator[str]:
        for version in (4, 6):
            _, ip = _TYPES[version]
            client, server = _DHCP[version]
            if hook == "input":
                yield f"{ip} saddr @quarantined{version} udp sport {client} udp dport {server} return"
            elif hook == "output":
                yield f"{ip} daddr @quarantined{version} udp sport {server} udp dport {client} return"
            for way, side in (("from", "saddr"), ("to", "daddr")):
                if (hook, way) in (("input", "to"), ("output", "from")):
                    continue  # this machine's own side, which is never touched
                free = f"{ip} {side} != @protected{version}"
                yield f"{ip} {side} @quarantined{version} {free} counter drop"
                for rate in self._rates:
                    limit = f"limit rate over {rate} kbytes/second burst {BURST_KBYTES} kbytes"
                    meter = f"update @{way}{version}_{rate} {{ {ip} {side} {limit} }}"
                    yield f"{ip} {side} @throttled{version}_{rate} {free} {meter} counter drop"

    def _elements(self, family: Family, measure: Measure, now: float) -> list[str]:
        """The element of a measure, with what is left of its time."""
        left_ms = math.ceil((measure.until - now) * 1000)
        if left_ms <= 0:
            return []
        name = _set_name(measure.kind, measure.address.version, measure.kbytes_per_s)
        return [f"add element {family} {self.table} {name} {{ {measure.address} timeout {left_ms}ms }}"]

    def _ends(self, family: Family, kind: MeasureKind, address: Address) -> list[str]:
        version = address.version
        rates: Iterable[int] = self._rates if kind == "throttle" else (0,)
        lines = []
        for name in (f"{family} {self.table} {_set_name(kind, version, rate)}" for rate in rates):
            lines += [f"add element {name} {{ {address} }}", f"delete element {name} {{ {address} }}"]
        return lines


def _set_name(kind: MeasureKind, version: int, rate: int) -> str:
    return f"quarantined{version}" if kind == "quarantine" else f"throttled{version}_{rate}"


def _timed_set(name: str, version: int) -> str:
    return f"set {name} {{ type {_TYPES[version][0]}; flags timeout; size {SET_SIZE}; }}"
