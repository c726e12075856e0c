"""Addresses as numbers: which are local, which are internal, and how a local one is written.

An address is a pair of 64-bit halves (IPv4 as its IPv4-mapped IPv6 address), and its *key* one 64-bit number: for IPv4
the lower half itself, for IPv6 a mix of both halves with the top bit set.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vedette_schemas.errors import ConfigError

PRIVATE_NETWORKS = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "fe80::/10")
"""Networks that are local where none are configured. Source: RFC 1918, RFC 4193, RFC 4291 §2.5.6."""

NETWORKS_MAX = 64
"""Most local networks: each costs a comparison a packet."""

_INTERNAL_BESIDE_LOCAL = ("224.0.0.0/4", "255.255.255.255/32", "169.254.0.0/16", "0.0.0.0/32", "ff00::/8", "fe80::/10")
"""Never routed to the Internet: multicast, broadcast and link-local. A talk with them is internal."""

_MAPPED_PREFIX = 0xFFFF << 32
_IPV6_KEY = np.uint64(1 << 63)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def mix(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread the bits of 64-bit numbers; distinct ones stay distinct.

    Source: the finaliser of Steele, Lea, Flood, *Fast Splittable Pseudorandom Number Generators* (2014), fig. 16.
    """
    numbers = (numbers ^ (numbers >> np.uint64(30))) * _MIX_1
    numbers = (numbers ^ (numbers >> np.uint64(27))) * _MIX_2
    return numbers ^ (numbers >> np.uint64(31))


def address_keys(hi: NDArray[np.uint64], lo: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Key of each address.

    Args:
        hi: ``(n,) uint64``, upper halves.
        lo: ``(n,) uint64``, lower halves.

    Returns:
        ``(n,) uint64``; two IPv6 addresses share one with a probability of 2⁻⁶³.
    """
    v6 = np.flatnonzero(~is_ipv4(hi, lo))
    if not len(v6):
        return lo
    keys = lo.copy()
    keys[v6] = mix(lo[v6] ^ mix(hi[v6])) | _IPV6_KEY
    return keys


def is_ipv4(hi: NDArray[np.uint64], lo: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Whether an address is IPv4-mapped."""
    return np.asarray((hi == 0) & ((lo >> np.uint64(32)) == np.uint64(0xFFFF)))


def address_text(hi: int, lo: int) -> str:
    """An address as people write it."""
    if hi == 0 and lo >> 32 == 0xFFFF:
        return str(ipaddress.IPv4Address(lo & 0xFFFF_FFFF))
    return str(ipaddress.IPv6Address((hi << 64) | lo))


class _Prefixes:
    """A set of networks that addresses are compared with."""

    def __init__(self, networks: Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> None:
        low64 = (1 << 64) - 1
        self._v4: list[tuple[np.uint64, np.uint64]] = []
        self._v6: list[tuple[np.uint64, np.uint64, np.uint64, np.uint64]] = []
        for network in networks:
            mask, number = int(network.netmask), int(network.network_address)
            if network.version == 4:
                self._v4.append((np.uint64(mask), np.uint64(number)))
            else:
                halves = mask >> 64, number >> 64, mask & low64, number & low64
                self._v6.append(
                    (np.uint64(halves[0]), np.uint64(halves[1]), np.uint64(halves[2]), np.uint64(halves[3]))
                )

    def hold(self, hi: NDArray[np.uint64], lo: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Whether each address lies in one of the networks, ``(n,) bool``."""
        inside = np.zeros(len(lo), dtype=np.bool_)
        for mask, number in self._v4:
            inside |= (lo & mask) == number
        v4 = is_ipv4(hi, lo)
        if v4.all():
            return inside
        inside &= v4
        for mask_hi, number_hi, mask_lo, number_lo in self._v6:
            inside |= ~v4 & ((hi & mask_hi) == number_hi) & ((lo & mask_lo) == number_lo)
        return inside


class LocalNetworks:
    """The networks whose devices are watched.

    Args:
        networks: in CIDR form, for example ``192.168.1.0/24``.

    Raises:
        ConfigError: none, too many, or one that is no network.
    """

    def __init__(self, networks: Sequence[str]) -> None:
        if not 0 < len(networks) <= NETWORKS_MAX:
            raise ConfigError(f"{len(networks)} local networks, expected 1 to {NETWORKS_MAX}")
        parsed = []
        for text in networks:
            try:
                parsed.append(ipaddress.ip_network(text, strict=True))
            except ValueError as error:
                raise ConfigError(
                    f"local network {text!r}: {error}; expected a network such as 192.168.1.0/24 or fd00::/8"
                ) from None
        self._local = _Prefixes(parsed)
        beside = [ipaddress.ip_network(text) for text in _INTERNAL_BESIDE_LOCAL]
        self._internal = _Prefixes([*parsed, *beside])
        # An IPv4 network's first and last address stand for all its hosts (but in a /31 and /32, RFC 3021).
        ends = [
            address
            for network in parsed
            if network.version == 4 and network.prefixlen < 31
            for address in (network.network_address, network.broadcast_address)
        ]
        self._ends = np.array([int(address) | _MAPPED_PREFIX for address in ends], dtype=np.uint64)

    def local(self, hi: NDArray[np.uint64], lo: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Whether an address may be that of a local device: inside a network, and not its broadcast address."""
        inside = self._local.hold(hi, lo)
        for end in self._ends:
            inside &= (lo != end) | (hi != 0)
        return inside

    def internal(self, hi: NDArray[np.uint64], lo: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Whether an address is local, multicast, broadcast or link-local: traffic with it does not leave the site."""
        return self._internal.hold(hi, lo)
