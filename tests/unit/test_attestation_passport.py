"""Passports, policies and reference values: what holds, what is refused, and by which rule."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from attestation_parts import DEVICE, NOW, OTHER, SITE, a_policy, digest, raw, signer

from vedette_core.attestation.passport import PassportCheck, issue_passport
from vedette_core.attestation.policy import read_policy
from vedette_core.attestation.references import DIGESTS_KEPT, references
from vedette_core.attestation.rules import PASSPORT_RULES
from vedette_schemas.attestation import (
    PASSPORT_TYPE,
    POLICY_ID,
    POLICY_TYPE,
    VERIFIER_ID,
    Measurement,
    Passport,
    Reference,
)
from vedette_schemas.envelope import seal
from vedette_schemas.errors import ConfigError, RefusedError

DAY_S = 86_400.0


def issued(tier: int = 0, policy: int = 3, by: str = "verifier", **changes: Any) -> bytes:
    made = a_policy(version=policy, **changes)
    return issue_passport(made, DEVICE, raw(DEVICE), tier, 9, signer(by), NOW)


CASES: list[tuple[str, str, bytes, dict[str, Any]]] = [
    ("no passport", "passport-missing", b"", {}),
    ("garbage", "passport-signature", b"\xc1", {}),
    ("the aggregator's own", "passport-signature", issued(by="aggregator"), {}),
    (
        "sealed in the aggregator's name",
        "passport-signature",
        seal(
            Passport(
                device=DEVICE, key=hashlib.sha256(raw(DEVICE)).digest(), tier=0, policy=3, bootcount=1, iat=NOW,
                exp=NOW + 60,
            ),
            PASSPORT_TYPE, "aggregator", signer("verifier"),
        ),
        {},
    ),
    ("cut short", "passport-signature", issued()[:-1], {}),
    ("another device's", "passport-device", issued(), {"device": OTHER, "key": raw(OTHER)}),
    ("of the key before", "passport-key", issued(), {"key": raw("the key before")}),
    ("a second too old", "passport-expired", issued(), {"now": NOW + DAY_S}),
    ("from the future", "passport-expired", issued(), {"now": NOW - 301.0}),
    ("under an older policy", "passport-policy", issued(policy=2), {}),
    ("of a tier that is too low", "passport-tier", issued(tier=1), {"policy": a_policy(tier_contribute=2)}),
    ("of a tier that is too low for a helper", "passport-tier", issued(), {"role": "unmask"}),
]  # fmt: skip


def check(sealed: bytes, **changes: Any) -> Passport:
    fields: dict[str, Any] = {"device": DEVICE, "key": raw(DEVICE), "role": "contribute", "now": NOW + 60}
    fields |= {k: v for k, v in changes.items() if k != "policy"}
    return PassportCheck(changes.get("policy", a_policy(tier_unmask=1))).check(sealed, **fields)


def test_a_passport_holds_for_its_device_and_key_for_a_day() -> None:
    found = check(issued())
    assert (found.device, found.tier, found.policy, found.exp - found.iat) == (DEVICE, 0, 3, DAY_S)
    assert check(issued(), now=NOW + DAY_S - 1) == found
    assert check(issued(), now=NOW - 299.0) == found, "clocks differ a little"
    assert check(issued(tier=1), role="unmask").tier == 1


def test_a_shorter_life_is_kept() -> None:
    with pytest.raises(RefusedError) as caught:
        check(issued(result_s=30.0))
    assert caught.value.rule == "passport-expired"


@pytest.mark.parametrize(("rule", "sealed", "changes"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_another_passport_is_refused_by_its_rule(rule: str, sealed: bytes, changes: dict[str, Any]) -> None:
    with pytest.raises(RefusedError) as caught:
        check(sealed, **changes)
    assert caught.value.rule == rule


def test_every_rule_for_passports_has_a_case() -> None:
    assert {case[1] for case in CASES} | {"passport-withdrawn"} == set(PASSPORT_RULES), "that one is the verifier's"


def test_a_newer_policy_may_list_another_verifier() -> None:
    both = a_policy(verifiers=(raw("next verifier"), raw("verifier")))
    check(issued(), policy=both)
    check(issued(by="next verifier"), policy=both)
    with pytest.raises(RefusedError):
        check(issued(), policy=a_policy(verifiers=(raw("next verifier"),)))


# --- policies ---


def sealed_policy(by: str = "policy", **changes: Any) -> bytes:
    return seal(a_policy(**changes), POLICY_TYPE, POLICY_ID, signer(by))


def test_a_policy_is_read_with_the_key_that_may_write_them() -> None:
    assert read_policy(sealed_policy(), raw("policy"), SITE) == a_policy()
    for data, key, site in (
        (sealed_policy(by="aggregator"), raw("policy"), SITE),
        (sealed_policy(), raw("another"), SITE),
        (sealed_policy(), raw("policy"), "plant-2"),
        (sealed_policy()[:-1], raw("policy"), SITE),
        (b"", raw("policy"), SITE),
        (seal(a_policy(), POLICY_TYPE, VERIFIER_ID, signer("policy")), raw("policy"), SITE),
    ):
        with pytest.raises(ConfigError):
            read_policy(data, key, site)


def test_an_older_policy_is_a_roll_back() -> None:
    assert read_policy(sealed_policy(), raw("policy"), SITE, version_min=3).version == 3
    with pytest.raises(RefusedError) as caught:
        read_policy(sealed_policy(), raw("policy"), SITE, version_min=4)
    assert caught.value.rule == "older-policy"


# --- reference values ---


def measured(component: str, text: str) -> Measurement:
    return Measurement(component=component, digest=digest(text))


def test_reference_values_leave_out_what_differs_from_device_to_device() -> None:
    found = references([measured("vedette", "v"), measured("configuration", "c"), measured("model/network", "m")])
    assert [r.component for r in found] == ["vedette"]


def test_what_was_good_before_is_still_good_and_keeps_its_wishes() -> None:
    before = (
        Reference(component="dependency/gone", digests=(digest("gone"),)),
        Reference(component="vedette", digests=(digest("old"),), version_min="1", versions_denied=("1.1",)),
    )
    (found,) = references([measured("vedette", "new")], before)
    assert found == Reference(
        component="vedette", digests=(digest("new"), digest("old")), version_min="1", versions_denied=("1.1",)
    )


def test_reference_values_are_bounded_and_each_once() -> None:
    found: tuple[Reference, ...] = ()
    for i in range(20):
        found = references([measured("vedette", str(i))], found)
    assert found[0].digests == tuple(digest(str(i)) for i in range(19, 19 - DIGESTS_KEPT, -1))
    assert references([measured("vedette", "19")], found) == found
