"""What the kernel says is this machine's own, a broadcast address, or a next hop: what must never be cut off.

Asked by rtnetlink, over all routing tables: no program is needed, and no right.

Source: rtnetlink(7), netlink(7); linux/rtnetlink.h; RFC 3549 §2–3.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from vedette_schemas.errors import TransientError

ANSWER_S: Final = 5.0
"""The kernel answers at once; this is only so that nothing waits for ever."""
BUFFER_BYTES: Final = 1 << 20
MESSAGES_MAX: Final = 1_000_000
"""A router with a full table of the Internet has about as many routes."""

_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_RTM_NEWADDR, _RTM_GETADDR, _RTM_NEWROUTE, _RTM_GETROUTE = 20, 22, 24, 26
_NLM_F_REQUEST_DUMP: Final = 0x301
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST = 1, 2, 4
_RTA_DST, _RTA_GATEWAY, _RTA_MULTIPATH, _RTA_VIA = 1, 5, 9, 18
_RTN_LOCAL, _RTN_BROADCAST, _RTN_ANYCAST = 2, 3, 4
_TYPE_BITS: Final = 0x3FFF
"""The upper two bits of an attribute's type are flags."""


@dataclass(frozen=True, slots=True)
class OwnAddresses:
    """Networks in text, sorted.

    Attributes:
        local: this machine's own.
        broadcast: broadcast and anycast addresses of its interfaces.
        gateways: next hops of its routes, the default gateway among them.
    """

    local: tuple[str, ...]
    broadcast: tuple[str, ...]
    gateways: tuple[str, ...]


def own_addresses() -> OwnAddresses:
    """Ask the kernel.

    Raises:
        TransientError: it does not answer, or not in full.
    """
    local: set[str] = set()
    broadcast: set[str] = set()
    gateways: set[str] = set()
    for kind, payload in _dump(_RTM_GETADDR, struct.pack("=BBBBI", 0, 0, 0, 0, 0)):
        if kind == _RTM_NEWADDR:
            for attribute, value in _attributes(payload[8:]):
                if attribute == _IFA_LOCAL or (attribute == _IFA_ADDRESS and payload[0] == socket.AF_INET6):
                    local.add(_text(value))
                elif attribute == _IFA_BROADCAST:
                    broadcast.add(_text(value))
    for kind, payload in _dump(_RTM_GETROUTE, bytes(12)):
        if kind != _RTM_NEWROUTE or payload[0] not in (socket.AF_INET, socket.AF_INET6):
            continue
        prefix, route = payload[1], payload[7]
        for attribute, value in _attributes(payload[12:]):
            if attribute == _RTA_DST and route == _RTN_LOCAL:
                local.add(f"{_text(value)}/{prefix}")
            elif attribute == _RTA_DST and route in (_RTN_BROADCAST, _RTN_ANYCAST):
                broadcast.add(f"{_text(value)}/{prefix}")
            else:
                gateways.update(_next_hops(attribute, value))
    return OwnAddresses(tuple(sorted(local)), tuple(sorted(broadcast)), tuple(sorted(gateways)))


def _next_hops(attribute: int, value: bytes) -> Iterator[str]:
    if attribute == _RTA_GATEWAY:
        yield _text(value)
    elif attribute == _RTA_VIA and len(value) in (6, 18):
        yield _text(value[2:])
    elif attribute == _RTA_MULTIPATH:
        while len(value) >= 8:
            length = struct.unpack_from("=H", value)[0]
            if length < 8:
                return
            for inner, address in _attributes(value[8:length]):
                yield from _next_hops(inner, address)
            value = value[(length + 3) & ~3 :]


def _dump(kind: int, body: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and payload of every message of an answer."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as netlink:
            netlink.settimeout(ANSWER_S)
            netlink.bind((0, 0))
            netlink.send(struct.pack("=IHHII", 16 + len(body), kind, _NLM_F_REQUEST_DUMP, 1, 0) + body)
            for _ in range(MESSAGES_MAX):
                data = netlink.recv(BUFFER_BYTES)
                while len(data) >= 16:
                    length, found = struct.unpack_from("=IH", data)
                    payload = data[16:length]
                    if found == _NLMSG_DONE:
                        return
                    if found == _NLMSG_ERROR:
                        raise OSError(-struct.unpack_from("=i", payload)[0], "the kernel refused")
                    yield found, payload
                    data = data[(length + 3) & ~3 :] if length >= 16 else b""
    except OSError as fault:
        words = os.strerror(fault.errno) if fault.errno else str(fault)
        raise TransientError(f"own addresses: found no answer of the kernel ({words}), expected its list") from fault
    raise TransientError(f"own addresses: found no end of the list after {MESSAGES_MAX} messages")


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            return
        yield kind & _TYPE_BITS, data[4:length]
        data = data[(length + 3) & ~3 :]


def _text(value: bytes) -> str:
    return str(IPv4Address(value) if len(value) == 4 else IPv6Address(value))
