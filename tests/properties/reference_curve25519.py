"""Curve25519 in its two shapes, in plain integers and as slow as it is plain: the oracle for bad keys and signatures.

Source: RFC 7748 §5 (Montgomery ladder), RFC 8032 §5.1 (Edwards curve, encodings, signatures).
"""

from __future__ import annotations

import hashlib

P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
"""Of the subgroup that the base point makes; the whole curve has eight times as many points."""
D = -121665 * pow(121666, -1, P) % P
ROOT_OF_MINUS_ONE = pow(2, (P - 1) // 4, P)

Point = tuple[int, int]
NEUTRAL: Point = (0, 1)


def ladder(scalar: int, u: int) -> int:
    """The u coordinate of a multiple, for points of the curve and of its twist; zero is the neutral element."""
    x1, x2, z2, x3, z3 = u, 1, 0, u, 1
    for bit in reversed(range(256)):
        if scalar >> bit & 1:
            x2, z2, x3, z3 = x3, z3, x2, z2
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        x3, z3 = (d * a + c * b) ** 2 % P, x1 * (d * a - c * b) ** 2 % P
        x2, z2 = (a * b) ** 2 % P, (a * a - b * b) * (a * a + 121665 * (a * a - b * b)) % P
        if scalar >> bit & 1:
            x2, z2, x3, z3 = x3, z3, x2, z2
    return x2 * pow(z2, P - 2, P) % P


def x25519(private: bytes, public: bytes) -> bytes:
    scalar = int.from_bytes(private, "little") & (2**254 - 8) | 2**254
    return ladder(scalar, int.from_bytes(public, "little") % 2**255 % P).to_bytes(32, "little")


def is_on_montgomery_curve(u: int) -> bool:
    """Whether a u coordinate is one of the curve, and not of its twist."""
    return pow(u**3 + 486662 * u**2 + u, (P - 1) // 2, P) != P - 1


def add(a: Point, b: Point) -> Point:
    product = D * a[0] * b[0] * a[1] * b[1] % P
    x = (a[0] * b[1] + b[0] * a[1]) * pow(1 + product, -1, P) % P
    y = (a[1] * b[1] + a[0] * b[0]) * pow(1 - product, -1, P) % P
    return x, y


def multiply(scalar: int, point: Point) -> Point:
    result = NEUTRAL
    while scalar:
        if scalar & 1:
            result = add(result, point)
        point, scalar = add(point, point), scalar >> 1
    return result


def point_with(y: int) -> Point | None:
    """A point with this y, whichever of the two; None where the curve has none."""
    squared = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    for x in (pow(squared, (P + 3) // 8, P), pow(squared, (P + 3) // 8, P) * ROOT_OF_MINUS_ONE % P):
        if x * x % P == squared:
            return x, y
    return None


def encode(point: Point) -> bytes:
    return (point[1] | (point[0] & 1) << 255).to_bytes(32, "little")


def encodings(point: Point) -> set[bytes]:
    """Every 32 bytes that a lenient decoder takes for this point: y not reduced, and a sign where x is zero."""
    signs = (0, 1) if point[0] == 0 else (point[0] & 1,)
    return {(y | sign << 255).to_bytes(32, "little") for y in (point[1], point[1] + P) if y < 2**255 for sign in signs}


def small_order_points() -> list[Point]:
    """The eight points whose order divides eight, the neutral element first."""
    for y in range(2, 100):
        found = point_with(y)
        torsion = multiply(ORDER, found) if found else NEUTRAL
        if multiply(4, torsion) != NEUTRAL:
            return [multiply(i, torsion) for i in range(8)]
    raise AssertionError("a quarter of all points do it; a hundred must contain one")


_BASE_Y = 4 * pow(5, -1, P) % P
_SOME_BASE = point_with(_BASE_Y)
assert _SOME_BASE is not None
BASE: Point = (_SOME_BASE[0] if _SOME_BASE[0] % 2 == 0 else P - _SOME_BASE[0], _BASE_Y)


def secret_scalar(seed: bytes) -> int:
    return int.from_bytes(hashlib.sha512(seed).digest()[:32], "little") & (2**254 - 8) | 2**254


def challenge(r: bytes, public: bytes, message: bytes) -> int:
    return int.from_bytes(hashlib.sha512(r + public + message).digest(), "little") % ORDER
