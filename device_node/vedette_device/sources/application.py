"""The two application protocols that features name: DNS queries and MQTT control packets.

Only the first message of a packet is looked at. Messages behind it in the same segment are not counted: that would need
reassembly, and a device's habit shows in the first ones just as well.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vedette_device.sources.packets import NO_QUERY, TCP, UDP

DNS_PORT = 53
DNS_HEADER_BYTES = 12

DNS_NAME_BYTES_MAX = 255
"""Longest encoded name. Source: RFC 1035 §2.3.4."""

DNS_LABEL_BYTES_MAX = 63
"""Longest label; a larger length byte is a compression pointer or garbage, and ends the name."""

MQTT_PORTS = (1883, 8883)
MQTT_PUBLISH, MQTT_SUBSCRIBE = 3, 8


def _mqtt_types() -> NDArray[np.uint8]:
    """Control packet type by first byte, 0 where the flags are not those that MQTT 3.1.1 §2.2.2 asks for.

    The flags tell a plain MQTT packet from a TLS record on port 8883 (first byte 0x14 to 0x17).
    """
    table = np.zeros(256, dtype=np.uint8)
    for first in range(256):
        kind, flags = first >> 4, first & 0x0F
        if kind == MQTT_PUBLISH:
            valid = flags & 0x06 != 0x06
        elif kind in (6, 8, 10):
            valid = flags == 0x02
        else:
            valid = kind != 0 and flags == 0
        table[first] = kind if valid else 0
    return table


MQTT_TYPES = _mqtt_types()


def mqtt_types(
    data: NDArray[np.uint8],
    *,
    protocol: NDArray[np.int64],
    source_port: NDArray[np.int64],
    target_port: NDArray[np.int64],
    payload_start: NDArray[np.int64],
    payload_captured: NDArray[np.int64],
) -> NDArray[np.uint8]:
    """MQTT control packet type of each packet's first payload byte.

    Args:
        data: the bytes behind all indices.
        protocol: ``(n,) int64``, IP protocol.
        source_port: ``(n,) int64``.
        target_port: ``(n,) int64``.
        payload_start: ``(n,) int64``, index of the first payload byte.
        payload_captured: ``(n,) int64``, payload bytes that are in ``data``.

    Returns:
        ``(n,) uint8``, 0 where there is none.
    """
    types = np.zeros(len(protocol), dtype=np.uint8)
    on_port = np.zeros(len(protocol), dtype=np.bool_)
    for port in MQTT_PORTS:
        on_port |= (source_port == port) | (target_port == port)
    rows = np.flatnonzero(on_port & (protocol == TCP) & (payload_captured > 0))
    types[rows] = MQTT_TYPES[data[payload_start[rows]]]
    return types


def dns_name_lengths(
    data: NDArray[np.uint8],
    *,
    protocol: NDArray[np.int64],
    target_port: NDArray[np.int64],
    payload: NDArray[np.int64],
    payload_start: NDArray[np.int64],
    payload_captured: NDArray[np.int64],
) -> NDArray[np.int16]:
    """Length of the first name of each DNS query, in characters with its dots.

    Where a capture was cut behind the transport header, the port alone decides, and the length is 0. Over TCP the
    message follows two bytes of length, and only a whole header counts.

    Args:
        data: the bytes behind all indices.
        protocol: ``(n,) int64``, IP protocol.
        target_port: ``(n,) int64``.
        payload: ``(n,) int64``, payload bytes on the wire.
        payload_start: ``(n,) int64``, index of the first payload byte.
        payload_captured: ``(n,) int64``, payload bytes that are in ``data``.

    Returns:
        ``(n,) int16``, ``NO_QUERY`` for packets that are no query.
    """
    lengths = np.full(len(protocol), NO_QUERY, dtype=np.int16)
    rows = np.flatnonzero((target_port == DNS_PORT) & (payload > 0) & ((protocol == UDP) | (protocol == TCP)))
    if not len(rows):
        return lengths
    prefix = np.where(protocol[rows] == TCP, 2, 0)
    start = payload_start[rows] + prefix
    end = payload_start[rows] + payload_captured[rows]
    readable = end - start >= DNS_HEADER_BYTES
    blind = ~readable & (protocol[rows] == UDP) & (payload[rows] >= DNS_HEADER_BYTES)
    lengths[rows[blind]] = 0
    rows, start, end = rows[readable], start[readable], end[readable]
    # QR (response) and opcode (anything but a standard query) share the third byte. Source: RFC 1035 §4.1.1.
    standard = (data[start + 2] & 0xF8) == 0
    rows, start, end = rows[standard], start[standard], end[standard]
    lengths[rows] = _walk_names(data, start + DNS_HEADER_BYTES, end)
    return lengths


def _walk_names(data: NDArray[np.uint8], start: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.int64]:
    """Step through the labels of all names at once, one label a turn."""
    encoded = np.zeros(len(start), dtype=np.int64)
    walking = np.flatnonzero(start < end)
    at = start.copy()
    # Every turn adds at least two bytes to a name, so the loop ends after 128 turns at most.
    while len(walking):
        label = data[at[walking]].astype(np.int64)
        goes_on = (label > 0) & (label <= DNS_LABEL_BYTES_MAX)
        walking, label = walking[goes_on], label[goes_on]
        encoded[walking] += label + 1
        at[walking] += label + 1
        walking = walking[(at[walking] < end[walking]) & (encoded[walking] < DNS_NAME_BYTES_MAX)]
    return np.minimum(np.maximum(encoded - 1, 0), DNS_NAME_BYTES_MAX)
