"""Who is there: an authority, an aggregator, devices and helpers, with keys that are made from their names."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from vedette_core.crypto.certificate_chain import der
from vedette_core.crypto.certificates import (
    CertificateRole,
    Issuer,
    Purpose,
    make_intermediate,
    make_leaf,
    make_root,
)
from vedette_core.crypto.signing import Ed25519Signer, KeyRing
from vedette_schemas.topics import Topics

EPOCH: Final = 1_900_000_000.0
"""Wall-clock time at simulated time zero."""
ISSUED: Final = EPOCH - 86_400.0
"""Certificates are a day old by then, and hold for six more."""
USUAL_SIGNATURE_BYTES: Final = 71
"""Of a P-256 signature in DER: half of them."""
AGGREGATOR: Final = "aggregator"
HELPER: Final = "helper-"
"""Ids of committee helpers begin with it; whoever else is not the aggregator is a device."""
DEVICES_MAX: Final = 16
HELPERS_MAX: Final = 8
SIGNATURES_KEPT: Final = 20_000
SITE: Final = "plant-1"


@dataclass(frozen=True)
class Node:
    """A node's signing key and certificate."""

    name: str
    signer: Ed25519Signer
    certificate: bytes


class Ring(KeyRing):
    """A key ring that remembers which signatures held.

    A whole fleet checks the same signatures in one process: of a group of eight, every member those of the other seven.
    A signature that held once holds for ever, so that remembering it changes nothing but the time that a run takes.
    """

    held: dict[tuple[bytes, bytes, bytes], None]

    def fork(self) -> Ring:
        ring = Ring(self._root, self._site, revocations=self.revocations)
        ring._verified, ring.held = self._verified, self.held
        return ring

    def verify(self, sender: str, signature: bytes, data: bytes) -> None:
        known = self._known.get(sender)
        if known is None:
            return super().verify(sender, signature, data)
        entry = (known.key.public_bytes_raw(), signature, hashlib.sha256(data).digest())
        if entry in self.held:
            return self.revocations.check(known.identity.serial, sender)
        super().verify(sender, signature, data)
        if len(self.held) >= SIGNATURES_KEPT:
            self.held.clear()
        self.held[entry] = None
        return None


class Site:
    """The keys and certificates of a site; the same every time."""

    def __init__(self) -> None:
        self.topics = Topics(SITE)
        root_key, online_key = _p256("root"), _p256("online")
        root_serial, online_serial = _number("root serial") >> 100, _number("online serial") >> 100
        self.root = _of_usual_length(lambda: make_root(root_key, SITE, now=ISSUED, serial=root_serial))
        self._online = _of_usual_length(
            lambda: make_intermediate(
                Issuer(self.root, root_key), online_key.public_key(), SITE, now=ISSUED, serial=online_serial
            )
        )
        self._issuer = Issuer(self._online, online_key)
        self.intermediate = der(self._online)
        self._nodes: dict[str, Node] = {}
        self._ring = Ring(self.root, SITE, [self._online])
        self._ring.held = {}
        # Whether a chain holds is remembered, too, and must not depend on which clock asked first.
        for name in (AGGREGATOR, *device_names(DEVICES_MAX), *helper_names(HELPERS_MAX)):
            self._ring.fork().learn(self.node(name).certificate, EPOCH)

    def node(self, name: str) -> Node:
        """A node of that name; its role is in it."""
        if name not in self._nodes:
            signer = Ed25519Signer.from_seed(_digest(f"signing {name}"))
            role = CertificateRole.COMMITTEE if name.startswith(HELPER) else CertificateRole.DEVICE
            role = CertificateRole.AGGREGATOR if name == AGGREGATOR else role
            leaf = _of_usual_length(
                lambda: make_leaf(
                    self._issuer,
                    signer.public_key,
                    holder=name,
                    role=role,
                    site=SITE,
                    purpose=Purpose.SIGNING,
                    now=ISSUED,
                    serial=_number(f"serial {name}") >> 100,
                )
            )
            self._nodes[name] = Node(name, signer, der(leaf))
        return self._nodes[name]

    def ring(self) -> Ring:
        """An empty ring that trusts this site's root."""
        return self._ring.fork()


@lru_cache(maxsize=1)
def the_site() -> Site:
    """One site for all runs of a process: making certificates is the slowest thing here."""
    return Site()


def device_names(count: int) -> list[str]:
    """``gw-00``, ``gw-01``, …"""
    return [f"gw-{i:02}" for i in range(count)]


def helper_names(count: int) -> list[str]:
    """``helper-0``, ``helper-1``, …"""
    return [f"{HELPER}{i}" for i in range(count)]


def _of_usual_length(make: Callable[[], x509.Certificate]) -> x509.Certificate:
    """ECDSA signatures are random, and so is their length; what is repeated from a seed must not depend on it."""
    while True:
        made = make()
        if len(made.signature) == USUAL_SIGNATURE_BYTES:
            return made


def _p256(name: str) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(_number(name) >> 1, ec.SECP256R1())


def _number(name: str) -> int:
    return int.from_bytes(_digest(name), "big")


def _digest(name: str) -> bytes:
    return hashlib.sha256(b"simulated site: " + name.encode()).digest()
