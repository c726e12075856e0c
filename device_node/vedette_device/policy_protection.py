"""Addresses that no rule can cut off: what a quarantine must never cover, whatever names it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, collapse_addresses, ip_address, ip_network
from typing import Final

from vedette_schemas.errors import RefusedError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

SPECIAL: Final[tuple[Network, ...]] = tuple(
    ip_network(text)
    for text in ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4", "::/128", "::1/128", "ff00::/8")
)
"""This host, loopback, multicast, reserved with the broadcast: nobody's address. Source: RFC 6890, tables 1–20."""
BROADCAST_BITS_MAX: Final = 30
"""Networks with longer prefixes have no broadcast address. Source: RFC 3021 §2."""


@dataclass(frozen=True, slots=True)
class Protection:
    """Who may be cut off, and who never.

    Attributes:
        local: networks of the devices that are watched: nothing outside of them is ever touched.
        protected: network → whose it is (``this gateway``, ``the broker`` …).
    """

    local: tuple[Network, ...]
    protected: Mapping[Network, str]

    @classmethod
    def of(cls, local: Iterable[str], whose: Mapping[str, Sequence[str]]) -> Protection:
        """Protection in text.

        Args:
            local: the local networks.
            whose: whose it is → addresses or networks of theirs.

        Raises:
            ValueError: what is neither.
        """
        networks = tuple(_plain_network(text) for text in local)
        protected: dict[Network, str] = dict.fromkeys(SPECIAL, "nobody's")
        for network in networks:
            if isinstance(network, IPv4Network) and network.prefixlen <= BROADCAST_BITS_MAX:
                for address in (network.network_address, network.broadcast_address):
                    protected[IPv4Network(address)] = "a broadcast address"
        for owner, texts in whose.items():
            for text in texts:
                protected.setdefault(_plain_network(text), owner)
        return cls(networks, protected)

    def check(self, entity: str) -> Address:
        """The address of an entity that may be cut off.

        Raises:
            RefusedError: it may not, by the rule ``address`` (it is none), ``protected`` or ``elsewhere``.
        """
        try:
            address = plain_address(entity)
        except ValueError as fault:
            raise RefusedError(f"{entity!r} is no address: nothing can be cut off", rule="address") from fault
        for network, owner in self.protected.items():
            if address in network:
                raise RefusedError(f"{address} is protected ({owner}): it is never cut off", rule="protected")
        if not any(address in network for network in self.local):
            inside = ", ".join(map(str, self.local)) or "none"
            raise RefusedError(f"{address} is in none of the local networks ({inside})", rule="elsewhere")
        return address

    def networks(self, version: int) -> list[Network]:
        """Protected networks of IP version 4 or 6, merged, in order."""
        if version == 4:
            return list(collapse_addresses(n for n in self.protected if isinstance(n, IPv4Network)))
        return list(collapse_addresses(n for n in self.protected if isinstance(n, IPv6Network)))


def plain_address(text: str) -> Address:
    """The one form of an address: an IPv4 address that is mapped into IPv6 is that IPv4 address.

    Raises:
        ValueError: it is no address, or one of a zone (``fe80::1%eth0``).
    """
    address = ip_address(text)
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            raise ValueError(f"{text!r} has a zone")
        return address.ipv4_mapped or address
    return address


def _plain_network(text: str) -> Network:
    network = ip_network(text)
    mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
    return network if mapped is None else IPv4Network((mapped, max(network.prefixlen - 96, 0)))
