"""A live interface, through a ring of memory that the kernel fills (AF_PACKET with TPACKET_V3).

Needs the capability ``CAP_NET_RAW`` and nothing else. Packets that find the ring full are dropped by the kernel, and
counted. Source: Linux ``Documentation/networking/packet_mmap.rst`` and ``<linux/if_packet.h>``.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import select
import socket
import struct
from collections import Counter
from collections.abc import Mapping

import numpy as np

from vedette_device.sources.dissect import REFUSED_REASONS, dissect
from vedette_device.sources.errors import LinkTypeError, SourceError
from vedette_device.sources.interface import PACKETS_READ_DEFAULT, PACKETS_READ_MAX
from vedette_device.sources.link import ETHERNET, RAW
from vedette_device.sources.packets import Frames, PacketBatch, padded
from vedette_schemas.errors import TransientError

BLOCK_BYTES = 1 << 17
"""Bytes of one block of the ring: the largest offloaded packet (64 kB) and its header fit."""

RING_BYTES_DEFAULT = 16 << 20
"""Default ring: 16 MB hold about 0.2 s at a gigabit, and a gateway with 256 MB of memory can spare them."""

RING_BYTES_MAX = 256 << 20

READ_BYTES = 2 << 20
"""Bytes after which one ``read`` stops, so that a burst of large packets does not hold up everything else."""

BLOCK_TIMEOUT_MS = 50
"""The kernel hands over a block that is not full after this time: far below a window, far above a busy loop."""

COUNTERS = ("packets", "frames", *REFUSED_REASONS, "kernel_dropped", "kernel_frozen", "outgoing_copies")
"""What ``LiveInterface.counters`` holds; ``kernel_dropped`` are packets that found the ring full."""

_SOL_PACKET = 263
_PACKET_RX_RING, _PACKET_STATISTICS, _PACKET_VERSION = 5, 6, 10
_TPACKET_V3 = 2
_ETH_P_ALL = 3
_TP_STATUS_KERNEL, _TP_STATUS_USER = 0, 1
_PACKET_OUTGOING = 4
_SIOCGIFHWADDR, _IFREQ_BYTES = 0x8927, 40
_ARPHRD_ETHERNET, _ARPHRD_LOOPBACK, _ARPHRD_NONE, _ARPHRD_RAWIP = 1, 772, 65_534, 519
_LINK_BY_HARDWARE = {_ARPHRD_ETHERNET: ETHERNET, _ARPHRD_LOOPBACK: ETHERNET, _ARPHRD_NONE: RAW, _ARPHRD_RAWIP: RAW}

_BLOCK_HEADER = struct.Struct("=III")
"""status, number of packets, offset of the first packet; behind the version and the offset of a private area."""
_STATUS_AT = 8
_PACKET_HEADER = struct.Struct("=IIIIIIH")
"""offset of the next packet, seconds, nanoseconds, captured bytes, wire bytes, status, offset of the frame."""
_LINK_ADDRESS_AT = 48
"""Offset of the ``sockaddr_ll`` behind a ``tpacket3_hdr``."""
_PACKET_KIND_AT = _LINK_ADDRESS_AT + 10


class LiveInterface:
    """Packets of a network interface, both directions.

    ``read`` never waits. ``fileno`` becomes readable when a block is ready, at most ``BLOCK_TIMEOUT_MS`` behind its
    first packet, so that the source can be registered with an event loop.

    Args:
        name: interface name, for example ``eth0``.
        ring_bytes: memory of the ring, rounded up to whole blocks.

    Raises:
        SourceError: no such interface, no permission, a ring that is too large.
        LinkTypeError: the interface is neither Ethernet nor raw IP.
    """

    def __init__(self, name: str, *, ring_bytes: int = RING_BYTES_DEFAULT) -> None:
        if not 0 < ring_bytes <= RING_BYTES_MAX:
            raise SourceError(f"ring of {ring_bytes} bytes for {name}, expected 1 to {RING_BYTES_MAX}")
        self.name = name
        self._link = _link_of(name)
        self._counters: Counter[str] = Counter(dict.fromkeys(COUNTERS, 0))
        self._blocks = max(2, -(-ring_bytes // BLOCK_BYTES))
        self._block = 0
        self._left_in_block = 0
        self._next_packet = 0
        self._skip_outgoing = name == "lo"
        self._socket: socket.socket | None = _open_socket(name)
        try:
            self._ring = self._map_ring(self._socket)
            self._socket.bind((name, _ETH_P_ALL))
        except OSError as error:
            self._socket.close()
            raise SourceError(
                f"interface {name}: a capture ring of {self._blocks * BLOCK_BYTES} bytes was refused ({error}); "
                "choose a smaller ring_bytes"
            ) from error
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN | select.POLLERR)

    def _map_ring(self, packet_socket: socket.socket) -> mmap.mmap:
        packet_socket.setblocking(False)
        packet_socket.setsockopt(_SOL_PACKET, _PACKET_VERSION, _TPACKET_V3)
        frame_bytes = 2_048
        size = self._blocks * BLOCK_BYTES
        request = struct.pack(
            "=7I", BLOCK_BYTES, self._blocks, frame_bytes, size // frame_bytes, BLOCK_TIMEOUT_MS, 0, 0
        )
        packet_socket.setsockopt(_SOL_PACKET, _PACKET_RX_RING, request)
        return mmap.mmap(packet_socket.fileno(), size)

    def read(self, packets_max: int = PACKETS_READ_DEFAULT) -> PacketBatch | None:
        """Return what has come, perhaps an empty batch; ``None`` only after ``close``.

        Raises:
            TransientError: the interface is down or gone; open it again later.
        """
        if self._socket is None:
            return None
        frames = self._next_frames(max(1, min(packets_max, PACKETS_READ_MAX)))
        self._count_drops()
        if frames is None:
            self._check_interface()
            return PacketBatch.empty()
        batch, refused = dissect(frames)
        self._counters.update(refused)
        self._counters["frames"] += len(frames)
        self._counters["packets"] += len(batch)
        return batch

    def _next_frames(self, frames_max: int) -> Frames | None:
        """Copy packets out of the ring, block by block, up to a number of packets and of bytes."""
        parts: list[bytes] = []
        rows: list[tuple[int, int, int, int]] = []
        copied = 0
        while len(rows) < frames_max and copied < READ_BYTES and self._block_is_ours():
            part = self._copy_from_block(frames_max - len(rows), copied, rows)
            parts.append(part)
            copied += len(part)
        if not rows:
            return None
        table = np.array(rows, dtype=np.int64)
        link = np.full(len(rows), self._link, dtype=np.int64)
        return Frames(padded(b"".join(parts)), table[:, 0], table[:, 1], table[:, 2], table[:, 3], link)

    def _block_is_ours(self) -> bool:
        if self._left_in_block:
            return True
        at = self._block * BLOCK_BYTES
        status, packets, first = _BLOCK_HEADER.unpack_from(self._ring, at + _STATUS_AT)
        if not status & _TP_STATUS_USER:
            return False
        self._left_in_block, self._next_packet = packets, at + first
        if not packets:
            self._return_block()
        return True

    def _return_block(self) -> None:
        struct.pack_into("=I", self._ring, self._block * BLOCK_BYTES + _STATUS_AT, _TP_STATUS_KERNEL)
        self._block = (self._block + 1) % self._blocks

    def _copy_from_block(self, frames_max: int, shift: int, rows: list[tuple[int, int, int, int]]) -> bytes:
        """Append a row a packet, and return the bytes that the rows point into, ``shift`` bytes further on."""
        begin = end = self._next_packet
        taken = 0
        while self._left_in_block and taken < frames_max:
            header = self._next_packet
            following, seconds, part_ns, captured, wire, _, frame = _PACKET_HEADER.unpack_from(self._ring, header)
            if self._skip_outgoing and self._ring[header + _PACKET_KIND_AT] == _PACKET_OUTGOING:
                # The loopback interface shows every packet twice: when it leaves and when it arrives.
                self._counters["outgoing_copies"] += 1
            else:
                time_ns = seconds * 1_000_000_000 + part_ns
                rows.append((header + frame - begin + shift, captured, wire, time_ns))
                taken += 1
            end = header + frame + captured
            self._left_in_block -= 1
            self._next_packet = header + following
        data = self._ring[begin:end]
        if begin != end and not self._left_in_block:
            self._return_block()
        return data

    def _count_drops(self) -> None:
        assert self._socket is not None
        # Reading the statistics sets the kernel's own counters back to 0.
        statistics = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 12)
        _, dropped, frozen = struct.unpack("=III", statistics)
        self._counters["kernel_dropped"] += dropped
        self._counters["kernel_frozen"] += frozen

    def _check_interface(self) -> None:
        assert self._socket is not None
        for _, event in self._poll.poll(0):
            if event & select.POLLERR:
                code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if code:
                    reason = errno.errorcode.get(code, str(code))
                    raise TransientError(f"interface {self.name} is down ({reason}); waiting for it to come back")

    def fileno(self) -> int:
        """File number that becomes readable when packets are there; -1 after ``close``."""
        return self._socket.fileno() if self._socket is not None else -1

    def counters(self) -> Mapping[str, int]:
        """Counts by the names in ``COUNTERS``."""
        return dict(self._counters)

    def close(self) -> None:
        """Give the ring back to the kernel."""
        if self._socket is not None:
            self._poll.unregister(self._socket)
            self._ring.close()
            self._socket.close()
            self._socket = None


def _link_of(name: str) -> int:
    # Not from /sys, which may be that of another network namespace.
    known = sorted(each for _, each in socket.if_nameindex())
    if name not in known:
        raise SourceError(f"interface {name!r} does not exist, found: {', '.join(known) or 'none'}")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sH14x", name.encode(), 0).ljust(_IFREQ_BYTES, b"\0")
        try:
            answer = fcntl.ioctl(any_socket, _SIOCGIFHWADDR, request)
        except OSError as error:
            raise TransientError(f"interface {name} cannot be asked for its type now: {error}") from error
    (hardware,) = struct.unpack_from("H", answer, 16)
    if hardware not in _LINK_BY_HARDWARE:
        raise LinkTypeError(
            f"interface {name} has hardware type {hardware}, expected Ethernet (1), loopback (772) "
            "or raw IP (65534, 519)"
        )
    return _LINK_BY_HARDWARE[hardware]


def _open_socket(name: str) -> socket.socket:
    try:
        # Protocol 0: nothing arrives before the ring is there and the socket is bound.
        return socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    except PermissionError:
        raise SourceError(
            f"interface {name}: no permission for a raw socket; start with the capability CAP_NET_RAW "
            "(systemd: AmbientCapabilities=CAP_NET_RAW)"
        ) from None
    except OSError as error:
        raise TransientError(f"interface {name} cannot be opened now: {error}") from error
