"""Modbus TCP on the wire, and what a channel's registers mean.

Source: *MODBUS Application Protocol Specification V1.1b3* (§6.3, §6.4, §7) and *MODBUS Messaging on TCP/IP
Implementation Guide V1.0b* (§3.1.3).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from vedette_schemas.errors import ConfigError, PeerError

HEADER_BYTES: Final = 7
"""Transaction, protocol, length (two bytes each) and unit."""

BODY_BYTES_MAX: Final = 253
"""Longest protocol data unit: what a serial line carries, less address and checksum (§4.1 of the specification)."""

REGISTERS_MAX: Final = 125
"""Most registers of one request (§6.3)."""

HOLDING, INPUT = 3, 4
"""Function codes *read holding registers* and *read input registers*."""

EXCEPTIONS: Final = {
    1: "illegal function",
    2: "illegal data address",
    3: "illegal data value",
    4: "server device failure",
    5: "acknowledge",
    6: "server device busy",
    8: "memory parity error",
    10: "gateway path unavailable",
    11: "gateway target failed to respond",
}
"""Exception codes (§7)."""

Kind = Literal["int16", "uint16", "int32", "uint32", "float32"]

_FORMATS: Final[Mapping[Kind, str]] = {"int16": ">h", "uint16": ">H", "int32": ">i", "uint32": ">I", "float32": ">f"}


@dataclass(frozen=True, slots=True)
class Register:
    """Where one channel's number lies, and what it means.

    Attributes:
        channel: name of the channel.
        address: of its first register, counted from 0 as on the wire (register 40001 of old manuals is holding 0).
        table: ``holding`` or ``input``.
        kind: type of the number; those of 32 bits take two registers.
        word_order: which register of a 32-bit number comes first: ``big`` for the upper half, ``little`` for the lower.
        scale: the reading is the number times this …
        offset: … plus this.

    Raises:
        ConfigError: an address past the table's end, or a scale that is 0 or not finite.
    """

    channel: str
    address: int
    table: Literal["holding", "input"] = "holding"
    kind: Kind = "uint16"
    word_order: Literal["big", "little"] = "big"
    scale: float = 1.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 0 <= self.address <= 65_536 - self.words:
            raise ConfigError(
                f"register of {self.channel}: found address {self.address} for {self.kind}, "
                f"expected 0 to {65_536 - self.words}"
            )
        if not (math.isfinite(self.scale) and self.scale and math.isfinite(self.offset)):
            raise ConfigError(
                f"register of {self.channel}: found scale {self.scale} and offset {self.offset}, "
                "expected finite numbers and a scale other than 0"
            )

    @property
    def words(self) -> int:
        """Registers that it takes."""
        return struct.calcsize(_FORMATS[self.kind]) // 2

    @property
    def function(self) -> int:
        """Function code that reads it."""
        return HOLDING if self.table == "holding" else INPUT

    def reading(self, words: Sequence[int]) -> float:
        """The channel's reading, of its registers in the order of their addresses; may be NaN or infinite."""
        ordered = words if self.word_order == "big" else words[::-1]
        (number,) = struct.unpack(_FORMATS[self.kind], struct.pack(f">{len(ordered)}H", *ordered))
        return float(number) * self.scale + self.offset


@dataclass(frozen=True, slots=True)
class Request:
    """One request for successive registers.

    Attributes:
        function: ``HOLDING`` or ``INPUT``.
        first: address of the first register.
        count: how many, 1 to ``REGISTERS_MAX``.
    """

    function: int
    first: int
    count: int

    def encode(self, transaction: int, unit: int) -> bytes:
        """The request as 12 bytes."""
        return struct.pack(">HHHBBHH", transaction, 0, 6, unit, self.function, self.first, self.count)

    def body_bytes(self, header: bytes, transaction: int, unit: int) -> int:
        """Bytes behind an answer's header.

        Raises:
            PeerError: the header is no answer to this request; ``reason`` is ``malformed`` or ``transaction``.
        """
        found_transaction, protocol, length, found_unit = struct.unpack(">HHHB", header)
        if protocol != 0 or not 2 <= length <= BODY_BYTES_MAX + 1:
            raise PeerError(
                f"Modbus header has protocol {protocol} and length {length}, expected 0 and 2 to {BODY_BYTES_MAX + 1}",
                reason="malformed",
            )
        if (found_transaction, found_unit) != (transaction, unit):
            raise PeerError(
                f"Modbus answer is of transaction {found_transaction} and unit {found_unit}, "
                f"expected {transaction} and {unit}",
                reason="transaction",
            )
        return int(length) - 1

    def decode(self, body: bytes) -> tuple[int, ...]:
        """The registers of an answer's body.

        Raises:
            PeerError: the device refuses (reason ``exception``), or the body is something else (``malformed``).
        """
        if len(body) == 2 and body[0] == self.function | 0x80:
            word = EXCEPTIONS.get(body[1], "unknown")
            raise PeerError(
                f"Modbus device refuses {self.count} registers from {self.first} on: exception {body[1]} ({word})",
                reason="exception",
            )
        if len(body) != 2 + 2 * self.count or body[0] != self.function or body[1] != 2 * self.count:
            raise PeerError(
                f"Modbus answer begins {body[:4].hex()} and has {len(body)} bytes, expected function {self.function} "
                f"and {2 + 2 * self.count} bytes",
                reason="malformed",
            )
        return struct.unpack(f">{self.count}H", body[2:])


def plan(registers: Sequence[Register]) -> tuple[Request, ...]:
    """The fewest requests that read all registers, and no register that is not asked for.

    A gap is never read over: an address that a device does not have makes it refuse the whole request.
    """
    requests: list[Request] = []
    for register in sorted(registers, key=lambda r: (r.function, r.address)):
        last = requests[-1] if requests else None
        end = register.address + register.words
        if (
            last is not None
            and last.function == register.function
            and register.address <= last.first + last.count
            and end - last.first <= REGISTERS_MAX
        ):
            requests[-1] = Request(last.function, last.first, max(last.count, end - last.first))
        else:
            requests.append(Request(register.function, register.address, register.words))
    return tuple(requests)


def readings(registers: Sequence[Register], answers: Mapping[Request, Sequence[int]]) -> list[float]:
    """The channels' readings, in the order of ``registers``, from the answers to what ``plan`` asked."""
    values = []
    for register in registers:
        for request, words in answers.items():
            start = register.address - request.first
            if request.function == register.function and start >= 0 and start + register.words <= request.count:
                values.append(register.reading(words[start : start + register.words]))
                break
        else:
            raise ValueError(f"no answer holds the register of {register.channel}")
    return values
