"""What message bodies promise beyond their types: bindings, limits that belong together, the published JSON Schema."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import ValidationError

from vedette_schemas import alert, codec
from vedette_schemas.alert import Alert, AlertModel, AlertState, FeatureReason, Severity
from vedette_schemas.errors import PeerError
from vedette_schemas.features import COLUMN_NAME_CHARACTERS_MAX, NETWORK_FLOWS
from vedette_schemas.model import CHUNK_BYTES, ReleaseTarget, Variant, decimal, parse_custom, target_path
from vedette_schemas.round import (
    DIMENSION_MAX,
    GROUP_MEMBERS_MAX,
    ActivationRange,
    GroupPlan,
    Member,
    Roster,
    Upload,
    group_of,
    roster_hash,
    transcript_hash,
    upload_id,
)
from vedette_schemas.telemetry import ReceiptItem

SCHEMA_FILE = Path(__file__).parents[2] / "schemas" / "alert.schema.json"
LONGEST_ID = "d" * 60


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
        "members": (Member(device="gw-01", epk=b"1" * 32), Member(device="gw-02", epk=b"2" * 32)),
        "committee": ("gw-01",),
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
        {"members": (Member(device="gw-01", epk=b"1" * 32),)},
        {"members": (Member(device="gw-01", epk=b"1" * 32), Member(device="gw-02", epk=b"3" * 32))},
        {"members": (Member(device="gw-01", epk=b"1" * 32), Member(device="gw-03", epk=b"2" * 32))},
        {"committee": ()},
        {"committee": ("gw-02",)},
        {"committee": ("gw-01", "gw-02")},
    ],
    ids=lambda c: "-".join(c),
)
def test_the_transcript_binds_everything_that_a_round_belongs_to(change: dict[str, Any]) -> None:
    assert transcript_hash(a_roster(**change)) != transcript_hash(a_roster())


def test_the_transcript_does_not_bind_when_the_round_ends() -> None:
    """Neither the deadline nor the version's number: the model is bound by its digest."""
    assert transcript_hash(a_roster(deadline_s=5.0, model_version=9)) == transcript_hash(a_roster())


def test_a_committee_is_never_read_as_a_member() -> None:
    key = b"k" * 32
    inside = a_roster(members=(Member(device="a", epk=key), Member(device="committee", epk=b"x" * 32)), committee=())
    outside = a_roster(members=(Member(device="a", epk=key),), committee=("x" * 32, "committee"))
    assert roster_hash(inside) != roster_hash(outside)


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
    assert len(longest) <= 120


def test_upload_ids_of_one_device_tell_rounds_apart() -> None:
    ids = {upload_id(t, r, a, "gw-01") for t in ("n", "n-1", "n-1-1") for r in (1, 11, 111) for a in (1, 11)}
    assert len(ids) == 18


def test_the_largest_update_fits_a_sealed_message() -> None:
    upload = Upload(
        id="u" * 120, task="t" * 40, round=2**31 - 1, attempt=16, gid=511, device=LONGEST_ID, transcript=bytes(32),
        levels=bytes(DIMENSION_MAX), weight=255, num_examples=2**31 - 1, clipped=True, loss_before=0.1, loss_after=0.1,
        ranges=tuple(ActivationRange(tensor="r" * 60, low=0.0, high=1.0) for _ in range(64)),
    )  # fmt: skip
    envelope_bytes = 300
    assert len(codec.pack(upload)) + envelope_bytes <= codec.PAYLOAD_BYTES_MAX
    assert CHUNK_BYTES + 600 < codec.PAYLOAD_BYTES_MAX


def test_the_largest_roster_fits_a_sealed_message() -> None:
    members = tuple(Member(device=f"d{i:059}", epk=bytes(32)) for i in range(GROUP_MEMBERS_MAX))
    assert len(codec.pack(a_roster(members=members))) < codec.PAYLOAD_BYTES_MAX // 8


def test_limits_that_belong_together_are_checked_together() -> None:
    with pytest.raises(ValidationError, match="survivors_min 9 exceeds group_size 8"):
        GroupPlan(group_size=8, survivors_min=9, quorum=1, checkins_max=8)
    with pytest.raises(ValidationError, match="quorum 9 exceeds checkins_max 8"):
        GroupPlan(group_size=8, survivors_min=8, quorum=9, checkins_max=8)
    with pytest.raises(ValidationError, match=r"low 2.0 exceeds high 1.0"):
        ActivationRange(tensor="t", low=2.0, high=1.0)


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
