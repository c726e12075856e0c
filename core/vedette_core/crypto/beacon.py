"""A public beacon that nobody can choose once its anchor is signed: a hash chain, opened from its end.

The ceremony draws a seed and hashes it N times; the result is the anchor. Epoch e opens the value that lies e hashes
before the anchor. Whoever knows the anchor checks a value by hashing; who holds the seed can withhold a value, and
knows the later ones, but cannot find another one that fits.

Source: L. Lamport, "Password Authentication with Insecure Communication", CACM 24(11), 1981; RFC 1760, §2 (S/KEY).
"""

from __future__ import annotations

from typing import Final

from vedette_schemas.errors import ConfigError, PeerError
from vedette_schemas.round import hash_parts
from vedette_schemas.trust import BEACON_EPOCHS_MAX, BeaconAnchor

SEED_BYTES: Final = 32
"""Length of the seed and of every value of the chain, bytes."""
BEACON_EPOCHS: Final = 4096
"""Epochs of a new chain: some years if an epoch is ten rounds and a round an hour."""
_DOMAIN: Final = b"vedette-beacon-chain-1"
_STRIDE: Final = 64
"""Values between two that are kept: at most so many hashes for a value, and 65 values in memory for 4,096 epochs."""


class BeaconChain:
    """The whole chain, for the one who holds its seed; shows nothing but opened values.

    Args:
        seed: 32 random bytes.
        length: number of epochs, 1 to `BEACON_EPOCHS_MAX`.
    """

    __slots__ = ("_anchor", "_kept")

    def __init__(self, seed: bytes, length: int) -> None:
        if len(seed) != SEED_BYTES or not 1 <= length <= BEACON_EPOCHS_MAX:
            raise ValueError(
                f"beacon chain: found a seed of {len(seed)} bytes and {length} epochs, expected {SEED_BYTES} bytes and "
                f"1 to {BEACON_EPOCHS_MAX} epochs"
            )
        self._kept = [seed]
        for start in range(0, length - _STRIDE + 1, _STRIDE):
            self._kept.append(_hashed(self._kept[start // _STRIDE], _STRIDE))
        self._anchor = BeaconAnchor(scheme="sha256-chain-1", anchor=self._at(length).hex(), length=length)

    @property
    def anchor(self) -> BeaconAnchor:
        """What everybody may know from the start."""
        return self._anchor

    def value(self, epoch: int) -> bytes:
        """The 32 bytes of an epoch. With it everybody can compute those of the epochs before, and of none after.

        Raises:
            ConfigError: the chain has no such epoch any more.
        """
        if epoch < 1:
            raise ValueError(f"beacon: found epoch {epoch}, expected at least 1")
        if epoch > self._anchor.length:
            raise ConfigError(f"beacon: {_used_up(epoch, self._anchor)}")
        return self._at(self._anchor.length - epoch)

    def _at(self, position: int) -> bytes:
        """The value `position` hashes after the seed."""
        return _hashed(self._kept[position // _STRIDE], position % _STRIDE)

    def __repr__(self) -> str:
        return f"BeaconChain(<redacted>, {self._anchor.length})"

    def __reduce__(self) -> str:
        raise TypeError("a beacon chain is not pickled: its seed stays where it is")


def verify_beacon(value: bytes, epoch: int, anchor: BeaconAnchor) -> None:
    """Check that a value is the one and only of its epoch; at most `BEACON_EPOCHS_MAX` hashes.

    Args:
        value: what was opened, 32 bytes.
        epoch: the epoch that it is said to belong to.
        anchor: from verified root metadata.

    Raises:
        PeerError: another value, or an epoch that the chain does not have; reason ``beacon``.
    """
    if epoch < 1:
        raise PeerError(f"beacon: found epoch {epoch}, expected 1 to {anchor.length}", reason="beacon")
    if epoch > anchor.length:
        raise PeerError(f"beacon of the aggregator: {_used_up(epoch, anchor)}", reason="beacon")
    if len(value) != SEED_BYTES:
        raise PeerError(
            f"beacon of epoch {epoch}: found {len(value)} bytes, expected {SEED_BYTES}, from the aggregator",
            reason="beacon",
        )
    found = _hashed(value, epoch).hex()
    if found != anchor.anchor:
        raise PeerError(
            f"beacon of epoch {epoch}: found a value that leads to {found[:12]}… after {epoch} hashes, expected the "
            f"anchor {anchor.anchor[:12]}… of the site's root metadata; the aggregator opened another value",
            reason="beacon",
        )


def _used_up(epoch: int, anchor: BeaconAnchor) -> str:
    return (
        f"found epoch {epoch}, expected 1 to {anchor.length}: the chain is used up; a new ceremony with the offline "
        "keys has to sign the anchor of a longer one"
    )


def _hashed(value: bytes, times: int) -> bytes:
    for _ in range(times):
        value = hash_parts(_DOMAIN, value)
    return value
