"""What message bodies promise beyond their types: bindings, limits that belong together, the published JSON Schema."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import msgpack
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from vedette_core.crypto.certificate_chain import der
from vedette_core.crypto.certificates import CertificateRole, Issuer, Purpose, make_intermediate, make_leaf, make_root
from vedette_schemas import alert, codec
from vedette_schemas.alert import Alert, AlertModel, AlertState, FeatureReason, Severity
from vedette_schemas.errors import PeerError
from vedette_schemas.features import COLUMN_NAME_CHARACTERS_MAX, NETWORK_FLOWS
from vedette_schemas.model import CHUNK_BYTES, ReleaseTarget, Variant, decimal, parse_custom, target_path
from vedette_schemas.round import (
    COMMITTEE_MAX,
    DIGEST_BYTES,
    GROUP_MEMBERS_MAX,
    VECTOR_BYTES_MAX,
    GroupPlan,
    Member,
    Roster,
    UpdatePlan,
    Upload,
    box_digest,
    checkin_id,
    epoch_of,
    group_of,
    header_of,
    offer_statement,
    roster_hash,
    transcript_hash,
    upload_id,
)
from vedette_schemas.secagg import (
    BOX_BYTES_MAX,
    SECRET_BYTES,
    Close,
    DeviceShares,
    Opening,
    Shares,
    Survivor,
    Vote,
    shares_id,
    survivors_hash,
    vote_id,
)
from vedette_schemas.telemetry import ReceiptItem

SCHEMA_FILE = Path(__file__).parents[2] / "schemas" / "alert.schema.json"
LONGEST_ID = "d" * 60
ENVELOPE_BYTES = 300
"""What an envelope adds to a body, with the longest id and type."""
CERTIFICATE_BYTES = 760
"""A signing certificate of the longest ids: see `test_the_largest_certificate_is_what_rosters_are_reckoned_with`."""


def a_member(device: str, key: bytes = b"1", weight: int = 1, **changes: Any) -> Member:
    fields: dict[str, Any] = {
        "device": device,
        "epk": key * 32,
        "seq": 1,
        "certificate": b"certificate",
        "offer": bytes(64),
        "weight": weight,
    }
    return Member(**{**fields, **changes})


def a_roster(**changes: Any) -> Roster:
    fields: dict[str, Any] = {
        "task": "network",
        "round": 3,
        "attempt": 1,
        "gid": 0,
        "model": "a" * 64,
        "model_version": 2,
        "plan": "b" * 64,
        "beacon": b"c" * 32,
        "members": (a_member("gw-01", b"1"), a_member("gw-02", b"2")),
        "committee": (a_member("helper-1", b"h", 0),),
        "deadline_s": 100.0,
    }
    return Roster(**{**fields, **changes})


@pytest.mark.parametrize(
    "change",
    [
        {"task": "sensor"},
        {"round": 4},
        {"attempt": 2},
        {"gid": 1},
        {"model": "d" * 64},
        {"plan": "d" * 64},
        {"beacon": b"d" * 32},
        {"members": (a_member("gw-01", b"1"),)},
        {"members": (a_member("gw-01", b"1"), a_member("gw-02", b"3"))},
        {"members": (a_member("gw-01", b"1"), a_member("gw-03", b"2"))},
        {"members": (a_member("gw-01", b"1"), a_member("gw-02", b"2", 2))},
        {"committee": ()},
        {"committee": (a_member("helper-2", b"h", 0),)},
        {"committee": (a_member("helper-1", b"i", 0),)},
        {"committee": (a_member("helper-1", b"h", 0), a_member("helper-2", b"i", 0))},
    ],
    ids=lambda c: "-".join(c),
)
def test_the_transcript_binds_everything_that_a_round_belongs_to(change: dict[str, Any]) -> None:
    assert transcript_hash(a_roster(**change)) != transcript_hash(a_roster())


def test_the_transcript_does_not_bind_when_the_round_ends() -> None:
    """Neither the deadline nor the version's number: the model is bound by its digest."""
    assert transcript_hash(a_roster(deadline_s=5.0, model_version=9)) == transcript_hash(a_roster())


def test_a_committee_is_never_read_as_a_member() -> None:
    first, second = a_member("a", b"k"), a_member("b", b"x", 0)
    inside = a_roster(members=(first, second), committee=())
    outside = a_roster(members=(first,), committee=(second,))
    assert roster_hash(inside) != roster_hash(outside)


def test_certificates_and_offers_are_not_in_the_transcript() -> None:
    """They are signatures and checked as such: whoever renews a certificate does not change the round."""
    renewed = (a_member("gw-01", b"1", certificate=b"another"), a_member("gw-02", b"2", offer=b"s" * 64))
    assert transcript_hash(a_roster(members=renewed)) == transcript_hash(a_roster())


def test_an_offer_is_good_for_one_task_device_number_key_and_role() -> None:
    said = {"task": "network", "device": "gw-01", "seq": 3, "epk": b"k" * 32, "role": "contribute"}
    changes: list[dict[str, Any]] = [
        {"task": "sensor"}, {"device": "gw-02"}, {"seq": 4}, {"epk": b"l" * 32}, {"role": "unmask"},
        {"task": "networkg", "device": "w-01"},
    ]  # fmt: skip
    statements = [offer_statement(**{**said, **change}) for change in ({}, *changes)]  # type: ignore[arg-type]
    assert len(set(statements)) == len(statements)


def an_upload(**changes: Any) -> Upload:
    fields: dict[str, Any] = {
        "id": "up", "task": "network", "round": 3, "attempt": 1, "gid": 0, "device": "gw-01", "transcript": bytes(32),
        "vector": b"vector", "boxes": (b"box 1", b"box 2"), "commitments": (b"c" * 16, b"d" * 16), "header": bytes(64),
    }  # fmt: skip
    return Upload(**{**fields, **changes})


@pytest.mark.parametrize(
    "change",
    [
        {"transcript": b"t" * 32},
        {"device": "gw-02"},
        {"vector": b"vectors"},
        {"boxes": (b"box 2", b"box 1")},
        {"boxes": (b"box 1",)},
        {"commitments": (b"d" * 16, b"c" * 16)},
        {"commitments": (b"c" * 16,)},
    ],
    ids=str,
)
def test_a_header_binds_everything_that_an_upload_promises(change: dict[str, Any]) -> None:
    assert codec.pack(header_of(an_upload(**change))) != codec.pack(header_of(an_upload()))


def test_a_header_does_not_hold_what_it_speaks_of() -> None:
    header = header_of(an_upload(vector=bytes(5000), boxes=(bytes(5000),)))
    assert len(codec.pack(header)) < 300
    assert header.boxes == (box_digest(bytes(5000)),)


def test_a_vote_is_for_one_group_one_set_and_these_vectors() -> None:
    headers = [header_of(an_upload(device=d, vector=d.encode())) for d in ("gw-01", "gw-02", "gw-03")]
    wanted = survivors_hash(b"t" * 32, tuple(headers))
    assert survivors_hash(b"t" * 32, tuple(reversed(headers))) == wanted, "a set has no order"
    other = header_of(an_upload(device="gw-03", vector=b"another"))
    for transcript, listed in (
        (b"u" * 32, headers),
        (b"t" * 32, headers[:2]),
        (b"t" * 32, [*headers[:2], other]),
    ):
        assert survivors_hash(transcript, tuple(listed)) != wanted


def test_epochs_count_from_one() -> None:
    assert [epoch_of(number, 10) for number in (1, 10, 11, 20, 21)] == [1, 1, 2, 2, 3]
    assert [epoch_of(number, 1) for number in (1, 2, 3)] == [1, 2, 3]


def test_groups_are_even_and_depend_on_the_beacon_and_the_task() -> None:
    devices = [f"gw-{i:04}" for i in range(2000)]
    sizes = Counter(group_of(b"beacon", "network", d, 8) for d in devices)
    # 250 expected each, standard deviation 15: six of them.
    assert all(160 < sizes[g] < 340 for g in range(8)), sizes
    for other in ({"beacon": b"another"}, {"task": "sensor"}):
        same = {"beacon": b"beacon", "task": "network", **other}
        moved = sum(group_of(b"beacon", "network", d, 8) != group_of(device=d, groups=8, **same) for d in devices)  # type: ignore[arg-type]
        assert moved > 1500


def test_no_groups_is_refused() -> None:
    with pytest.raises(PeerError, match="found 0 groups, expected at least 1"):
        group_of(b"", "network", "gw-01", 0)


def test_the_longest_upload_id_fits_an_upload_and_its_receipt() -> None:
    longest = upload_id("t" * 40, 2**31 - 1, 16, LONGEST_ID)
    ReceiptItem(id=longest, outcome="accepted")
    an_upload(id=longest)


@pytest.mark.parametrize("name", [vote_id, shares_id])
def test_the_longest_id_of_a_committees_message_fits_it_and_its_receipt(name: Any) -> None:
    longest = name("t" * 40, 2**31 - 1, 16, 511, LONGEST_ID)
    ReceiptItem(id=longest, outcome="accepted")
    a_vote(id=longest)


def a_vote(**changes: Any) -> Vote:
    fields: dict[str, Any] = {
        "id": "vo", "task": "network", "round": 3, "attempt": 1, "gid": 0, "member": "gw-01", "transcript": bytes(32),
        "survivors": bytes(32),
    }  # fmt: skip
    return Vote(**{**fields, **changes})


def test_ids_of_a_committees_messages_tell_groups_apart() -> None:
    places = [(t, r, a, g) for t in ("n", "n-1", "n-1-1") for r in (1, 11) for a in (1, 11) for g in (1, 11)]
    ids = {name(*place, "gw-01") for name in (vote_id, shares_id) for place in places}
    assert len(ids) == 2 * len(places)


def test_the_id_of_a_checkin_is_its_keys() -> None:
    ids = {checkin_id(task, key * 32) for task in ("n", "n-1") for key in (b"a", b"b")}
    assert len(ids) == 4
    ReceiptItem(id=checkin_id("t" * 40, b"k" * 32), outcome="accepted")


def test_upload_ids_of_one_device_tell_rounds_apart() -> None:
    ids = {upload_id(t, r, a, "gw-01") for t in ("n", "n-1", "n-1-1") for r in (1, 11, 111) for a in (1, 11)}
    assert len(ids) == 18


LONGEST: dict[str, Any] = {"task": "t" * 40, "round": 2**31 - 1, "attempt": 16, "gid": 511, "transcript": bytes(32)}
EVERYBODY = tuple(f"d{i:059}" for i in range(GROUP_MEMBERS_MAX))


def test_the_largest_upload_fits_a_sealed_message() -> None:
    """The largest vector that a plan may ask for, with the default group and committee beside it.

    With more boxes less fits: `vedette_core.secagg.parameters.check_plan` refuses such plans, see its tests.
    """
    upload = Upload(
        id="u" * 120,
        **LONGEST,
        device=LONGEST_ID,
        vector=bytes(VECTOR_BYTES_MAX),
        boxes=(bytes(SECRET_BYTES * 32 + 28),) * 15,
        commitments=(bytes(DIGEST_BYTES),) * 32,
        header=bytes(64),
    )
    plain = upload.model_dump(mode="python")
    assert len(msgpack.packb(plain)) + ENVELOPE_BYTES <= codec.PAYLOAD_BYTES_MAX


def test_a_chunk_fits_a_message() -> None:
    assert CHUNK_BYTES + 600 < codec.PAYLOAD_BYTES_MAX


def test_the_largest_roster_fits_a_sealed_message() -> None:
    listed = {"key": b"k", "certificate": bytes(CERTIFICATE_BYTES), "seq": 2**53}
    members = tuple(a_member(d, weight=255, **listed) for d in EVERYBODY)
    committee = tuple(a_member("h" + d[1:], weight=0, **listed) for d in EVERYBODY[:COMMITTEE_MAX])
    roster = a_roster(members=members, committee=committee)
    assert len(codec.pack(roster)) + ENVELOPE_BYTES < codec.PAYLOAD_BYTES_MAX // 2


def test_the_largest_certificate_is_what_rosters_are_reckoned_with() -> None:
    root_key, online_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    site = "s" * 60
    root = make_root(root_key, site, now=1.9e9, serial=2**159 - 1)
    issuer = make_intermediate(Issuer(root, root_key), online_key.public_key(), site, now=1.9e9, serial=2**159 - 2)
    made = make_leaf(
        Issuer(issuer, online_key),
        Ed25519PrivateKey.generate().public_key(),
        holder=LONGEST_ID,
        role=CertificateRole.COMMITTEE,
        site=site,
        purpose=Purpose.SIGNING,
        now=1.9e9,
        serial=2**159 - 3,
    )
    assert len(der(made)) <= CERTIFICATE_BYTES


def test_the_largest_messages_of_a_committee_fit_sealed() -> None:
    survivors = tuple(
        Survivor(
            device=device,
            vector=bytes(32),
            boxes=(bytes(DIGEST_BYTES),) * COMMITTEE_MAX,
            commitments=bytes(32),
            header=bytes(64),
            box=bytes(BOX_BYTES_MAX),
        )
        for device in EVERYBODY
    )
    close = Close(**LONGEST, survivors=survivors)
    vote = a_vote(id="v" * 140, **LONGEST, member=LONGEST_ID, complaints=EVERYBODY)
    shares = Shares(
        id="s" * 140,
        **LONGEST,
        member=LONGEST_ID,
        survivors=bytes(32),
        # Every pair is with somebody who is no survivor: there are the most with half of the group away.
        shares=tuple(
            DeviceShares(device=d, own=bytes(16), pairs=(bytes(16),) * (GROUP_MEMBERS_MAX // 2))
            for d in EVERYBODY[: GROUP_MEMBERS_MAX // 2]
        ),
    )
    for body in (close, vote, shares):
        assert len(codec.pack(body)) + ENVELOPE_BYTES <= codec.PAYLOAD_BYTES_MAX
    assert len(codec.pack(vote)) + ENVELOPE_BYTES <= 8192, "as a vote may be in an opening"


def test_an_opening_fits_although_corrupt_members_complain_of_everybody() -> None:
    """Of 64 members 21 may be corrupt by default; twice as many complain of everybody here, the others of nobody."""
    loud = len(codec.pack(a_vote(id="v" * 140, **LONGEST, member=LONGEST_ID, complaints=EVERYBODY))) + ENVELOPE_BYTES
    quiet = len(codec.pack(a_vote(id="v" * 140, **LONGEST, member=LONGEST_ID))) + ENVELOPE_BYTES
    votes = (bytes(loud),) * 42 + (bytes(quiet),) * 22
    opening = Opening(**LONGEST, survivors=bytes(32), votes=votes)
    assert len(codec.pack(opening)) + ENVELOPE_BYTES <= codec.PAYLOAD_BYTES_MAX


def test_limits_that_belong_together_are_checked_together() -> None:
    sizes = {"group_size": 8, "members_max": 8, "survivors_min": 8, "quorum": 1, "checkins_max": 8}
    with pytest.raises(ValidationError, match="survivors_min 9 exceeds group_size 8"):
        GroupPlan(**{**sizes, "survivors_min": 9})
    with pytest.raises(ValidationError, match="quorum 9 exceeds checkins_max 8"):
        GroupPlan(**{**sizes, "quorum": 9})
    with pytest.raises(ValidationError, match="group_size 9 exceeds members_max 8"):
        GroupPlan(**{**sizes, "group_size": 9})
    with pytest.raises(ValidationError, match="tensors are not sorted and unique"):
        UpdatePlan(clip_norm=1.0, weight_max=1, examples_reference=1, tensors=("a", "a"))


# --- release targets ---


def release(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "task": "network", "version": 1, "parent": "", "round": 0, "variant": "int8", "format": "tflite",
        "feature_schema": NETWORK_FLOWS.digest, "runtime_min": "", "contributors": 0, "transcript": "",
        "plan": "0" * 64, "metrics": {"loss_after": "0.25"}, "active": True,
    }  # fmt: skip
    return {**fields, **changes}


def test_the_custom_part_of_a_target_is_read_strictly() -> None:
    target = parse_custom(release())
    assert (target.variant, target.metrics["loss_after"]) == (Variant.INT8, "0.25")
    assert target_path(target.task, target.version, target.variant) == "network/1/int8"


@pytest.mark.parametrize(
    "change",
    [{"metrics": {"loss": 0.25}}, {"metrics": {"loss": "٣"}}, {"metrics": {"a b": "1"}}, {"metrics": {"loss": "nan"}},
     {"variant": "int4"}, {"version": -1}, {"parent": "abc"}, {"more": 1}, {"active": 1}],
    ids=str,
)  # fmt: skip
def test_a_custom_part_outside_the_contract_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(PeerError, match="ReleaseTarget"):
        parse_custom(release(**change))
    assert ReleaseTarget.model_fields  # the class is the one that is published


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (-0.0, "0"), (-1e-9, "0"), (1.5, "1.5"), (100.0, "100"), (-2.25, "-2.25"), (0.1234567, "0.123457")],
)
def test_figures_travel_as_decimal_text(value: float, text: str) -> None:
    assert decimal(value) == text


# --- the alert ---


def an_alert(**changes: Any) -> Alert:
    fields: dict[str, Any] = {
        "id": "al-1", "seq": 0, "time": "2026-03-01T12:00:05Z", "site": "s", "device": "gw-01", "entity": "10.0.0.7",
        "detector": "network", "kind": "sustained", "severity": Severity.LOW, "confidence": 0.5, "score": 4.0,
        "p_value": 0.001, "threshold": 3.0, "window_start": "2026-03-01T12:00:00Z",
        "window_end": "2026-03-01T12:00:05Z",
        "features": tuple(FeatureReason(name=f"f{i}", value=1.0, usual=(0.0, 0.5), share=0.2) for i in range(5)),
        "model": AlertModel(task="network", version=1, digest="0" * 16), "state": AlertState.OPEN, "count": 1,
        "summary": "what it is about",
    }  # fmt: skip
    return Alert(**{**fields, **changes})


def test_an_alert_that_is_too_long_loses_its_weakest_features_first() -> None:
    names = ["n" * COLUMN_NAME_CHARACTERS_MAX] * 5
    reasons = tuple(
        FeatureReason(name=n, value=1 / 3 + i, usual=(1 / 3, 2 / 3), share=0.2) for i, n in enumerate(names)
    )
    kept = alert.decode(alert.encode(an_alert(features=reasons, summary="s" * 200)))
    assert 0 < len(kept.features) < 5
    assert kept.features == reasons[: len(kept.features)]
    assert kept.summary == "s" * 200


def test_an_alert_in_an_alphabet_of_many_bytes_stays_within_its_limit() -> None:
    data = alert.encode(an_alert(entity="€" * 60, summary="€" * 200, evidence="€" * 100))
    assert 900 < len(data) <= alert.ALERT_BYTES_MAX
    assert alert.decode(data).summary.startswith("€€€")


def test_an_alert_whose_names_alone_are_too_long_is_refused_by_its_sender() -> None:
    with pytest.raises(PeerError, match="expected at most 1024"):
        alert.encode(an_alert(entity="\x01" * 60, model=AlertModel(task="\x01" * 60, version=1, digest="0" * 16)))


def test_severities_are_ordered() -> None:
    assert [s.rank for s in Severity] == [0, 1, 2, 3]
    assert Severity.CRITICAL.rank > Severity.LOW.rank


@pytest.mark.parametrize("time", ["2026-03-01 12:00:05Z", "2026-03-01T12:00:05", "٢٠26-03-01T12:00:05Z", "now", ""])
@pytest.mark.parametrize("field", ["time", "window_start", "window_end"])
def test_times_are_utc_in_one_form(field: str, time: str) -> None:
    with pytest.raises(ValidationError, match=field):
        an_alert(**{field: time})


def test_the_published_json_schema_is_that_of_the_code() -> None:
    committed = json.loads(SCHEMA_FILE.read_text())
    assert committed == alert.json_schema(), (
        "schemas/alert.schema.json differs: python schemas/publish.py, and CHANGELOG.md under Wire"
    )


def test_the_published_json_schema_takes_an_alert() -> None:
    schema = json.loads(SCHEMA_FILE.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for sample in (an_alert(), an_alert(evidence="spool/7", state=AlertState.CLOSED, features=())):
        validator.validate(json.loads(alert.encode(sample)))


@pytest.mark.parametrize(
    "change",
    [{"v": 2}, {"severity": "severe"}, {"p_value": 0}, {"confidence": 1.5}, {"more": 1}, {"seq": 1.5}, {"count": 0},
     {"features": [{"name": "x"}]}, {"device": "GW"}, {"time": "today"}, {"model": {}}, {"summary": "s" * 201}],
    ids=str,
)  # fmt: skip
def test_the_schema_and_the_code_refuse_alike(change: dict[str, Any]) -> None:
    plain = {**json.loads(alert.encode(an_alert())), **change}
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA_FILE.read_text()))
    assert not validator.is_valid(plain)
    with pytest.raises(PeerError):
        alert.decode(json.dumps(plain).encode())


@pytest.mark.parametrize("field", sorted(Alert.model_fields.keys() - {"v", "evidence"}))
def test_every_field_of_an_alert_must_be_there(field: str) -> None:
    plain = json.loads(alert.encode(an_alert()))
    del plain[field]
    with pytest.raises(PeerError, match=f"{field}: Field required"):
        alert.decode(json.dumps(plain).encode())
    assert field in alert.json_schema()["required"]
