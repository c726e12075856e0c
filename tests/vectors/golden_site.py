"""Who speaks in the golden messages, with keys that are made from names, and the plan that they hold to."""

from __future__ import annotations

import hashlib
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from vedette_core.crypto.agreement import KeyPair, key_pair
from vedette_core.crypto.beacon import BeaconChain
from vedette_schemas import features
from vedette_schemas import round as rounds
from vedette_schemas.errors import PeerError
from vedette_schemas.topics import Topics

SITE: Final = Topics("plant-1")
TASK: Final = "network"
AGGREGATOR: Final = "aggregator"
DEVICES: Final = ("gw-01", "gw-02", "gw-03", "gw-04", "gw-05", "gw-06")
HELPER: Final = "helper-1"
DEVICE: Final = DEVICES[0]
TOKEN: Final = "enrol-0123456789abcdef"
OWN_KEYS: Final = ("verifier", "policy", TOKEN)
"""Senders that have a key of their own, and no certificate."""

MODEL: Final = hashlib.sha256(b"golden model").hexdigest()
CHAIN: Final = BeaconChain(hashlib.sha256(b"golden seed of a beacon").digest(), 4)
BEACON: Final = CHAIN.value(1)


def private_key(identity: str) -> Ed25519PrivateKey:
    """The test key of an identity, from a seed: never one that protects anything."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"vedette test key of {identity}".encode()).digest())


def round_key(identity: str) -> KeyPair:
    """The X25519 test key of its check-in."""
    return key_pair(hashlib.sha256(f"golden round key of {identity}".encode()).digest())


class TestKeys:
    """Signs and verifies for `aggregator`, the devices ``gw-01`` … ``gw-06``, ``helper-1`` and `OWN_KEYS`."""

    __test__ = False  # not a class of tests

    def __init__(self, identity: str = AGGREGATOR) -> None:
        self._own = private_key(identity)
        self._public = {name: private_key(name).public_key() for name in (AGGREGATOR, *DEVICES, HELPER, *OWN_KEYS)}

    def sign(self, data: bytes) -> bytes:
        return self._own.sign(data)

    def verify(self, sender: str, signature: bytes, data: bytes) -> None:
        key: Ed25519PublicKey | None = self._public.get(sender)
        if key is None:
            raise PeerError(f"found sender {sender!r}, expected one whose key is known", reason="sender")
        try:
            key.verify(signature, data)
        except InvalidSignature as fault:
            raise PeerError(f"signature of {sender} does not hold", reason="signature") from fault


class Stream:
    """Bytes that are as good as random and the same every time: SHA-256 of a name and a counter."""

    def __init__(self, name: str) -> None:
        self._name, self._counter = name.encode(), 0

    def __call__(self, count: int) -> bytes:
        made = b""
        while len(made) < count:
            made += hashlib.sha256(self._name + self._counter.to_bytes(8, "big")).digest()
            self._counter += 1
        return made[:count]


def plan() -> rounds.Plan:
    """Eight devices that open their own sum: 6 votes, 3 may be corrupt."""
    return rounds.Plan(
        task=TASK,
        version=1,
        feature_schema=features.NETWORK_FLOWS.digest,
        network=hashlib.sha256(b"golden network").hexdigest(),
        dimension=8,
        training=rounds.TrainingPlan(
            local_epochs=1, batch_size=32, learning_rate=0.01, examples_min=64, staleness_max=2
        ),
        update=rounds.UpdatePlan(clip_norm=1.0, weight_max=8, examples_reference=100, tensors=("conv1", "input")),
        groups=rounds.GroupPlan(
            group_size=8,
            members_max=8,
            survivors_min=5,
            quorum=5,
            checkins_max=64,
            committee_size=8,
            votes_min=6,
            threshold=6,
            corrupt_max=3,
        ),
        privacy=rounds.PrivacyPlan(participations_max=40, period_rounds=500),
    )


PLAN: Final = rounds.plan_bytes(plan())[1]
