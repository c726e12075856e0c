"""The golden messages: one good example of every message, and digests.

Everything here is deterministic: keys come from seeds (they are test keys, made anew in every run), times and numbers
are fixed. ``python tests/vectors/regenerate.py`` writes what this module says into the JSON files beside it, and
`test_vectors.py` checks that both agree and that the product decodes, encodes and refuses as they tell. Another
implementation of the protocol can be checked with the JSON files alone. The bad ones are in `refused.py`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from vedette_schemas import alert, codec, envelope, features, model, telemetry, trust
from vedette_schemas import round as rounds
from vedette_schemas.codec import Message
from vedette_schemas.errors import PeerError
from vedette_schemas.topics import FlStep, Topics

FOLDER: Final = Path(__file__).parent
SITE: Final = Topics("plant-1")
AGGREGATOR: Final = "aggregator"
DEVICE: Final = "gw-01"

MODEL: Final = hashlib.sha256(b"golden model").hexdigest()
PLAN: Final = hashlib.sha256(b"golden plan").hexdigest()
BEACON: Final = hashlib.sha256(b"golden beacon").digest()


def private_key(identity: str) -> Ed25519PrivateKey:
    """The test key of an identity, from a seed: never one that protects anything."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"vedette test key of {identity}".encode()).digest())


class TestKeys:
    """Signs and verifies for `aggregator` and the devices ``gw-01`` … ``gw-03``; knows nobody else."""

    __test__ = False  # not a class of tests

    def __init__(self, identity: str = AGGREGATOR) -> None:
        self._own = private_key(identity)
        self._public = {name: private_key(name).public_key() for name in (AGGREGATOR, "gw-01", "gw-02", "gw-03")}

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


def _epk(device: str) -> bytes:
    return hashlib.sha256(f"golden epk of {device}".encode()).digest()


def plan() -> rounds.Plan:
    return rounds.Plan(
        task="network",
        version=1,
        feature_schema=features.NETWORK_FLOWS.digest,
        network=hashlib.sha256(b"golden network").hexdigest(),
        dimension=8,
        training=rounds.TrainingPlan(local_epochs=1, batch_size=32, learning_rate=0.01, examples_min=64),
        update=rounds.UpdatePlan(clip_norm=1.0, weight_max=8, examples_reference=100),
        groups=rounds.GroupPlan(group_size=32, survivors_min=5, quorum=5, checkins_max=64),
    )


def roster(**changes: Any) -> rounds.Roster:
    fields: dict[str, Any] = {
        "task": "network",
        "round": 7,
        "attempt": 1,
        "gid": 0,
        "model": MODEL,
        "model_version": 6,
        "plan": PLAN,
        "beacon": BEACON,
        "members": tuple(rounds.Member(device=d, epk=_epk(d)) for d in ("gw-01", "gw-02", "gw-03")),
        "deadline_s": 1_800_000_600.0,
    }
    return rounds.Roster(**{**fields, **changes})


def upload(**changes: Any) -> rounds.Upload:
    fields: dict[str, Any] = {
        "id": rounds.upload_id("network", 7, 1, DEVICE),
        "task": "network",
        "round": 7,
        "attempt": 1,
        "gid": 0,
        "device": DEVICE,
        "transcript": rounds.transcript_hash(roster()),
        "levels": bytes(range(0, 256, 32)),
        "weight": 3,
        "num_examples": 312,
        "clipped": True,
        "loss_before": 0.75,
        "loss_after": 0.5,
        "ranges": (rounds.ActivationRange(tensor="conv1", low=-1.5, high=6.0),),
    }
    return rounds.Upload(**{**fields, **changes})


def round_open() -> rounds.RoundOpen:
    return rounds.RoundOpen(
        task="network",
        round=7,
        attempt=1,
        model=MODEL,
        model_version=6,
        plan=PLAN,
        phase=rounds.Phase.COLLECT,
        checkin_until_s=1_800_000_000.0,
        deadline_s=1_800_000_600.0,
        groups=1,
        beacon=BEACON,
    )


def checkin() -> rounds.CheckIn:
    return rounds.CheckIn(
        id=rounds.checkin_id("network", _epk(DEVICE)),
        task="network",
        device=DEVICE,
        certificate=b"DER of the signing certificate",
        intermediate=b"DER of its issuer",
        epk=_epk(DEVICE),
        examples_bucket=8,
        feature_schema=features.NETWORK_FLOWS.digest,
        model_version=6,
    )


def an_alert(**changes: Any) -> alert.Alert:
    fields: dict[str, Any] = {
        "id": "al-gw-01-000001",
        "seq": 0,
        "time": "2026-03-01T12:00:05Z",
        "site": "plant-1",
        "device": DEVICE,
        "entity": "10.0.1.17",
        "detector": "network",
        "kind": "magnitude",
        "severity": alert.Severity.HIGH,
        "confidence": 0.97,
        "score": 41.5,
        "p_value": 1e-6,
        "threshold": 3.25,
        "window_start": "2026-03-01T12:00:00Z",
        "window_end": "2026-03-01T12:00:05Z",
        "features": (
            alert.FeatureReason(name="syn_count", value=812.0, usual=(0.0, 4.0), share=0.61),
            alert.FeatureReason(name="connects_failed", value=790.0, usual=(0.0, 1.0), share=0.22),
        ),
        "model": alert.AlertModel(task="network", version=6, digest=MODEL[:16]),
        "state": alert.AlertState.OPEN,
        "count": 1,
        "summary": "10.0.1.17: syn_count is 812, usually 0 to 4",
    }
    return alert.Alert(**{**fields, **changes})


def state() -> telemetry.DeviceState:
    return telemetry.DeviceState(
        device=DEVICE,
        status="online",
        session="00112233445566ff",
        seq=4,
        time="2026-03-01T12:00:00Z",
        software="0.1.0",
        models=(telemetry.ActiveModel(task="network", version=6, variant="int8", digest=MODEL, backend="litert"),),
    )


def report() -> telemetry.Telemetry:
    detector = telemetry.DetectorReport(
        task="network",
        phase="armed",
        windows=4096,
        refused={"truncated": 2},
        p_histogram=(4000, 60, 20, 10, 4, 2),
        score_us_p50=38.5,
        score_us_p99=92.0,
        alerts_opened=1,
        first_scored_s=1_799_990_000.0,
        last_scored_s=1_800_000_000.0,
    )
    return telemetry.Telemetry(
        device=DEVICE,
        session="00112233445566ff",
        seq=5,
        time_s=1_800_000_000.5,
        uptime_s=3600.0,
        rss_bytes=94_371_840,
        cpu_s=12.25,
        spool_messages=0,
        spool_bytes=0,
        spool_dropped=0,
        bytes_up=5120,
        detectors=(detector,),
    )


def receipt() -> telemetry.Receipt:
    return telemetry.Receipt(
        device=DEVICE,
        items=(
            telemetry.ReceiptItem(id="al-gw-01-000001/0", outcome="accepted"),
            telemetry.ReceiptItem(id="up-network-6-1-gw-01", outcome="rejected", reason="round 6 is over"),
        ),
    )


def index() -> trust.TrustIndex:
    return trust.TrustIndex(
        files=("1.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json", "1.network.json")
    )


def release() -> model.ReleaseTarget:
    return model.ReleaseTarget(
        task="network",
        version=7,
        parent=MODEL,
        round=7,
        variant=model.Variant.INT8,
        format="tflite",
        feature_schema=features.NETWORK_FLOWS.digest,
        runtime_min="2.14.0",
        contributors=3,
        transcript=rounds.transcript_hash(roster()).hex(),
        plan=PLAN,
        metrics={"loss_after": model.decimal(0.5), "loss_before": model.decimal(0.75)},
        active=True,
    )


@dataclass(frozen=True, slots=True)
class Good:
    """A message that must be decoded and encoded again to the same bytes.

    Attributes:
        name: of the vector.
        message: the body.
        encoding: ``msgpack``, ``json``, or ``sealed`` (msgpack in the signed envelope).
        topic: where it travels; empty for a body that travels inside TUF metadata or as an artifact.
        kind: the envelope's type, for sealed ones.
        sender: who sealed it.
    """

    name: str
    message: Message
    encoding: str
    topic: str = ""
    kind: str = ""
    sender: str = ""

    def data(self) -> bytes:
        """The bytes as published."""
        if self.encoding == "sealed":
            return envelope.seal(self.message, self.kind, self.sender, TestKeys(self.sender))
        if isinstance(self.message, alert.Alert):
            return alert.encode(self.message)
        return codec.pack_json(self.message) if self.encoding == "json" else codec.pack(self.message)


def good() -> list[Good]:
    return [
        Good("alert", an_alert(), "json", SITE.alert(DEVICE)),
        Good(
            "alert closed",
            an_alert(seq=3, state=alert.AlertState.CLOSED, count=9, features=()),
            "json",
            SITE.alert(DEVICE),
        ),
        Good("state", state(), "json", SITE.state(DEVICE)),
        Good("telemetry", report(), "msgpack", SITE.telemetry(DEVICE)),
        Good("receipt", receipt(), "sealed", SITE.receipt(DEVICE), telemetry.RECEIPT_TYPE, AGGREGATOR),
        Good("trust index", index(), "json", SITE.trust(trust.INDEX_FILE)),
        Good("plan", plan(), "msgpack"),
        Good("release", release(), "json"),
        Good("round open", round_open(), "sealed", SITE.round("network"), rounds.OPEN_TYPE, AGGREGATOR),
        Good("roster", roster(), "sealed", SITE.group("network", 0), rounds.ROSTER_TYPE, AGGREGATOR),
        Good("checkin", checkin(), "sealed", SITE.fl(DEVICE, "network", FlStep.CHECKIN), rounds.CHECKIN_TYPE, DEVICE),
        Good("upload", upload(), "sealed", SITE.fl(DEVICE, "network", FlStep.UPLOAD), rounds.UPLOAD_TYPE, DEVICE),
    ]


def decode(message: type[Message], encoding: str, data: bytes, kind: str, sender: str | None) -> Message:
    """Decode as the product does."""
    if encoding == "sealed":
        return envelope.unseal(message, data, kind, TestKeys(), sender=sender)[0]
    if encoding == "msgpack":
        return codec.unpack(message, data)
    return alert.decode(data) if message is alert.Alert else codec.unpack_json(message, data)


def digests() -> dict[str, Any]:
    """What two implementations must compute alike."""
    inline = roster(committee=("gw-01", "gw-02", "gw-03"))
    return {
        "pre_authentication_encoding": envelope.pre_authentication_encoding("round.upload", DEVICE, b"\x00\x01").hex(),
        "roster_hash": rounds.roster_hash(roster()).hex(),
        "roster_hash_with_committee": rounds.roster_hash(inline).hex(),
        "transcript_hash": rounds.transcript_hash(roster()).hex(),
        "transcript_hash_attempt_2": rounds.transcript_hash(roster(attempt=2)).hex(),
        "group_of": {
            f"{device} of {groups}": rounds.group_of(BEACON, "network", device, groups)
            for device in ("gw-01", "gw-02", "gw-03")
            for groups in (1, 2, 7, 512)
        },
        "network_flows_digest": features.NETWORK_FLOWS.digest,
        "sensor_schema_digest": features.sensor_schema(("level_m", "flow_m3_s")).digest,
        "public_keys": {
            name: private_key(name).public_key().public_bytes_raw().hex()
            for name in (AGGREGATOR, "gw-01", "gw-02", "gw-03")
        },
    }
