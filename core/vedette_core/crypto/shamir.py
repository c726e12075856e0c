"""Shamir's secret sharing over GF(2^8), byte by byte.

The bytes of a secret are the constant terms of as many random polynomials; the member with index x gets their values
at x. As many shares as the threshold give the secret; fewer say nothing about it, whatever one can compute.

A share is as long as the secret, and interpolation does not care what the bytes mean: many secrets of one owner,
concatenated, are shared and combined in one pass.

Products are looked up in a table of 64 kB, at places that depend on the secret. Who runs on the same processor might
learn from the cache's timing; that is accepted, since each secret lives for one round.

Source: Shamir, "How to share a secret" (CACM 22, 1979); the field of FIPS 197 §4 (polynomial 0x11B), as in SLIP-39.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from vedette_schemas.errors import PeerError

Entropy = Callable[[int], bytes]
"""Gives that many random bytes, fit for keys."""

MEMBERS_MAX: Final = 255
"""Indices other than zero that a field of 256 elements has."""

_POLYNOMIAL: Final = 0x11B
_ORDER: Final = 255
"""Elements of the multiplicative group; exponents count modulo this."""


def _powers_and_logarithms() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.intp]]:
    """Powers of the generator 3, shape ``(255,)``, and logarithms, shape ``(256,)``; that of 0 means nothing."""
    powers, logarithms = np.zeros(_ORDER, np.uint8), np.zeros(_ORDER + 1, np.intp)
    element = 1
    for exponent in range(_ORDER):
        powers[exponent], logarithms[element] = element, exponent
        element ^= element << 1
        if element > _ORDER:
            element ^= _POLYNOMIAL
    return powers, logarithms


def _products() -> npt.NDArray[np.uint8]:
    table = np.zeros((_ORDER + 1, _ORDER + 1), np.uint8)
    exponents = _LOGARITHMS[1:]
    table[1:, 1:] = _POWERS[(exponents[:, None] + exponents) % _ORDER]
    table.flags.writeable = False
    return table


_POWERS, _LOGARITHMS = _powers_and_logarithms()
PRODUCTS: Final = _products()
"""Every product of two field elements, shape ``(256, 256)``, uint8, read-only."""
_ROWS: Final = tuple(row.tobytes() for row in PRODUCTS)


def split(secret: bytes, threshold: int, members: int, entropy: Entropy) -> tuple[bytes, ...]:
    """Share a secret.

    Args:
        secret: at least one byte.
        threshold: shares that give the secret, 1 to `members`; with 1, every share is the secret itself.
        members: shares to make, at most `MEMBERS_MAX`.
        entropy: asked once, for ``(threshold - 1) * len(secret)`` bytes: the coefficient of x for every byte, then
            that of x², and so on. All values are possible, zero included: a polynomial of exactly the highest degree
            would say something about the secret.

    Returns:
        The shares of the members 1, 2, … `members`, each as long as the secret.

    Raises:
        ValueError: an empty secret, a threshold or a number of members out of range, or entropy of another length.
    """
    if not secret:
        raise ValueError("found an empty secret, expected at least one byte")
    if not 1 <= threshold <= members <= MEMBERS_MAX:
        raise ValueError(
            f"found a threshold of {threshold} among {members} members, "
            f"expected 1 ≤ threshold ≤ members ≤ {MEMBERS_MAX}"
        )
    wanted = (threshold - 1) * len(secret)
    random = entropy(wanted)
    if len(random) != wanted:
        raise ValueError(f"found {len(random)} bytes of entropy, expected {wanted}")
    coefficients = np.frombuffer(random, np.uint8).reshape(threshold - 1, len(secret))
    indices = np.arange(1, members + 1)
    shares = np.tile(np.frombuffer(secret, np.uint8), (members, 1))
    powers = np.ones(members, np.uint8)
    for coefficient in coefficients:
        powers = PRODUCTS[powers, indices]
        shares ^= PRODUCTS[powers].take(coefficient, axis=1)
    return tuple(share.tobytes() for share in shares)


def combine(shares: Mapping[int, bytes]) -> bytes:
    """The secret, from shares by their members' indices.

    All that are given are used: with fewer than the threshold, or with a wrong one among them, the result is some
    other byte string, and nothing here notices. That is what a commitment to the secret is for.

    Raises:
        PeerError: no share, an index other than 1 to 255, or shares that are empty or of different lengths.
    """
    _check(shares)
    return _value_at(shares, 0)


def share_at(shares: Mapping[int, bytes], x: int) -> bytes:
    """The share that another member must have, if these, as many as the threshold, are right: to find who lied.

    Args:
        shares: by their members' indices; all are used.
        x: the other member's index, 1 to 255.

    Raises:
        PeerError: as in `combine`.
        ValueError: another index; at zero is the secret.
    """
    if not 1 <= x <= MEMBERS_MAX:
        raise ValueError(f"found the index {x}, expected 1 to {MEMBERS_MAX}")
    _check(shares)
    return shares[x] if x in shares else _value_at(shares, x)


def _check(shares: Mapping[int, bytes]) -> None:
    if not shares:
        raise PeerError("shares: found none, expected as many as the threshold", reason="shares")
    for x in shares:
        if not isinstance(x, int) or not 1 <= x <= MEMBERS_MAX:
            raise PeerError(f"shares: found the index {x!r:.20}, expected 1 to {MEMBERS_MAX}", reason="shares")
    lengths = sorted({len(share) for share in shares.values()})
    if len(lengths) > 1 or lengths[0] == 0:
        raise PeerError(f"shares: found lengths {lengths[:5]}, expected one, above zero", reason="shares")


def _value_at(shares: Mapping[int, bytes], x: int) -> bytes:
    """Lagrange interpolation at an x that none of the shares has; all bytes have the same weights."""
    indices = np.fromiter(shares, np.intp, len(shares))
    # weight_i = Π_{j≠i} (x - x_j) / (x_i - x_j); subtraction is XOR, and the diagonal's zero has the logarithm 0 here.
    distances = _LOGARITHMS[indices ^ x]
    among_themselves = _LOGARITHMS[indices[:, None] ^ indices].sum(axis=1)
    weights = _POWERS[(distances.sum() - distances - among_themselves) % _ORDER]
    value = np.zeros(len(next(iter(shares.values()))), np.uint8)
    for weight, share in zip(weights.tolist(), shares.values(), strict=True):
        value ^= np.frombuffer(share.translate(_ROWS[weight]), np.uint8)
    return value.tobytes()
