"""Link layers: from the first byte of a frame to its network header.

Source: the numbers and layouts are those of the tcpdump group's *Link-layer header types* (LINKTYPE_…).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vedette_device.sources.packets import Frames

ETHERNET, RAW_BSD, RAW_BSDI, RAW, LINUX_SLL, IPV4, IPV6, LINUX_SLL2 = 1, 12, 14, 101, 113, 228, 229, 276

LINK_TYPES: dict[int, str] = {
    ETHERNET: "Ethernet",
    RAW_BSD: "raw IP",
    RAW_BSDI: "raw IP",
    RAW: "raw IP",
    LINUX_SLL: "Linux cooked v1",
    IPV4: "raw IPv4",
    IPV6: "raw IPv6",
    LINUX_SLL2: "Linux cooked v2",
}
"""Link types that can be dissected."""

_OTHER_NAMES: dict[int, str] = {
    0: "BSD loopback",
    6: "Token Ring",
    9: "PPP",
    51: "PPPoE",
    104: "Cisco HDLC",
    105: "IEEE 802.11",
    108: "OpenBSD loopback",
    119: "IEEE 802.11 with Prism header",
    127: "IEEE 802.11 with radiotap",
    147: "user-defined 0",
    187: "Bluetooth HCI H4",
    189: "USB",
    195: "IEEE 802.15.4",
    201: "Bluetooth HCI H4 with direction",
    220: "USB (padded)",
    227: "CAN bus",
    230: "IEEE 802.15.4 without FCS",
    239: "NFLOG",
    251: "Bluetooth Low Energy",
    253: "Netlink",
}

ETHERTYPE_IPV4, ETHERTYPE_ARP, ETHERTYPE_IPV6 = 0x0800, 0x0806, 0x86DD
_VLAN_TAGS = (0x8100, 0x88A8, 0x9100)

VLAN_TAGS_MAX = 4
"""Tags that are looked behind: QinQ has two, some access networks stack three."""


def link_name(link: int) -> str:
    """Name of a link type for a message, with its number."""
    name = LINK_TYPES.get(link) or _OTHER_NAMES.get(link) or "unknown"
    return f"{name} (link type {link})"


def supported_links() -> str:
    """The link types that can be read, for a message."""
    return ", ".join(f"{name} ({link})" for link, name in LINK_TYPES.items())


def rows_at(data: NDArray[np.uint8], start: NDArray[np.int64], width: int) -> NDArray[np.uint8]:
    """Copy ``width`` bytes from each start into a matrix.

    Args:
        data: ``(m,) uint8`` with padding (see ``Frames``).
        start: ``(n,) int64``, none beyond the data proper.
        width: bytes a row, at most ``PADDING_BYTES``.

    Returns:
        ``(n, width) uint8``, contiguous.
    """
    return np.lib.stride_tricks.sliding_window_view(data, width)[start]


def network_headers(frames: Frames) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find the network header of every frame.

    Args:
        frames: frames of supported link types.

    Returns:
        ``start (n,) int64``: index of the network header, and ``ethertype (n,) int64``: what it is; -1 where the
        frame is too short to tell.
    """
    if not len(frames):
        return frames.start, np.zeros(0, dtype=np.int64)
    first = int(frames.link[0])
    if bool((frames.link == first).all()):
        return _of_one_link(frames.data, frames.start, frames.captured, first)
    start = frames.start.copy()
    ethertype = np.full(len(frames), -1, dtype=np.int64)
    for link in np.unique(frames.link):
        rows = np.flatnonzero(frames.link == link)
        start[rows], ethertype[rows] = _of_one_link(frames.data, frames.start[rows], frames.captured[rows], int(link))
    return start, ethertype


def _of_one_link(
    data: NDArray[np.uint8], start: NDArray[np.int64], captured: NDArray[np.int64], link: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    if link == ETHERNET:
        return _ethernet(data, start, captured)
    if link == LINUX_SLL:
        return _fixed(data, start, captured, header_bytes=16, type_at=14)
    if link == LINUX_SLL2:
        return _fixed(data, start, captured, header_bytes=20, type_at=0)
    if link == IPV4:
        return start, np.where(captured > 0, ETHERTYPE_IPV4, -1)
    if link == IPV6:
        return start, np.where(captured > 0, ETHERTYPE_IPV6, -1)
    version = data[start] >> 4
    ethertype = np.select([captured < 1, version == 4, version == 6], [-1, ETHERTYPE_IPV4, ETHERTYPE_IPV6], 0)
    return start, ethertype.astype(np.int64)


def _fixed(
    data: NDArray[np.uint8],
    start: NDArray[np.int64],
    captured: NDArray[np.int64],
    *,
    header_bytes: int,
    type_at: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    header = rows_at(data, start, header_bytes)
    ethertype = header.view(">u2")[:, type_at // 2].astype(np.int64)
    ethertype[captured < header_bytes] = -1
    return start + np.minimum(captured, header_bytes), ethertype


def _ethernet(
    data: NDArray[np.uint8], start: NDArray[np.int64], captured: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    network, ethertype = _fixed(data, start, captured, header_bytes=14, type_at=12)
    for _ in range(VLAN_TAGS_MAX):
        tagged = np.flatnonzero(np.isin(ethertype, _VLAN_TAGS))
        if not len(tagged):
            break
        left = start[tagged] + captured[tagged] - network[tagged]
        inner = rows_at(data, network[tagged], 4).view(">u2")[:, 1].astype(np.int64)
        inner[left < 4] = -1
        ethertype[tagged] = inner
        network[tagged] += np.minimum(left, 4)
    return network, ethertype
