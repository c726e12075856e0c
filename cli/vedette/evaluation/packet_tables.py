"""Packets that are given as rows of a table, as the device's own windower takes them.

Such a table tells less than a capture: no names in DNS queries, no sequence numbers, no types of ICMP. As of a capture
whose packets were cut behind their headers, queries are told by the port alone; and as retransmissions only repeated
SYNs and FINs count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vedette.evaluation.datasets import Recording
from vedette_device.features.addresses import address_text
from vedette_device.features.network import NetworkWindower
from vedette_device.features.windows import Window
from vedette_device.sources.application import DNS_PORT
from vedette_device.sources.dissect import SIZE_BYTES_MAX
from vedette_device.sources.link import ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6
from vedette_device.sources.packets import ARP, NO_QUERY, TCP, UDP, PacketBatch
from vedette_schemas.errors import PeerError
from vedette_schemas.features import NETWORK_FLOWS

Array = npt.NDArray[Any]

ETHERNET_BYTES: Final = 14
ARP_BYTES: Final = 28
BETWEEN_CAPTURES_S: Final = 3600.0
"""Seconds put between two captures of a device that are joined: its past is forgotten in between."""
PHASE_STEP: Final = 0.6180339887498949
"""Part of a window by which captures that do not tell their time of day are shifted against each other, modulo one: on
a gateway no window waits for a device. Multiples of the golden section spread evenly."""
DEVICE: Final = (192 << 24) | (168 << 16) | 2
"""192.168.0.2, the device whose table it is."""
PEER_NETWORKS: Final = ((172 << 24) | (16 << 16), (198 << 24) | (18 << 16), 239 << 24)
"""Where peers are put that are known by kind and number only: on the local network (172.16.0.0/16), in the Internet
(198.18.0.0/16), multicast and broadcast (239.0.0.0/16)."""
TIME_S_MAX: Final = 1e9
"""Longest capture, in seconds: far more than any, and its nanoseconds are still whole numbers."""
HIGHEST: Final[Mapping[str, float]] = {
    "time_s": TIME_S_MAX,
    "size": SIZE_BYTES_MAX,
    "protocol": ARP,
    "source_port": 0xFFFF,
    "target_port": 0xFFFF,
    "tcp_flags": 0xFF,
    "mqtt_type": 15,
}
"""Largest number of each column."""
_MAPPED: Final = 0xFFFF << 32
_NS: Final = 1e9


@dataclass(frozen=True, slots=True, eq=False)
class PacketTable:
    """Packets of one capture, in any order.

    Attributes:
        name: of the file, for messages.
        time_s: ``(n,) float64`` seconds from 0 on, at most `TIME_S_MAX`.
        size: ``(n,)`` bytes from the network header on.
        outgoing: ``(n,) bool`` whether the device sent it, or received it.
        device: ``(n,)`` the device's IPv4 address as a number.
        peer: ``(n,)`` the other end's.
        protocol: ``(n,)`` IP protocol number, or `ARP`.
        source_port: ``(n,)``, 0 where there is none.
        target_port: ``(n,)``.
        tcp_flags: ``(n,)``, 0 for anything but TCP.
        mqtt_type: ``(n,)`` control packet type of the first MQTT packet in the segment, else 0.

    Raises:
        PeerError: a number that no packet has.
    """

    name: str
    time_s: Array
    size: Array
    outgoing: Array
    device: Array
    peer: Array
    protocol: Array
    source_port: Array
    target_port: Array
    tcp_flags: Array
    mqtt_type: Array

    def __post_init__(self) -> None:
        for name, most in HIGHEST.items():
            values = getattr(self, name)
            if len(values) and not (values.min() >= 0 and values.max() <= most):  # NaN is neither
                raise PeerError(
                    f"{self.name}: found {name} from {values.min()} to {values.max()}, expected 0 to {most:.0f}"
                )

    def batch(self, start_s: float) -> PacketBatch:
        """The packets in the order of time, the table's second 0 at ``start_s``."""
        order = np.argsort(self.time_s, kind="stable")
        n = len(order)
        tcp, udp = self.protocol == TCP, self.protocol == UDP
        ports = (tcp | udp) & ((self.source_port != 0) | (self.target_port != 0))
        device, peer = (ends.astype(np.uint64) | np.uint64(_MAPPED) for ends in (self.device, self.peer))
        packets = PacketBatch(
            time_ns=np.round((start_s + self.time_s) * _NS).astype(np.int64),
            size=self.size.astype(np.int32),
            source_hi=np.zeros(n, np.uint64),
            source_lo=np.where(self.outgoing, device, peer),
            target_hi=np.zeros(n, np.uint64),
            target_lo=np.where(self.outgoing, peer, device),
            protocol=self.protocol.astype(np.uint16),
            has_ports=ports,
            source_port=np.where(ports, self.source_port, 0).astype(np.uint16),
            target_port=np.where(ports, self.target_port, 0).astype(np.uint16),
            tcp_flags=np.where(tcp, self.tcp_flags, 0).astype(np.uint8),
            sequence=np.zeros(n, np.uint32),
            payload=np.zeros(n, np.int32),  # else every second segment of a flow would look like a repeated one
            icmp_type=np.full(n, -1, np.int16),
            dns_name_length=np.where(udp & (self.target_port == DNS_PORT), 0, NO_QUERY).astype(np.int16),
            mqtt_type=self.mqtt_type.astype(np.uint8),
            fragment=np.zeros(n, bool),
        )
        return packets.take(order)


def typed_peers(name: str, columns: Mapping[str, Array]) -> PacketTable:
    """IP and ARP packets of a table of frames whose peers are known by kind and number.

    Args:
        name: of the file, for messages.
        columns: ``t`` seconds, ``len`` bytes of the frame, ``dir`` (1 from the device, −1 to it, 0 neither),
            ``ethertype``, ``ip_proto``, ``sport``, ``dport``, ``tcp_flags``, ``peer_type`` (0 local, 1 Internet, 2
            multicast or broadcast), ``peer_id``; ``(n,)`` each.

    Raises:
        PeerError: a kind of peer or a number that cannot be.
    """
    kind = columns["ethertype"].astype(np.int64)
    known = np.isin(kind, (ETHERTYPE_IPV4, ETHERTYPE_ARP, ETHERTYPE_IPV6)) & (columns["dir"] != 0)
    kept = {key: values[known].astype(np.float64 if key == "t" else np.int64) for key, values in columns.items()}
    arp, peers = kept["ethertype"] == ETHERTYPE_ARP, kept["peer_id"]
    odd = ~np.isin(kept["peer_type"], range(len(PEER_NETWORKS))) | (peers < 0) | (peers >= 1 << 16)
    if odd.any():
        raise PeerError(
            f"{name}: found {int(odd.sum())} peers of another form, expected kinds 0 to 2 and 16-bit numbers"
        )
    return PacketTable(
        name=name,
        time_s=kept["t"],
        size=np.where(arp, ARP_BYTES, np.maximum(kept["len"] - ETHERNET_BYTES, 0)),
        outgoing=kept["dir"] > 0,
        device=np.full(len(arp), DEVICE),
        peer=np.array(PEER_NETWORKS)[kept["peer_type"]] + peers,
        protocol=np.where(arp, ARP, kept["ip_proto"]),
        source_port=kept["sport"],
        target_port=kept["dport"],
        tcp_flags=kept["tcp_flags"],
        mqtt_type=np.zeros(len(arp), np.int64),
    )


def windows_of(table: PacketTable, number: int = 0) -> list[Window]:
    """Windows of the table's devices, as if it were the first that a gateway sees of them.

    Args:
        table: packets.
        number: of the capture among those of its device, from 0 on; see `PHASE_STEP`.
    """
    windower = NetworkWindower()
    batch = table.batch(number * PHASE_STEP % 1.0 * NETWORK_FLOWS.window_s)
    windows = windower.push(batch) + windower.flush()
    devices = {address_text(0, _MAPPED | int(address)) for address in np.unique(table.device)}
    return [window for window in windows if window.entity in devices]


def one_after_another(device: str, captures: Iterable[tuple[Sequence[Window], int]]) -> Recording:
    """Captures of a device as one recording, `BETWEEN_CAPTURES_S` between each two.

    Args:
        device: name.
        captures: windows of ``NETWORK_FLOWS`` in the order of time, and 0 or 1 whether it is an attack as a whole;
            a window of an attack in which no packet went has the label −1.
    """
    windows: list[Window] = []
    labels: list[int] = []
    breaks: list[float] = []
    clock_s = 0.0
    packets = [NETWORK_FLOWS.index(name) for name in ("packets_in", "packets_out")]
    for capture, label in captures:
        if not capture:
            continue
        if windows:
            breaks.append(clock_s)
        shift_s = clock_s - capture[0].start_s
        for window in capture:
            windows.append(Window(window.entity, window.start_s + shift_s, window.end_s + shift_s, window.values))
            labels.append(label if not label or window.values[packets].sum() > 0 else -1)
        clock_s = windows[-1].end_s + BETWEEN_CAPTURES_S
    order = sorted(range(len(windows)), key=lambda i: windows[i].end_s)
    marks = np.array([labels[i] for i in order], np.int8)
    return Recording(device, tuple(windows[i] for i in order), marks, breaks=tuple(breaks))
