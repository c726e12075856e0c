"""Reads the structures of a TPM: big-endian integers and buffers with a length in front."""

from __future__ import annotations

from vedette_core.attestation.rules import refusal


class TpmReader:
    """Reads a structure from its beginning; what is left over at its end is a fault.

    Args:
        data: the structure's bytes.
        what: what it is, for messages.
    """

    __slots__ = ("_at", "_data", "_what")

    def __init__(self, data: bytes, what: str) -> None:
        self._data, self._what, self._at = data, what, 0

    def take(self, count: int) -> bytes:
        """The next bytes.

        Raises:
            RefusedError: there are fewer (``truncated``).
        """
        end = self._at + count
        if end > len(self._data):
            raise refusal("truncated", self._what, f"{len(self._data)} bytes", f"{end} or more")
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def number(self, size: int) -> int:
        """The next unsigned integer of so many bytes."""
        return int.from_bytes(self.take(size), "big")

    def sized(self, most: int) -> bytes:
        """The next ``TPM2B``: two bytes of length, then so many.

        Raises:
            RefusedError: it is longer than it can be (``malformed``), or than what is there.
        """
        count = self.number(2)
        if count > most:
            raise refusal("malformed", self._what, f"a field of {count} bytes", f"at most {most}")
        return self.take(count)

    def end(self) -> None:
        """Check that nothing is left.

        Raises:
            RefusedError: something is (``trailing``).
        """
        if self._at != len(self._data):
            left = len(self._data) - self._at
            raise refusal("trailing", self._what, f"{left} bytes behind the structure", "none")
