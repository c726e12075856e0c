"""Who is there in the tests of secure aggregation: an authority, and people with certificates and keys."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec

from vedette_core.crypto.agreement import KeyPair, key_pair
from vedette_core.crypto.certificate_chain import der
from vedette_core.crypto.certificates import CertificateRole, Issuer, Purpose, make_intermediate, make_leaf, make_root
from vedette_core.crypto.signing import Ed25519Signer, KeyRing
from vedette_schemas.envelope import pre_authentication_encoding
from vedette_schemas.round import (
    OFFER_TYPE,
    Member,
    offer_statement,
)

NOW: Final = 1_900_000_000.0


SITE: Final = "plant-1"


TASK: Final = "network"


def digest(text: str) -> bytes:
    """32 bytes that are made from a name."""
    return hashlib.sha256(b"secagg parts: " + text.encode()).digest()


def entropy_of(text: str) -> Callable[[int], bytes]:
    """A stream of bytes that is made from a name."""
    rng = np.random.default_rng(int.from_bytes(digest(text), "big"))
    return rng.bytes


class Authority:
    """A site's certificate authority; another name is somebody else's, for the same site."""

    def __init__(self, name: str = "the site's", site: str = SITE) -> None:
        self.name, self.site = name, site
        root_key, online_key = self._p256("root"), self._p256("online")
        self.root = make_root(root_key, site, now=NOW - 86_400, serial=self._serial("root"))
        self.online = make_intermediate(
            Issuer(self.root, root_key), online_key.public_key(), site, now=NOW - 86_400, serial=self._serial("online")
        )
        self._issuer = Issuer(self.online, online_key)

    def certificate(self, signer: Ed25519Signer, name: str, role: CertificateRole, now: float = NOW - 3600) -> bytes:
        """A signing certificate, valid for a week from `now`."""
        serial = self._serial(f"{name} {role} {now}")
        leaf = make_leaf(
            self._issuer,
            signer.public_key,
            holder=name,
            role=role,
            site=self.site,
            purpose=Purpose.SIGNING,
            now=now,
            serial=serial,
        )
        return der(leaf)

    def ring(self) -> KeyRing:
        """What a node of the site believes certificates by."""
        return KeyRing(self.root, self.site, [self.online])

    def _serial(self, text: str) -> int:
        return int.from_bytes(digest(f"{self.name} {self.site} {text}"), "big") >> 100

    def _p256(self, text: str) -> ec.EllipticCurvePrivateKey:
        number = int.from_bytes(digest(f"{self.name} {self.site} key {text}"), "big") >> 1
        return ec.derive_private_key(number, ec.SECP256R1())


@lru_cache(maxsize=1)
def the_authority() -> Authority:
    """The site's, once for a process."""
    return Authority()


@lru_cache(maxsize=1)
def the_ring() -> KeyRing:
    """The site's anchors; what is known of certificates is shared by everybody, to be fast."""
    return the_authority().ring()


@dataclass(frozen=True)
class Person:
    """A node that has checked in with a key."""

    name: str
    role: CertificateRole
    signer: Ed25519Signer = field(repr=False)
    certificate: bytes = field(repr=False)
    pair: KeyPair = field(repr=False)
    seq: int = 1

    @property
    def word(self) -> str:
        """The role of its check-in."""
        return "contribute" if self.role is CertificateRole.DEVICE else "unmask"

    def offer(self, task: str = TASK, word: str = "") -> bytes:
        """Its signature over its key."""
        statement = offer_statement(task, self.name, self.seq, self.pair.public, word or self.word)
        return self.signer.sign(pre_authentication_encoding(OFFER_TYPE, self.name, statement))

    def member(self, weight: int | None = None, task: str = TASK) -> Member:
        """Its entry in a roster."""
        usual = 1 if self.role is CertificateRole.DEVICE else 0
        return Member(
            device=self.name,
            epk=self.pair.public,
            seq=self.seq,
            certificate=self.certificate,
            offer=self.offer(task),
            weight=usual if weight is None else weight,
        )


@lru_cache(maxsize=4096)
def person(name: str, role: CertificateRole = CertificateRole.DEVICE, key: int = 1) -> Person:
    """Somebody of the site with the key of its n-th check-in."""
    signer = Ed25519Signer.from_seed(digest(f"signing {name} {role}"))
    certificate = _certificate(name, role)
    return Person(name, role, signer, certificate, key_pair(digest(f"key {key} of {name} {role}")), key)


@lru_cache(maxsize=4096)
def _certificate(name: str, role: CertificateRole) -> bytes:
    return the_authority().certificate(Ed25519Signer.from_seed(digest(f"signing {name} {role}")), name, role)


def helper(name: str, key: int = 1) -> Person:
    """A helper of the site."""
    return person(name, CertificateRole.COMMITTEE, key)
