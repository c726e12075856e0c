"""Good evidence of each tier holds; every way in which it can be bad is refused by a rule of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from attestation_parts import (
    AK_ATTRIBUTES,
    DEVICE,
    LAYERS,
    NONCE,
    NOW,
    OTHER,
    SoftTpm,
    a_boot,
    a_claims,
    a_policy,
    an_evidence,
    appraised,
    bound_claims,
    digest,
    enrolled,
    p256,
    public_area,
    quoted,
    raw,
    software,
)

from vedette_core.attestation.appraisal import Counters
from vedette_core.attestation.nonces import DEVICES_MAX, Nonces
from vedette_core.attestation.rules import EVIDENCE_RULES
from vedette_schemas import codec
from vedette_schemas.attestation import Measurement, Pcr, Reference
from vedette_schemas.errors import RefusedError


def measured(component: str, text: str, version: str = "") -> Measurement:
    return Measurement(component=component, version=version, digest=digest(text))


def by_tpm(tpm: SoftTpm, **changes: Any) -> Any:
    return an_evidence(2, **{**quoted(tpm, bound_claims()), **changes})


def quote_of(tpm: SoftTpm, attested: bytes) -> Any:
    return an_evidence(2, **quoted(tpm, b"", attested))


GOOD = SoftTpm().attest(bound_claims())
BAD: list[tuple[str, str, Callable[[], Any], dict[str, Any]]] = [
    # What is said.
    ("claims that are nothing", "malformed", lambda: an_evidence().model_copy(update={"claims": b"\xc1"}), {}),
    ("another device's claims", "device", lambda: an_evidence(claims=a_claims(ueid=OTHER)), {}),
    ("another identity key", "identity", lambda: an_evidence(claims=a_claims(cnf=raw(OTHER))), {}),
    ("another nonce", "nonce-unknown", an_evidence, {"nonce": digest("another")}),
    ("debugging", "debug", lambda: an_evidence(claims=a_claims(dbgstat=0)), {}),
    ("a debug state below what the policy asks", "debug", an_evidence, {"policy": a_policy(dbgstat_min=3)}),
    ("a boot count that went back", "boot-count", an_evidence, {"counters": Counters(bootcount=10)}),
    # What runs.
    (
        "unknown software",
        "unknown-software",
        lambda: an_evidence(claims=a_claims(measurements=software(vedette=measured("vedette", "altered", "0.10.1")))),
        {},
    ),
    (
        "an unknown dependency",
        "unknown-software",
        lambda: an_evidence(claims=a_claims(measurements=software(dependency_evil=measured("dependency/evil", "e")))),
        {},
    ),
    ("denied software", "denied-software", an_evidence, {"policy": a_policy(denied=(digest("numpy 2.4.6"),))}),
    (
        "a denied model",
        "denied-software",
        an_evidence,
        {"policy": a_policy(denied=(digest("some model"),))},
    ),
    (
        "a denied version",
        "denied-software",
        lambda: an_evidence(
            claims=a_claims(measurements=software(vedette=measured("vedette", "vedette 0.10.0", "0.10.0")))
        ),
        {},
    ),
    (
        "old software",
        "old-software",
        lambda: an_evidence(claims=a_claims(measurements=software(vedette=measured("vedette", "vedette 0.9", "0.9")))),
        {},
    ),
    (
        "a measurement left out",
        "missing-software",
        lambda: an_evidence(claims=a_claims(measurements=software(dependency_numpy=None))),
        {},
    ),
    # What does not fit the tier.
    ("a quote with tier 0", "proof", lambda: an_evidence(0, **quoted(SoftTpm(), bound_claims())), {}),
    ("no quote with tier 2", "proof", lambda: an_evidence(2, quote=b""), {}),
    ("no registers with tier 2", "proof", lambda: an_evidence(2, pcrs=()), {}),
    ("no chain with tier 1", "proof", lambda: an_evidence(1, chain=()), {}),
    # A boot chain.
    ("a boot chain of nobody", "not-enrolled", lambda: an_evidence(1), {"enrolment": None}),
    ("a boot chain where a TPM is enrolled", "not-enrolled", lambda: an_evidence(1), {"enrolment": enrolled(2)}),
    ("a chain from another secret", "boot-chain", lambda: an_evidence(1, **booted(secret="another")), {}),
    ("layers exchanged", "boot-chain", lambda: an_evidence(1, chain=a_boot().layers[::-1]), {}),
    (
        "a layer that claims another measurement",
        "boot-chain",
        lambda: an_evidence(
            1, chain=(a_boot().layers[0], a_boot().layers[1].model_copy(update={"measurement": b"m" * 32}))
        ),
        {},
    ),
    ("a chain cut short", "binding", lambda: an_evidence(1, chain=a_boot().layers[:1]), {}),
    ("claims that the last layer did not sign", "binding", lambda: an_evidence(1, boot_signature=b"s" * 64), {}),
    (
        "another kernel, truthfully measured",
        "unknown-software",
        lambda: an_evidence(1, **booted((LAYERS[0], ("kernel", digest("kernel 2"))))),
        {},
    ),
    (
        "a denied kernel",
        "denied-software",
        lambda: an_evidence(1),
        {"policy": a_policy(denied=(digest("kernel 1"),))},
    ),
    ("a layer left out", "missing-software", lambda: an_evidence(1, **booted(LAYERS[1:])), {}),
    ("a layer too many", "unknown-software", lambda: an_evidence(1, **booted((*LAYERS, ("shim", digest("s"))))), {}),
    (
        "a bad kernel that vouches for a good one",
        "boot-chain",
        lambda: an_evidence(1, **booted((LAYERS[0], ("kernel", digest("kernel 2")), LAYERS[1]))),
        {},
    ),
    # A TPM.
    ("a TPM of nobody", "not-enrolled", lambda: an_evidence(2), {"enrolment": None}),
    (
        "a key that was not activated",
        "not-activated",
        lambda: an_evidence(2),
        {"enrolment": enrolled(2, activated=False)},
    ),
    ("another TPM's quote", "signature", lambda: by_tpm(SoftTpm(key=p256("another TPM"))), {}),
    (
        "a quote changed after it was signed",
        "signature",
        lambda: an_evidence(2, quote=GOOD[:60] + b"\1" + GOOD[61:]),
        {},
    ),
    ("a quote over other claims", "binding", lambda: an_evidence(2, **quoted(SoftTpm(), digest("others"))), {}),
    ("a quote cut short", "truncated", lambda: quote_of(SoftTpm(), GOOD[:-1]), {}),
    ("an empty signature's r", "truncated", lambda: an_evidence(2, quote_signature=b"\0\x18\0\x0b\0"), {}),
    ("bytes behind a quote", "trailing", lambda: quote_of(SoftTpm(), GOOD + b"\0"), {}),
    ("bytes behind a signature", "trailing", lambda: an_evidence(2, quote_signature=SoftTpm().sign(GOOD) + b"\0"), {}),
    ("a wrong magic", "magic", lambda: quote_of(SoftTpm(), SoftTpm().attest(bound_claims(), magic=b"\xffTCH")), {}),
    ("a certification", "type", lambda: quote_of(SoftTpm(), SoftTpm().attest(bound_claims(), kind=0x8017)), {}),
    (
        "a wrong register, truthfully quoted",
        "wrong-pcr",
        lambda: by_tpm(SoftTpm(registers={0: digest("firmware"), 7: digest("no secure boot")})),
        {},
    ),
    (
        "a register that is not the quoted one",
        "wrong-pcr",
        lambda: an_evidence(
            2,
            pcrs=(Pcr(index=0, value=digest("firmware")), Pcr(index=7, value=digest("secure boot"))),
            **without(quoted(SoftTpm(registers={0: digest("firmware"), 7: digest("bad")}), bound_claims()), "pcrs"),
        ),
        {},
    ),
    (
        "a denied register",
        "denied-software",
        lambda: an_evidence(2),
        {"policy": a_policy(denied=(digest("firmware"),))},
    ),
    ("registers that were not quoted", "pcr-selection", lambda: an_evidence(2, pcrs=SoftTpm().pcrs()[:1]), {}),
    ("too few registers", "missing-software", lambda: by_tpm(SoftTpm(registers={0: digest("firmware")})), {}),
    (
        "too many registers",
        "wrong-pcr",
        lambda: by_tpm(SoftTpm(registers={**SoftTpm().registers, 9: digest("more")})),
        {},
    ),
    ("a TPM's count that went back", "boot-count", lambda: an_evidence(2), {"counters": Counters(9, 5)}),
    (
        "a clock that is not safe",
        "clock",
        lambda: by_tpm(SoftTpm(safe=0)),
        {"policy": a_policy(clock_safe=True)},
    ),
    (
        "a key that signs whatever it is given",
        "key-kind",
        lambda: an_evidence(2),
        {"enrolment": enrolled(2, ak_public=public_area(SoftTpm().key, AK_ATTRIBUTES & ~(1 << 16)))},
    ),
]


def booted(layers: Any = LAYERS, secret: str = "boot secret") -> dict[str, Any]:
    made = a_boot(layers, secret)
    return {"chain": made.layers, "boot_signature": made.key.sign(bound_claims())}


def without(fields: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key != name}


@pytest.mark.parametrize("tier", [0, 1, 2])
def test_good_evidence_holds(tier: int) -> None:
    found = appraised(an_evidence(tier))
    assert found.tier == tier
    assert found.claims == a_claims()
    assert found.counters == Counters(9, SoftTpm().reset_count if tier == 2 else 0)


@pytest.mark.parametrize(("rule", "make", "changes"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_evidence_is_refused_by_its_rule(rule: str, make: Callable[[], Any], changes: dict[str, Any]) -> None:
    with pytest.raises(RefusedError) as caught:
        appraised(make(), **changes)
    assert caught.value.rule == rule
    assert DEVICE in str(caught.value)
    assert f"{rule}: found " in str(caught.value)
    assert ", expected " in str(caught.value)


def test_every_rule_for_evidence_has_a_case() -> None:
    of_nonces = {"nonce-reused", "nonce-device", "stale"}
    assert {case[1] for case in BAD} | of_nonces == set(EVIDENCE_RULES)


@pytest.mark.parametrize("tier", [0, 1, 2])
def test_the_claims_of_every_tier_are_bound_to_their_proof(tier: int) -> None:
    """Whoever can change the claims of another's evidence changes what tiers 1 and 2 signed."""
    changed = codec.pack(a_claims(bootcount=10))
    evidence = an_evidence(tier).model_copy(update={"claims": changed})
    if tier == 0:
        assert appraised(evidence).claims.bootcount == 10  # held by the envelope alone
        return
    with pytest.raises(RefusedError) as caught:
        appraised(evidence)
    assert caught.value.rule == "binding"


def test_counts_may_stay_and_go_up() -> None:
    assert appraised(an_evidence(2), counters=Counters(9, 4)).counters == Counters(9, 4)
    assert appraised(an_evidence(2), counters=Counters(1, 1)).counters == Counters(9, 4)
    assert appraised(an_evidence(0), counters=Counters(9, 7)).counters == Counters(9, 7), "no TPM spoke"


@pytest.mark.parametrize(
    ("version", "least", "holds"),
    [("0.10", "0.9", True), ("1", "1.0.0", True), ("1.0.0", "1", True), ("0.9.9", "0.10", False), ("x", "0.1", False),
     ("2.0rc1", "2", True), ("", "0.1", False)],
)  # fmt: skip
def test_versions_are_compared_as_numbers(version: str, least: str, holds: bool) -> None:
    policy = a_policy(references=(Reference(component="vedette", digests=(digest("v"),), version_min=least),))
    claims = a_claims(measurements=(measured("vedette", "v", version),))
    if holds:
        appraised(an_evidence(claims=claims), policy=policy)
        return
    with pytest.raises(RefusedError) as caught:
        appraised(an_evidence(claims=claims), policy=policy)
    assert caught.value.rule == "old-software"


def test_a_policy_without_registers_takes_no_quote() -> None:
    policy = a_policy()
    bare = policy.model_copy(
        update={"references": tuple(r for r in policy.references if not r.component.startswith("pcr/"))}
    )
    with pytest.raises(RefusedError, match="reference values for this tier"):
        appraised(an_evidence(2), policy=bare)


# --- nonces ---


def refused(nonces: Nonces, nonce: bytes, device: str = DEVICE, now: float = NOW + 1) -> str:
    with pytest.raises(RefusedError) as caught:
        nonces.take(nonce, device, now, 120.0)
    return caught.value.rule


def given(device: str = DEVICE, nonce: bytes = NONCE) -> Nonces:
    nonces = Nonces()
    nonces.give(nonce, device, NOW)
    return nonces


def test_a_nonce_is_good_once() -> None:
    nonces = given()
    nonces.take(NONCE, DEVICE, NOW + 1, 120.0)
    assert refused(nonces, NONCE) == "nonce-reused"


def test_a_nonce_is_good_for_its_device_alone() -> None:
    nonces = given(OTHER)
    assert refused(nonces, NONCE) == "nonce-device"
    nonces.take(NONCE, OTHER, NOW + 1, 120.0)
    assert refused(nonces, NONCE) == "nonce-device", "nor afterwards"


def test_a_nonce_is_good_in_time() -> None:
    given().take(NONCE, DEVICE, NOW + 120.0, 120.0)
    assert refused(given(), NONCE, now=NOW + 121.0) == "stale"
    assert refused(given(), NONCE, now=NOW - 1.0) == "stale", "the clock was set back"


def test_a_stale_answer_uses_its_nonce_up() -> None:
    nonces = given()
    assert refused(nonces, NONCE, now=NOW + 121.0) == "stale"
    assert refused(nonces, NONCE) == "nonce-reused"


def test_a_newer_challenge_ends_the_one_before() -> None:
    nonces = given()
    nonces.give(digest("newer"), DEVICE, NOW + 1)
    assert refused(nonces, NONCE) == "nonce-unknown"
    nonces.take(digest("newer"), DEVICE, NOW + 2, 120.0)


def test_a_nonce_that_nobody_was_given_is_unknown() -> None:
    assert refused(Nonces(), NONCE) == "nonce-unknown"


def test_what_is_remembered_is_bounded() -> None:
    nonces = Nonces()
    for i in range(DEVICES_MAX + 50):
        device, nonce = f"gw-{i}", i.to_bytes(32, "big")
        nonces.give(nonce, device, NOW)
        if i % 2:
            nonces.take(nonce, device, NOW, 120.0)
    assert len(nonces) <= 2 * DEVICES_MAX
    for i in range(100):
        nonces.give(digest(f"again {i}"), DEVICE, NOW)
        nonces.take(digest(f"again {i}"), DEVICE, NOW, 120.0)
    assert len(nonces) <= 2 * DEVICES_MAX, "one device cannot make it grow"


def test_a_soft_tpm_is_as_a_tpm_in_what_can_be_told_from_outside() -> None:
    tpm = replace(SoftTpm(), reset_count=11)
    assert appraised(by_tpm(tpm)).counters.reset_count == 11
