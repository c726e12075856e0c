"""Challenges that were given out: each is good for one answer, of one device, in time.

In memory: after a restart of the verifier nothing that was given out before is taken, and devices ask again.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from vedette_core.attestation.rules import refusal

DEVICES_MAX: Final = 20_000
"""Devices whose nonces are remembered, the open and the last answered one of each: about 500 bytes a device."""


class Nonces:
    """What was asked of whom."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, tuple[bytes, float]] = OrderedDict()
        self._used: dict[str, bytes] = {}
        self._owner: dict[bytes, str] = {}

    def __len__(self) -> int:
        return len(self._owner)

    def give(self, nonce: bytes, device: str, now: float) -> None:
        """Remember a challenge; one that the device had before is no longer good."""
        self._close(device)
        self._open[device] = (nonce, now)
        self._owner[nonce] = device
        while len(self._open) > DEVICES_MAX:
            self._close(next(iter(self._open)))
        while len(self._used) > DEVICES_MAX:
            del self._owner[self._used.pop(next(iter(self._used)))]

    def take(self, nonce: bytes, device: str, now: float, within_s: float) -> None:
        """Use a nonce up.

        Args:
            nonce: of the evidence.
            device: who answers.
            now: epoch seconds.
            within_s: how old it may be.

        Raises:
            RefusedError: ``nonce-unknown nonce-device nonce-reused stale``.
        """
        owner = self._owner.get(nonce)
        if owner is None:
            raise refusal("nonce-unknown", device, "a nonce that nobody was given", "that of the newest challenge")
        if owner != device:
            raise refusal("nonce-device", device, f"the nonce of {owner}", "its own")
        if self._used.get(device) == nonce:
            raise refusal("nonce-reused", device, "a nonce that was answered before", "a new one")
        given_at = self._open[device][1]
        self._close(device)
        last = self._used.pop(device, None)
        if last is not None:
            del self._owner[last]
        self._used[device], self._owner[nonce] = nonce, device
        # A clock that was set back makes no nonce fresh again.
        if not 0 <= now - given_at <= within_s:
            age = f"evidence {now - given_at:.0f} s after the challenge"
            raise refusal("stale", device, age, f"{within_s:g} s or less")

    def _close(self, device: str) -> None:
        found = self._open.pop(device, None)
        if found is not None:
            del self._owner[found[0]]
