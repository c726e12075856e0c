"""The golden messages: one good example of every message, and digests.

Everything here is deterministic: keys come from seeds (they are test keys, made anew in every run), times and numbers
are fixed. ``python tests/vectors/regenerate.py`` writes what this module says into the JSON files beside it, and
`test_vectors.py` checks that both agree and that the product decodes, encodes and refuses as they tell. Another
implementation of the protocol can be checked with the JSON files alone. The bad ones are in `refused.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import golden_attestation as attest
import golden_round as group
from golden_round import checkin, roster, upload
from golden_site import AGGREGATOR, BEACON, CHAIN, DEVICE, DEVICES, HELPER, MODEL, PLAN, SITE, TOKEN, TestKeys, plan

from vedette_schemas import (
    alert,
    attestation,
    codec,
    command,
    enrolment,
    envelope,
    features,
    model,
    rollout,
    secagg,
    telemetry,
    trust,
)
from vedette_schemas import round as rounds
from vedette_schemas.codec import Message
from vedette_schemas.topics import FlStep

__all__ = ["DEVICE", "TestKeys", "checkin", "plan", "roster", "upload"]

FOLDER: Final = Path(__file__).parent


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
        rollouts=(telemetry.RolloutProgress(task="network", seq=9, candidate=7, outcome="none"),),
    )


def rolling(**changes: Any) -> rollout.RolloutState:
    fields: dict[str, Any] = {
        "task": "network",
        "rollout": 3,
        "seq": 9,
        "candidate": 7,
        "baseline": 6,
        "share_ppm": 10_000,
        "control_ppm": 10_000,
        "salt": bytes(range(16)),
        "state": rollout.RolloutPhase.RUNNING,
        "issued_s": 1_772_366_400.0,
        "expires_s": 1_772_452_800.0,
        "pins": (rollout.RolloutPin(device=DEVICE, version=6),),
        "members": ("gw-02", "gw-04"),
    }
    return rollout.RolloutState(**{**fields, **changes})


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
        model_version=6,
        sketch=bytes.fromhex("018101e8070502"),
        drift=telemetry.DriftReport(
            windows=2048,
            psi=0.0625,
            ks=0.125,
            ks_p=0.5,
            changes=1,
            unreadable_share=0.25,
            missing_share=0.0,
            constant=("dns_count",),
            shifted=("bytes_in",),
            calibration_error=0.0625,
            columns=(telemetry.ColumnDrift(name="bytes_in", psi=1.5),),
        ),
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


def a_command(**changes: Any) -> command.Command:
    fields: dict[str, Any] = {
        "device": DEVICE,
        "seq": 3,
        "issued_s": 1_800_000_000.0,
        "expires_s": 1_800_000_600.0,
        "action": "recalibrate",
        "task": "network",
        "reason": "scores have drifted",
    }
    return command.Command(**{**fields, **changes})


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


def enrol_request(**changes: Any) -> enrolment.EnrolRequest:
    fields: dict[str, Any] = {
        "id": "00112233445566778899aabbccddeeff",
        "token": TOKEN,
        "tls": b"PKCS #10 of a P-256 key",
        "signing": b"PKCS #10 of an Ed25519 key",
        "serial": "HW-0042",
    }
    return enrolment.EnrolRequest(**{**fields, **changes})


def renew_request() -> enrolment.RenewRequest:
    return enrolment.RenewRequest(
        id="ffeeddccbbaa99887766554433221100",
        device=DEVICE,
        certificate=b"signing certificate in force",
        tls=b"PKCS #10 of a new P-256 key",
        signing=b"PKCS #10 of the Ed25519 key",
    )


def certificates() -> enrolment.CertificateReply:
    return enrolment.CertificateReply(
        request="00112233445566778899aabbccddeeff",
        outcome="issued",
        holder=DEVICE,
        tls=b"TLS leaf",
        signing=b"signing leaf",
        intermediate=b"online authority",
        aggregator=b"the aggregator's signing leaf",
        aggregator_intermediate=b"online authority",
    )


def no_certificates() -> enrolment.CertificateReply:
    return enrolment.CertificateReply(
        request="ffeeddccbbaa99887766554433221100", outcome="refused", reason="certificate of gw-01: found it revoked"
    )


def release_with_diff() -> model.ReleaseTarget:
    diff = model.ReleaseDiff(parent=MODEL, sha256="d1" * 32, length=4175)
    return release().model_copy(update={"diff": diff})


def revoked() -> trust.RevokedRelease:
    return trust.RevokedRelease(version=7, sha256=("5e" * 32, "7f" * 32), reason="signed with a stolen release key")


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


@lru_cache(maxsize=1)
def good() -> list[Good]:
    return [
        Good("alert", an_alert(), "json", SITE.alert(DEVICE)),
        Good("alert with evidence", an_alert(evidence="device:al-gw-01-000001"), "json", SITE.alert(DEVICE)),
        Good(
            "alert closed",
            an_alert(seq=3, state=alert.AlertState.CLOSED, count=9, features=()),
            "json",
            SITE.alert(DEVICE),
        ),
        Good("state", state(), "json", SITE.state(DEVICE)),
        Good("telemetry", report(), "msgpack", SITE.telemetry(DEVICE)),
        Good("receipt", receipt(), "sealed", SITE.receipt(DEVICE), telemetry.RECEIPT_TYPE, AGGREGATOR),
        Good("command", a_command(), "sealed", SITE.command(DEVICE), command.COMMAND_TYPE, AGGREGATOR),
        Good(
            "command for a cold start",
            a_command(action="cold-start", version=6, sketch=bytes.fromhex("018101e8070502"), reason=""),
            "sealed",
            SITE.command(DEVICE),
            command.COMMAND_TYPE,
            AGGREGATOR,
        ),
        Good("rollout", rolling(), "sealed", SITE.rollout("network"), rollout.ROLLOUT_TYPE, AGGREGATOR),
        Good("trust index", index(), "json", SITE.trust(trust.INDEX_FILE)),
        Good("beacon anchor", CHAIN.anchor, "json"),
        Good("plan", plan(), "msgpack"),
        Good("release", release(), "json"),
        Good("release with a diff", release_with_diff(), "json"),
        Good("revoked release", revoked(), "json"),
        Good("round open", group.round_open(), "sealed", SITE.round("network"), rounds.OPEN_TYPE, AGGREGATOR),
        Good(
            "round open at check-in",
            group.round_open(phase=rounds.Phase.CHECKIN, deadline_s=0.0, groups=0, beacon=b""),
            "sealed",
            SITE.round("network"),
            rounds.OPEN_TYPE,
            AGGREGATOR,
        ),
        Good("roster", roster(), "sealed", SITE.group("network", 0), rounds.ROSTER_TYPE, AGGREGATOR),
        Good(
            "roster with a helper",
            roster(committee=(group.member(HELPER, 0, "unmask"),)),
            "sealed",
            SITE.group("network", 0),
            rounds.ROSTER_TYPE,
            AGGREGATOR,
        ),
        _from(DEVICE, "checkin", checkin(), FlStep.CHECKIN, rounds.CHECKIN_TYPE),
        _from(HELPER, "checkin of a helper", group.helper_checkin(), FlStep.CHECKIN, rounds.CHECKIN_TYPE),
        *(_from(d, f"upload of {d}", upload(d), FlStep.UPLOAD, rounds.UPLOAD_TYPE) for d in group.SURVIVORS),
        _from(DEVICE, "upload without masking", group.plain_upload(), FlStep.UPLOAD, rounds.UPLOAD_TYPE),
        Good("close", group.close(), "sealed", SITE.committee(group.MEMBER), secagg.CLOSE_TYPE, AGGREGATOR),
        _from(group.MEMBER, "vote", group.vote(), FlStep.VOTE, secagg.VOTE_TYPE),
        _from(
            group.MEMBER, "vote with a complaint", group.vote(complaints=(DEVICES[2],)), FlStep.VOTE, secagg.VOTE_TYPE
        ),
        Good("opening", group.opening(), "sealed", SITE.committee(group.MEMBER), secagg.OPENING_TYPE, AGGREGATOR),
        _from(group.MEMBER, "shares", group.shares(), FlStep.SHARES, secagg.SHARES_TYPE),
        Good("enrolment", enrol_request(), "sealed", SITE.enrolment_request(TOKEN), enrolment.ENROL_TYPE, TOKEN),
        Good("enrolment answered", certificates(), "msgpack", SITE.enrolment_reply(TOKEN)),
        Good("renewal", renew_request(), "sealed", SITE.renewal_request(DEVICE), enrolment.RENEW_TYPE, DEVICE),
        Good("renewal refused", no_certificates(), "msgpack", SITE.renewal_reply(DEVICE)),
        *_attestation(),
    ]


def _attestation() -> list[Good]:
    up, down = SITE.rpc_up(DEVICE, attestation.RPC_NAME), SITE.rpc_down(DEVICE, attestation.RPC_NAME)

    def good(name: str, message: Message, kind: str, sender: str, topic: str = "") -> Good:
        return Good(name, message, "sealed", topic, kind, sender)

    return [
        good("attestation request", attest.request(), attestation.REQUEST_TYPE, DEVICE, up),
        good("attestation challenge", attest.challenge(), attestation.CHALLENGE_TYPE, AGGREGATOR, down),
        Good("attestation claims", attest.claims(), "msgpack"),
        good("evidence of tier 0", attest.evidence(), attestation.EVIDENCE_TYPE, DEVICE, up),
        good("evidence of tier 1", attest.boot_evidence(), attestation.EVIDENCE_TYPE, DEVICE, up),
        good("evidence of tier 2", attest.tpm_evidence(), attestation.EVIDENCE_TYPE, DEVICE, up),
        good("attestation answer", attest.answer(), attestation.ANSWER_TYPE, AGGREGATOR, down),
        good("attestation refusal", attest.refusal(), attestation.ANSWER_TYPE, AGGREGATOR, down),
        good("passport", attest.passport(), attestation.PASSPORT_TYPE, attestation.VERIFIER_ID),
        good("attestation policy", attest.policy(), attestation.POLICY_TYPE, attestation.POLICY_ID),
        good("attesting keys shown", attest.enrolment_request(), attestation.ENROLMENT_TYPE, DEVICE),
        Good("attesting keys", attest.enrolment(), "msgpack"),
        good("aggregator statement", attest.statement(), attestation.STATEMENT_TYPE, AGGREGATOR, SITE.attestation),
    ]


def _from(device: str, name: str, message: Message, step: FlStep, kind: str) -> Good:
    return Good(name, message, "sealed", SITE.fl(device, "network", step), kind, device)


def decode(message: type[Message], encoding: str, data: bytes, kind: str, sender: str | None) -> Message:
    """Decode as the product does."""
    if encoding == "sealed":
        return envelope.unseal(message, data, kind, TestKeys(), sender=sender)[0]
    if encoding == "msgpack":
        return codec.unpack(message, data)
    return alert.decode(data) if message is alert.Alert else codec.unpack_json(message, data)


def digests() -> dict[str, Any]:
    """What two implementations must compute alike."""
    return {
        "pre_authentication_encoding": envelope.pre_authentication_encoding("round.upload", DEVICE, b"\x00\x01").hex(),
        "group_of": {
            f"{device} of {groups}": rounds.group_of(BEACON, "network", device, groups)
            for device in DEVICES[:3]
            for groups in (1, 2, 7, 512)
        },
        "beacon_chain": {str(epoch): CHAIN.value(epoch).hex() for epoch in (1, 2, 3, 4)},
        "network_flows_digest": features.NETWORK_FLOWS.digest,
        "sensor_schema_digest": features.sensor_schema(("level_m", "flow_m3_s")).digest,
        **group.digests(),
        **attest.digests(),
    }
