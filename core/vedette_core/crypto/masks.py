"""Masks: a short seed expanded into a vector of the ring, added to an update so that only sums of updates can be read.

Two nodes that share a seed add and subtract the same mask; in the sum over both, it is gone.

Source: Bonawitz et al., "Practical secure aggregation" (CCS 2017) §4; NIST SP 800-38A §6.5 (counter mode).
"""

from __future__ import annotations

from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from vedette_core.crypto.agreement import derive

RingVector = npt.NDArray[np.unsignedinteger[Any]]
"""Integers modulo 2^16 or 2^32, shape ``(length,)``; numpy's addition wraps by itself."""

SEED_BYTES: Final = 16
"""A mask's seed: 128 bits, and half the bytes to be shared among the committee that 256 would need."""
TRANSCRIPT_BYTES: Final = 32
"""A SHA-256. Other lengths are refused, because HKDF pads its salt with zeros and two of them could mean the same."""
CHUNK_BYTES: Final = 256 * 1024
"""Mask bytes that exist at one time. The fastest of 64, 128 and 256 KiB for 10^5 and 10^6 coordinates (the two
smaller ones lose a tenth and a twentieth); below one chunk it makes no difference."""

_MASK_INFO: Final = b"vedette mask 1"
_BLOCK_BYTES: Final = 16
_ZERO_COUNTER: Final = bytes(_BLOCK_BYTES)


class MaskExpander:
    """Expands seeds into masks and adds them to a vector, or takes them away again.

    A mask is the key stream of AES-256 in counter mode, the counter beginning at zero, under the key
    ``derive(seed, transcript, b"vedette mask 1")``, read as little-endian integers. With a counter that always begins
    at zero, **a key is for a single use**: no other mask may come from the same seed and transcript. Two different
    vectors under one mask give away their difference.

    It works chunk by chunk in one buffer, so that memory does not grow with the vector; the stream does not depend on
    the chunks. One expander is therefore not for two threads at once.

    Args:
        length: coordinates of a vector, at least 1.
        bits: of a coordinate: 16 or 32.

    Raises:
        ValueError: another length or ring.
    """

    __slots__ = ("_output", "_stream", "_zeros", "dtype", "length")

    def __init__(self, length: int, bits: Literal[16, 32]) -> None:
        if length < 1:
            raise ValueError(f"found a length of {length}, expected at least 1 coordinate")
        if bits not in (16, 32):
            raise ValueError(f"found a ring of {bits} bits, expected 16 or 32")
        self.length = length
        self.dtype: np.dtype[np.unsignedinteger[Any]] = np.dtype(f"<u{bits // 8}")
        chunk_bytes = min(CHUNK_BYTES, length * self.dtype.itemsize)
        self._zeros = memoryview(bytes(chunk_bytes))
        # The library wants room for one block less a byte behind the output of any mode.
        self._output = bytearray(chunk_bytes + _BLOCK_BYTES - 1)
        self._stream: RingVector = np.frombuffer(self._output, self.dtype, count=chunk_bytes // self.dtype.itemsize)

    def add(self, accumulator: RingVector, seed: bytes, transcript: bytes) -> None:
        """Add a seed's mask, in place.

        Args:
            accumulator: shape ``(length,)``, dtype ``<u2`` or ``<u4`` as the ring has it.
            seed: 16 bytes that nobody else knows.
            transcript: 32 bytes, the hash of all that the round's members agree on.

        Raises:
            ValueError: an accumulator of another shape or dtype, a seed or transcript of another length.
        """
        self._apply(np.add, accumulator, seed, transcript)

    def subtract(self, accumulator: RingVector, seed: bytes, transcript: bytes) -> None:
        """Take a seed's mask away, in place: the inverse of `add`, with the same arguments and refusals."""
        self._apply(np.subtract, accumulator, seed, transcript)

    def _apply(self, operation: np.ufunc, accumulator: RingVector, seed: bytes, transcript: bytes) -> None:
        if accumulator.dtype != self.dtype or accumulator.shape != (self.length,):
            raise ValueError(
                f"found an accumulator of {accumulator.dtype.str}{accumulator.shape}, "
                f"expected {self.dtype.str}{(self.length,)}"
            )
        if len(seed) != SEED_BYTES:
            raise ValueError(f"found a seed of {len(seed)} bytes, expected {SEED_BYTES}")
        if len(transcript) != TRANSCRIPT_BYTES:
            raise ValueError(f"found a transcript of {len(transcript)} bytes, expected {TRANSCRIPT_BYTES}")
        encryptor = Cipher(AES(derive(seed, transcript, _MASK_INFO)), CTR(_ZERO_COUNTER)).encryptor()
        for start in range(0, self.length, self._stream.size):
            part = accumulator[start : start + self._stream.size]
            # `update` would make a new bytes object each time, at less than a quarter of the speed.
            encryptor.update_into(self._zeros[: part.nbytes], self._output)
            operation(part, self._stream[: part.size], out=part)
