"""The golden bad messages: bytes that must be refused, with the reason of the refusal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import golden_attestation as attest
import msgpack
from golden import (
    DEVICE,
    Good,
    TestKeys,
    a_command,
    an_alert,
    certificates,
    checkin,
    enrol_request,
    plan,
    receipt,
    release,
    release_with_diff,
    report,
    rolling,
    roster,
    upload,
)
from golden_round import close, opening, shares, vote
from golden_site import AGGREGATOR, TOKEN

from vedette_schemas import (
    alert,
    attestation,
    codec,
    command,
    enrolment,
    envelope,
    model,
    rollout,
    secagg,
    telemetry,
    trust,
)
from vedette_schemas import round as rounds
from vedette_schemas.codec import Message
from vedette_schemas.topics import WIRE_VERSION


@dataclass(frozen=True, slots=True)
class Bad:
    """Bytes that must be refused.

    Attributes:
        name: what is wrong with it.
        message: class that it is decoded as.
        encoding: as in `Good`.
        data: the bytes.
        reason: `PeerError.reason` of the refusal.
        says: a part of its message.
        kind: expected envelope type.
        sender: expected sender.
    """

    name: str
    message: type[Message]
    encoding: str
    data: bytes
    reason: str
    says: str
    kind: str = ""
    sender: str | None = None


def _plain(message: Message) -> dict[str, Any]:
    return message.model_dump(mode="python")


def _msgpack(plain: Any) -> bytes:
    data: bytes = msgpack.packb(plain, use_bin_type=True)
    return data


def _with(message: Message, **changes: Any) -> bytes:
    return _msgpack({**_plain(message), **changes})


def _without(message: Message, field: str) -> bytes:
    return _msgpack({k: v for k, v in _plain(message).items() if k != field})


def _json(old: bytes, new: bytes) -> bytes:
    data = alert.encode(an_alert())
    assert data.count(old) == 1, old
    return data.replace(old, new)


def _first(message: Message, field: str, **changes: Any) -> bytes:
    """The message with the first item of a list changed."""
    first, *rest = _plain(message)[field]
    return _with(message, **{field: ({**first, **changes}, *rest)})


def _part(message: Message, part: str, **changes: Any) -> bytes:
    """The message with fields of a part of it changed."""
    return _with(message, **{part: {**_plain(message)[part], **changes}})


def _nested(depth: int) -> bytes:
    return b"\x91" * depth + b"\x00"


@lru_cache(maxsize=1)
def bad() -> list[Bad]:
    sealed = Good("", upload(), "sealed", "", rounds.UPLOAD_TYPE, DEVICE).data()
    wrapped = msgpack.unpackb(sealed)
    kind = rounds.UPLOAD_TYPE
    checked_in = Good("", checkin(), "sealed", "", rounds.CHECKIN_TYPE, DEVICE).data()

    def rewrapped(change: Callable[[dict[str, Any]], None]) -> bytes:
        fields = dict(wrapped)
        change(fields)
        return _msgpack(fields)

    def resealed(body: bytes, signer: str = DEVICE, sender: str = DEVICE, kind: str = kind) -> bytes:
        signature = TestKeys(signer).sign(envelope.pre_authentication_encoding(kind, sender, body))
        return _msgpack({"v": WIRE_VERSION, "type": kind, "sender": sender, "body": body, "sig": signature})

    packed, r = codec.pack(report()), telemetry.Telemetry
    return [
        # Encoding and limits of msgpack.
        Bad("no bytes", r, "msgpack", b"", "encoding", "not msgpack"),
        Bad("not a map", r, "msgpack", b"\x2a", "schema", "Telemetry"),
        Bad("cut short", r, "msgpack", packed[:-1], "encoding", "not msgpack"),
        Bad("trailing byte", r, "msgpack", packed + b"\x00", "encoding", "extra"),
        Bad("duplicate key", r, "msgpack", b"\x82\xa1a\x01\xa1a\x02", "encoding", "duplicate"),
        Bad("integer key", r, "msgpack", b"\x81\x01\x02", "encoding", "int"),
        Bad("map of 5,000 announced", r, "msgpack", b"\xde\x13\x88", "encoding", "limits"),
        Bad("array of 4 billion announced", r, "msgpack", b"\xdd\xff\xff\xff\xff", "encoding", "limits"),
        Bad("string of 4 GB announced", r, "msgpack", b"\xdb\xff\xff\xff\xff", "encoding", "limits"),
        Bad("extension", r, "msgpack", b"\xc7\x01\x05\x00", "encoding", "ext"),
        Bad("empty extension", r, "msgpack", b"\xc7\x00\x05", "encoding", "extension 5"),
        Bad("time stamp extension", r, "msgpack", b"\xd6\xff\x00\x00\x00\x01", "encoding", "ext"),
        Bad("nested 17 deep", r, "msgpack", _nested(codec.DEPTH_MAX), "limit", "nesting deeper than 16"),
        Bad("nested 2,000 deep", r, "msgpack", _nested(2000), "encoding", "limits"),
        Bad("text that is no UTF-8", r, "msgpack", b"\x81\xa1\xff\x00", "encoding", "utf-8"),
        # Shape.
        Bad("unknown field", r, "msgpack", _with(report(), extra=1), "schema", "extra: Extra inputs"),
        Bad("missing field", r, "msgpack", _without(report(), "rss_bytes"), "schema", "rss_bytes: Field required"),
        Bad("text for a number", r, "msgpack", _with(report(), seq="5"), "schema", "seq"),
        Bad("float for an integer", r, "msgpack", _with(report(), seq=5.0), "schema", "seq"),
        Bad("boolean for an integer", r, "msgpack", _with(report(), seq=True), "schema", "seq"),
        Bad("NaN", r, "msgpack", _with(report(), cpu_s=float("nan")), "schema", "nan"),
        Bad("infinity", r, "msgpack", _with(report(), cpu_s=float("inf")), "schema", "inf"),
        Bad("negative count", r, "msgpack", _with(report(), spool_bytes=-1), "schema", "spool_bytes"),
        Bad("no receipts", telemetry.Receipt, "msgpack", _with(receipt(), items=()), "schema", "items"),
        Bad("id in capitals", telemetry.Receipt, "msgpack", _with(receipt(), device="GW-01"), "schema", "device"),
        Bad("unknown command", command.Command, "msgpack", _with(a_command(), action="boot"), "schema", "recalibrate"),
        Bad("command number 0", command.Command, "msgpack", _with(a_command(), seq=0), "schema", "seq"),
        Bad("command without an end", command.Command, "msgpack", _without(a_command(), "expires_s"), "schema",
            "expires_s: Field required"),
        Bad("quorum above the selection", rounds.Plan, "msgpack",
            _part(plan(), "groups", quorum=65), "schema", "quorum 65 exceeds"),
        Bad("more survivors than members", rounds.Plan, "msgpack",
            _part(plan(), "groups", survivors_min=9), "schema", "survivors_min 9 exceeds"),
        Bad("model too large", rounds.Plan, "msgpack",
            _with(plan(), dimension=rounds.DIMENSION_MAX + 1), "schema", "dimension"),
        # JSON.
        Bad("alert cut short", alert.Alert, "json", alert.encode(an_alert())[:-1], "encoding", "not JSON"),
        Bad(
            "alert whose evidence is too long",
            alert.Alert,
            "json",
            _json(b'"count":1,', b'"count":1,"evidence":"%b",' % (b"e" * 101)),
            "schema",
            "evidence: String should have at most 100",
        ),
        Bad("alert of 1,025 bytes", alert.Alert, "json", alert.encode(an_alert()).ljust(1025), "limit", "at most 1024"),
        Bad("alert of version 2", alert.Alert, "json", _json(b'"v":1', b'"v":2'), "schema", "v: Input should be 1"),
        Bad("alert with NaN", alert.Alert, "json", _json(b'"score":41.5', b'"score":NaN'), "encoding", "NaN"),
        Bad("alert with 1e999", alert.Alert, "json", _json(b'"score":41.5', b'"score":1e999'), "schema", "inf"),
        Bad("alert with a field twice", alert.Alert, "json", _json(b'"count":1', b'"count":1,"count":1'), "encoding",
            "duplicate"),
        Bad("alert with an unknown field", alert.Alert, "json", _json(b'"count":1', b'"count":1,"cause":1'), "schema",
            "cause: Extra inputs"),
        Bad("alert of unknown severity", alert.Alert, "json", _json(b'"high"', b'"severe"'), "schema", "severity"),
        Bad("alert at local time", alert.Alert, "json", _json(b'"time":"2026-03-01T12:00:05Z"',
            b'"time":"2026-03-01T12:00:05+01:00"'), "schema", "time"),
        Bad("alert that is a list", alert.Alert, "json", b"[]", "schema", "Alert"),
        Bad("release with a float", model.ReleaseTarget, "json",
            codec.pack_json(release()).replace(b'"0.5"', b"0.5"), "schema", "loss_after"),
        Bad("diff of no bytes", model.ReleaseTarget, "json",
            codec.pack_json(release_with_diff()).replace(b'"length":4175', b'"length":0'), "schema", "length"),
        Bad("revoked release without a digest", trust.RevokedRelease, "json",
            b'{"reason":"stolen","sha256":[],"version":7}', "schema", "sha256"),
        # Envelope.
        Bad("upload of wire version 2", rounds.Upload, "sealed", rewrapped(lambda f: f.update(v=2)), "version",
            "found wire version 2, expected 1; update the older side", kind, DEVICE),
        Bad("wire version 2 with other fields", rounds.Upload, "sealed",
            _msgpack({"v": 2, "kind": kind, "payload": b""}), "version", "update the older side", kind, DEVICE),
        Bad("a check-in where an upload is due", rounds.Upload, "sealed",
            checked_in, "type", "round.checkin", kind, DEVICE),
        Bad("type changed after signing", rounds.Upload, "sealed",
            _msgpack({**msgpack.unpackb(checked_in),
                      "type": kind}), "signature", DEVICE, kind, DEVICE),
        Bad("another device's upload", rounds.Upload, "sealed", sealed, "sender", "expected 'gw-02'", kind, "gw-02"),
        Bad("sender changed after signing", rounds.Upload, "sealed", rewrapped(lambda f: f.update(sender="gw-02")),
            "signature", "gw-02", kind, "gw-02"),
        Bad("unknown sender", rounds.Upload, "sealed",
            resealed(wrapped["body"], "gw-99", "gw-99"), "sender", "gw-99", kind, None),
        Bad("signed with another device's key", rounds.Upload, "sealed",
            resealed(wrapped["body"], "gw-02", DEVICE), "signature", DEVICE, kind, DEVICE),
        Bad("body changed after signing", rounds.Upload, "sealed",
            rewrapped(lambda f: f.update(body=f["body"][:-1] + bytes([f["body"][-1] ^ 1]))), "signature", DEVICE, kind,
            DEVICE),
        Bad("signature of 63 bytes", rounds.Upload, "sealed",
            rewrapped(lambda f: f.update(sig=f["sig"][:-1])), "schema", "sig", kind, DEVICE),
        Bad("signature as text", rounds.Upload, "sealed",
            rewrapped(lambda f: f.update(sig="0" * 64)), "schema", "sig", kind, DEVICE),
        Bad("unknown field in the envelope", rounds.Upload, "sealed",
            rewrapped(lambda f: f.update(hint=1)), "schema", "hint", kind, DEVICE),
        Bad("signed NaN", rounds.Roster, "sealed",
            resealed(_with(roster(), deadline_s=float("nan")), AGGREGATOR, AGGREGATOR, rounds.ROSTER_TYPE),
            "schema", "nan", rounds.ROSTER_TYPE, AGGREGATOR),
        Bad("signed, with trailing bytes", rounds.Upload, "sealed",
            resealed(codec.pack(upload()) + b"\x00"), "encoding", "extra", kind, DEVICE),
        Bad("signed, box of 8,193 bytes", rounds.Upload, "sealed",
            resealed(_with(upload(), boxes=(bytes(8193),))), "schema", "boxes", kind, DEVICE),
        # Plans.
        Bad("groups larger than rosters", rounds.Plan, "msgpack",
            _part(plan(), "groups", members_max=7), "schema", "group_size 8 exceeds members_max 7"),
        Bad("groups of 65", rounds.Plan, "msgpack",
            _part(plan(), "groups", members_max=65), "schema", "members_max"),
        Bad("a majority as committee", rounds.Plan, "msgpack",
            _part(plan(), "groups", committee="majority"), "schema", "committee"),
        Bad("plan without groups", rounds.Plan, "msgpack", _without(plan(), "groups"), "schema", "groups: Field"),
        Bad("levels of 5 bits", rounds.Plan, "msgpack", _part(plan(), "update", bits=5), "schema", "bits"),
        Bad("protection of another kind", rounds.Plan, "msgpack",
            _part(plan(), "update", protection="hidden"), "schema", "protection"),
        Bad("tensors out of order", rounds.Plan, "msgpack",
            _part(plan(), "update", tensors=("input", "conv1")), "schema", "tensors are not sorted"),
        Bad("noise of less than nothing", rounds.Plan, "msgpack",
            _part(plan(), "update", noise_sigma=-1.0), "schema", "noise_sigma"),
        Bad("a delta of one", rounds.Plan, "msgpack", _part(plan(), "privacy", delta=1.0), "schema", "delta"),
        Bad("a period of no rounds", rounds.Plan, "msgpack",
            _part(plan(), "privacy", period_rounds=0), "schema", "period_rounds"),
        # Check-ins.
        Bad("check-in without an offer", rounds.CheckIn, "msgpack", _without(checkin(), "offer"), "schema", "offer"),
        Bad("offer of 63 bytes", rounds.CheckIn, "msgpack", _with(checkin(), offer=bytes(63)), "schema", "offer"),
        Bad("key of 31 bytes", rounds.CheckIn, "msgpack", _with(checkin(), epk=bytes(31)), "schema", "epk"),
        Bad("check-in number 0", rounds.CheckIn, "msgpack", _with(checkin(), seq=0), "schema", "seq"),
        Bad("another role", rounds.CheckIn, "msgpack", _with(checkin(), role="lead"), "schema", "role"),
        Bad("cohort in capitals", rounds.CheckIn, "msgpack", _with(checkin(), cohort="A"), "schema", "cohort"),
        Bad("sketch of 33 bytes", rounds.CheckIn, "msgpack", _with(checkin(), sketch=bytes(33)), "schema", "sketch"),
        Bad("no certificate", rounds.CheckIn, "msgpack", _with(checkin(), certificate=b""), "schema", "certificate"),
        # Rosters.
        Bad("weight of 256", rounds.Roster, "msgpack", _first(roster(), "members", weight=256), "schema", "weight"),
        Bad("a member of id and key alone", rounds.Roster, "msgpack",
            _with(roster(), members=({"device": DEVICE, "epk": bytes(32)},)), "schema", "offer: Field required"),
        Bad("certificate of 2,049 bytes", rounds.Roster, "msgpack",
            _first(roster(), "members", certificate=bytes(2049)), "schema", "certificate"),
        Bad("roster of nobody", rounds.Roster, "msgpack", _with(roster(), members=()), "schema", "members"),
        Bad("beacon of 31 bytes", rounds.Roster, "msgpack", _with(roster(), beacon=bytes(31)), "schema", "beacon"),
        Bad("committee of names", rounds.Roster, "msgpack", _with(roster(), committee=(DEVICE,)), "schema",
            "committee"),
        Bad("a helper twice", rounds.Roster, "msgpack",
            _with(roster(), committee=_plain(roster())["members"][:1] * 2), "schema", "committee are not sorted"),
        Bad("members out of order", rounds.Roster, "msgpack",
            _with(roster(), members=tuple(reversed(_plain(roster())["members"]))), "schema", "not sorted"),
        Bad("a member twice", rounds.Roster, "msgpack",
            _with(roster(), members=_plain(roster())["members"][:1] * 2), "schema", "not sorted by unique"),
        # Uploads.
        Bad("boxes for 65", rounds.Upload, "msgpack", _with(upload(), boxes=(b"box",) * 65), "schema", "boxes"),
        Bad("commitment of 15 bytes", rounds.Upload, "msgpack",
            _with(upload(), commitments=(bytes(15),)), "schema", "commitments"),
        Bad("header of 63 bytes", rounds.Upload, "msgpack", _with(upload(), header=bytes(63)), "schema", "header"),
        Bad("upload that says its weight", rounds.Upload, "msgpack", _with(upload(), weight=2), "schema",
            "weight: Extra inputs"),
        # Attestation.
        Bad("nonce of 31 bytes", attestation.Challenge, "msgpack", _with(attest.challenge(), nonce=bytes(31)),
            "schema", "nonce"),
        Bad("claims of another profile", attestation.Claims, "msgpack",
            _with(attest.claims(), eat_profile="tag:vedette,2026:attestation-2"), "schema", "eat_profile"),
        Bad("measurements out of order", attestation.Claims, "msgpack",
            _with(attest.claims(), measurements=tuple(reversed(_plain(attest.claims())["measurements"]))), "schema",
            "measurements are not sorted"),
        Bad("a component twice", attestation.Claims, "msgpack",
            _with(attest.claims(), measurements=_plain(attest.claims())["measurements"][:1] * 2), "schema",
            "not sorted and unique"),
        Bad("debug state 5", attestation.Claims, "msgpack", _with(attest.claims(), dbgstat=5), "schema", "dbgstat"),
        Bad("evidence of tier 3", attestation.Evidence, "msgpack", _with(attest.evidence(), tier=3), "schema", "tier"),
        Bad("nine boot layers", attestation.Evidence, "msgpack",
            _with(attest.boot_evidence(), chain=_plain(attest.boot_evidence())["chain"][:1] * 9), "schema", "chain"),
        Bad("a register twice", attestation.Evidence, "msgpack",
            _with(attest.tpm_evidence(), pcrs=_plain(attest.tpm_evidence())["pcrs"][:1] * 2), "schema",
            "pcrs are not sorted"),
        Bad("passport of two days", attestation.Passport, "msgpack",
            _with(attest.passport(), exp=attest.NOW + 172_800.0), "schema", "at most 86400"),
        Bad("passport that ends before it begins", attestation.Passport, "msgpack",
            _with(attest.passport(), exp=attest.NOW - 1.0), "schema", "more than 0"),
        Bad("passport of another verdict", attestation.Passport, "msgpack",
            _with(attest.passport(), verdict="warning"), "schema", "verdict"),
        Bad("policy without references", attestation.AttestationPolicy, "msgpack",
            _with(attest.policy(), references=()), "schema", "references"),
        Bad("policy signed by the aggregator", attestation.AttestationPolicy, "sealed",
            Good("", attest.policy(), "sealed", "", attestation.POLICY_TYPE, AGGREGATOR).data(), "sender",
            "expected 'policy'", attestation.POLICY_TYPE, attestation.POLICY_ID),
        Bad("a challenge where an answer is due", attestation.AttestationAnswer, "sealed",
            Good("", attest.challenge(), "sealed", "", attestation.CHALLENGE_TYPE, AGGREGATOR).data(), "type",
            "attest.challenge", attestation.ANSWER_TYPE, AGGREGATOR),
        # The committee.
        Bad("close without survivors", secagg.Close, "msgpack", _with(close(), survivors=()), "schema", "survivors"),
        Bad("survivors out of order", secagg.Close, "msgpack",
            _with(close(), survivors=tuple(reversed(_plain(close())["survivors"]))), "schema", "not sorted"),
        Bad("a survivor twice", secagg.Close, "msgpack",
            _with(close(), survivors=_plain(close())["survivors"][:1] * 2), "schema", "not sorted by unique"),
        Bad("box longer than any share", secagg.Close, "msgpack",
            _first(close(), "survivors", box=bytes(secagg.BOX_BYTES_MAX + 1)), "schema", "box"),
        Bad("vote for a set of 31 bytes", secagg.Vote, "msgpack", _with(vote(), survivors=bytes(31)), "schema",
            "survivors"),
        Bad("vote of nobody", secagg.Vote, "msgpack", _with(vote(), member=""), "schema", "member"),
        Bad("complaints of 65", secagg.Vote, "msgpack",
            _with(vote(), complaints=tuple(f"gw-{i:02}" for i in range(65))), "schema", "complaints"),
        Bad("opening without votes", secagg.Opening, "msgpack", _with(opening(), votes=()), "schema", "votes"),
        Bad("votes of 65", secagg.Opening, "msgpack", _with(opening(), votes=(b"vote",) * 65), "schema", "votes"),
        Bad("shares out of order", secagg.Shares, "msgpack",
            _with(shares(), shares=tuple(reversed(_plain(shares())["shares"]))), "schema", "not sorted"),
        Bad("a device's shares twice", secagg.Shares, "msgpack",
            _with(shares(), shares=_plain(shares())["shares"][:1] * 2), "schema", "not sorted by unique"),
        Bad("share of 17 bytes", secagg.Shares, "msgpack",
            _first(shares(), "shares", own=bytes(17)), "schema", "own"),
        Bad("a vote where shares are due", secagg.Shares, "sealed",
            Good("", vote(), "sealed", "", secagg.VOTE_TYPE, "gw-02").data(), "type", "committee.vote",
            secagg.SHARES_TYPE, "gw-02"),
        Bad("another member's vote", secagg.Vote, "sealed",
            Good("", vote(), "sealed", "", secagg.VOTE_TYPE, "gw-02").data(), "sender", "expected 'gw-03'",
            secagg.VOTE_TYPE, "gw-03"),
        Bad("close that a device wrote", secagg.Close, "sealed",
            Good("", close(), "sealed", "", secagg.CLOSE_TYPE, DEVICE).data(), "sender", "expected 'aggregator'",
            secagg.CLOSE_TYPE, AGGREGATOR),
        # Enrolment.
        Bad("request without a key", enrolment.EnrolRequest, "msgpack",
            _with(enrol_request(), tls=b""), "schema", "tls"),
        Bad("request of 1,025 bytes", enrolment.EnrolRequest, "msgpack",
            _with(enrol_request(), signing=bytes(1025)), "schema", "signing"),
        Bad("request with a serial number of two lines", enrolment.EnrolRequest, "msgpack",
            _with(enrol_request(), serial="a\nb"), "schema", "serial"),
        Bad("another token's request", enrolment.EnrolRequest, "sealed",
            Good("", enrol_request(), "sealed", "", enrolment.ENROL_TYPE, DEVICE).data(), "sender",
            f"expected '{TOKEN}'", enrolment.ENROL_TYPE, TOKEN),
        Bad("enrolment where a renewal is due", enrolment.RenewRequest, "sealed",
            Good("", enrol_request(), "sealed", "", enrolment.ENROL_TYPE, TOKEN).data(), "type", "enrol.request",
            enrolment.RENEW_TYPE, TOKEN),
        Bad("reply with a certificate of 2,049 bytes", enrolment.CertificateReply, "msgpack",
            _with(certificates(), tls=bytes(2049)), "schema", "tls"),
        Bad("an answer that is neither yes nor no", enrolment.CertificateReply, "msgpack",
            _with(certificates(), outcome="perhaps"), "schema", "outcome"),
        # Rollouts.
        Bad("candidate that is no newer", rollout.RolloutState, "msgpack", _with(rolling(), candidate=6), "schema",
            "not newer than baseline"),
        Bad("cohorts that overlap", rollout.RolloutState, "msgpack",
            _with(rolling(), share_ppm=600_000, control_ppm=400_001), "schema", "overlap"),
        Bad("pins twice", rollout.RolloutState, "msgpack",
            _with(rolling(), pins=_plain(rolling())["pins"] * 2), "schema", "pins are not sorted"),
        Bad("exposed devices out of order", rollout.RolloutState, "msgpack",
            _with(rolling(), members=["gw-04", "gw-02"]), "schema", "members are not sorted"),
        Bad("salt of 15 bytes", rollout.RolloutState, "msgpack", _with(rolling(), salt=bytes(15)), "schema", "salt"),
        Bad("rollout that a device wrote", rollout.RolloutState, "sealed",
            Good("", rolling(), "sealed", "", rollout.ROLLOUT_TYPE, DEVICE).data(), "sender", "expected 'aggregator'",
            rollout.ROLLOUT_TYPE, AGGREGATOR),
    ]  # fmt: skip
