"""The shape of a chain, and every way in which a chain is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from vedette_core.crypto.certificate_chain import der, load_certificates, verify_chain
from vedette_core.crypto.certificates import (
    BACKDATED_S,
    LEAF_DAYS,
    MANY,
    CertificateRole,
    Issuer,
    Purpose,
    make_intermediate,
    make_leaf,
    make_root,
)
from vedette_schemas.errors import PeerError
from vedette_schemas.topics import Role

NOW = 1_800_000_000.0
DAY_S = 86_400
SERIALS = itertools.count(2**64)
ROOT_KEY, ONLINE_KEY, TLS_KEY = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
SIGNING_KEY = Ed25519PrivateKey.generate()
ROOT = make_root(ROOT_KEY, "lab", now=NOW, serial=next(SERIALS))
ONLINE = make_intermediate(Issuer(ROOT, ROOT_KEY), ONLINE_KEY.public_key(), "lab", now=NOW, serial=next(SERIALS))
ISSUER = Issuer(ONLINE, ONLINE_KEY)


def leaf(**changes: Any) -> x509.Certificate:
    purpose = changes.get("purpose", Purpose.TLS_CLIENT)
    key = SIGNING_KEY if purpose is Purpose.SIGNING else TLS_KEY
    values: dict[str, Any] = {
        "holder": "dev-1",
        "role": CertificateRole.DEVICE,
        "site": "lab",
        "purpose": purpose,
        "now": NOW,
        "serial": next(SERIALS),
        **changes,
    }
    return make_leaf(values.pop("issuer", ISSUER), values.pop("public_key", key.public_key()), **values)


def verify(certificate: x509.Certificate, purpose: Purpose = Purpose.TLS_CLIENT, **changes: Any) -> Any:
    values: dict[str, Any] = {"intermediates": [ONLINE], "root": ROOT, "now": NOW, "site": "lab", **changes}
    return verify_chain(certificate, purpose=purpose, **values)


def rebuilt(
    original: x509.Certificate,
    *,
    key: Any = ONLINE_KEY,
    change: Callable[[Any], Any | None] = lambda value: value,
    extra: x509.ExtensionType | None = None,
    **fields: Any,
) -> x509.Certificate:
    """The certificate with fields, extensions or the signing key changed; `change` returning None drops one."""
    values: dict[str, Any] = {
        "issuer_name": original.issuer,
        "subject_name": original.subject,
        "public_key": original.public_key(),
        "serial_number": original.serial_number,
        "not_valid_before": original.not_valid_before_utc,
        "not_valid_after": original.not_valid_after_utc,
        **fields,
    }
    builder = x509.CertificateBuilder(**values)
    for extension in original.extensions:
        value = change(extension.value)
        if value is not None:
            builder = builder.add_extension(value, critical=extension.critical)
    if extra is not None:
        builder = builder.add_extension(extra, critical=False)
    return builder.sign(key, None if isinstance(key, Ed25519PrivateKey) else hashes.SHA256())


def names(*values: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, v) for v in values])


def alternatives(*values: x509.GeneralName) -> Callable[[Any], Any]:
    return lambda v: x509.SubjectAlternativeName(list(values)) if isinstance(v, x509.SubjectAlternativeName) else v


def uri(text: str) -> x509.UniformResourceIdentifier:
    return x509.UniformResourceIdentifier(text)


def replaced(value: x509.ExtensionType) -> Callable[[Any], Any]:
    return lambda v: value if isinstance(v, type(value)) else v


def without(kind: type[x509.ExtensionType]) -> Callable[[Any], Any | None]:
    return lambda v: None if isinstance(v, kind) else v


# --- what holds


@pytest.mark.parametrize("role", [r for r in CertificateRole if r is not CertificateRole.BROKER])
@pytest.mark.parametrize("purpose", [Purpose.TLS_CLIENT, Purpose.SIGNING])
def test_a_node_is_who_its_certificate_says(role: CertificateRole, purpose: Purpose) -> None:
    bootstrap = role is CertificateRole.BOOTSTRAP
    holder = "enrol-1" if bootstrap else "dev-1" if role in MANY else role.value
    who = verify(leaf(holder=holder, role=role, purpose=purpose), purpose)
    assert (who.id, who.role, who.site, who.purpose) == (holder, role, "lab", purpose)
    assert who.access_role is (Role.DEVICE if role in MANY and not bootstrap else Role(role.value))
    assert who.not_after == NOW - BACKDATED_S + LEAF_DAYS * DAY_S + BACKDATED_S


def test_the_broker_is_a_server_and_nobody_s_client() -> None:
    hosts = ("localhost",)
    server = leaf(holder="broker", role=CertificateRole.BROKER, purpose=Purpose.TLS_SERVER, hosts=hosts)
    who = verify(server, Purpose.TLS_SERVER)
    with pytest.raises(PeerError, match="found the broker's own certificate"):
        _ = who.access_role
    assert server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(
        x509.DNSName
    ) == ["localhost"]


def test_a_helper_is_no_device_although_it_has_the_access_of_one() -> None:
    """Many nodes have the role, each under an id of its own; who is asked for a device's signature finds a helper's."""
    one, two = (
        verify(leaf(holder=name, role=CertificateRole.COMMITTEE, purpose=Purpose.SIGNING), Purpose.SIGNING)
        for name in ("helper-1", "committee")
    )
    assert (one.id, two.id) == ("helper-1", "committee")
    assert one.role is two.role is CertificateRole.COMMITTEE
    assert one.access_role is Role.DEVICE


def test_chains_survive_their_two_encodings() -> None:
    original = leaf()
    pem = original.public_bytes(Encoding.PEM) + ONLINE.public_bytes(Encoding.PEM)
    assert load_certificates(pem) == (original, ONLINE)
    assert load_certificates(der(original)) == (original,)


def test_the_longest_ids_fit() -> None:
    site = "s" * 60
    root = make_root(ROOT_KEY, site, now=NOW, serial=next(SERIALS))
    online = make_intermediate(Issuer(root, ROOT_KEY), ONLINE_KEY.public_key(), site, now=NOW, serial=next(SERIALS))
    long = leaf(issuer=Issuer(online, ONLINE_KEY), holder="d" * 60, site=site)
    assert verify(long, intermediates=[online], root=root, site=site).id == "d" * 60


# --- what is never made


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"holder": "aggregator"}, "reserved"),
        ({"holder": "broker", "role": CertificateRole.COMMITTEE}, "reserved"),
        ({"holder": "enrol-1"}, "tokens only"),
        ({"holder": "dev-1", "role": CertificateRole.BOOTSTRAP}, "tokens only"),
        ({"holder": "Dev"}, "expected"),
        ({"holder": "+"}, "expected"),
        ({"holder": ""}, "expected"),
        ({"holder": "d" * 61}, "expected"),
        ({"site": "a/b"}, "site"),
        ({"holder": "dev-1", "role": CertificateRole.AGGREGATOR}, "expected 'aggregator'"),
        ({"hosts": ("localhost",)}, "host names"),
        (
            {
                "holder": "broker",
                "role": CertificateRole.BROKER,
                "purpose": Purpose.TLS_SERVER,
            },
            "host names",
        ),
        ({"public_key": SIGNING_KEY.public_key()}, "expected EllipticCurvePublicKey"),
        ({"purpose": Purpose.SIGNING, "public_key": TLS_KEY.public_key()}, "expected Ed25519PublicKey"),
    ],
)
def test_an_odd_certificate_is_not_made(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PeerError, match=message):
        leaf(**changes)


# --- what is refused

GOOD = leaf()
DEVICE_URI = uri("spiffe://lab/device/dev-1")
ODD_LEAVES: dict[str, tuple[x509.Certificate, str]] = {
    "signed by itself": (rebuilt(GOOD, key=TLS_KEY), "issuer"),
    "signed by a stranger": (rebuilt(GOOD, key=ec.generate_private_key(ec.SECP256R1())), "issuer"),
    "another issuer's name": (rebuilt(GOOD, issuer_name=names("vedette online ca of x")), "issuer"),
    "issued by the root": (rebuilt(GOOD, key=ROOT_KEY, issuer_name=ROOT.subject), "issuer"),
    "two common names": (rebuilt(GOOD, subject_name=names("dev-1", "dev-2")), "one common name"),
    "no name": (rebuilt(GOOD, subject_name=x509.Name([])), "one common name"),
    "a wildcard as name": (rebuilt(GOOD, subject_name=names("+")), "common name"),
    "a name with a slash": (rebuilt(GOOD, subject_name=names("dev-1/up")), "common name"),
    "capital letters": (rebuilt(GOOD, subject_name=names("Dev-1")), "common name"),
    "a newline after the name": (rebuilt(GOOD, subject_name=names("dev-1\n")), "common name"),
    "another node's URI": (rebuilt(GOOD, change=alternatives(uri("spiffe://lab/device/dev-2"))), "common name"),
    "two URIs": (rebuilt(GOOD, change=alternatives(DEVICE_URI, uri("spiffe://lab/device/dev-2"))), "one URI"),
    "a URI and a host": (rebuilt(GOOD, change=alternatives(DEVICE_URI, x509.DNSName("localhost"))), "one URI"),
    "a host only": (rebuilt(GOOD, change=alternatives(x509.DNSName("dev-1"))), "one URI"),
    "another scheme": (rebuilt(GOOD, change=alternatives(uri("http://lab/device/dev-1"))), "spiffe"),
    "a longer URI": (rebuilt(GOOD, change=alternatives(uri("spiffe://lab/device/dev-1/x"))), "spiffe"),
    "an unknown role": (rebuilt(GOOD, change=alternatives(uri("spiffe://lab/root/dev-1"))), "role"),
    "a role with a device's id": (
        rebuilt(GOOD, change=alternatives(uri("spiffe://lab/aggregator/dev-1"))),
        "expected 'aggregator'",
    ),
    "a device with a role's id": (
        rebuilt(GOOD, subject_name=names("analytics"), change=alternatives(uri("spiffe://lab/device/analytics"))),
        "reserved",
    ),
    "a helper with a role's id": (
        rebuilt(GOOD, subject_name=names("aggregator"), change=alternatives(uri("spiffe://lab/committee/aggregator"))),
        "reserved",
    ),
    "the broker as client": (
        rebuilt(GOOD, subject_name=names("broker"), change=alternatives(uri("spiffe://lab/broker/broker"))),
        "the broker as server",
    ),
    "another site": (leaf(site="elsewhere"), "site"),
    "a server's usage": (
        rebuilt(GOOD, change=replaced(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]))),
        "extended key usage",
    ),
    "two usages": (
        rebuilt(
            GOOD,
            change=replaced(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH])),
        ),
        "extended key usage",
    ),
    "any usage": (
        rebuilt(GOOD, change=replaced(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]))),
        "extended key usage",
    ),
    "no usage": (rebuilt(GOOD, change=without(x509.ExtendedKeyUsage)), "extensions"),
    "no alternative name": (rebuilt(GOOD, change=without(x509.SubjectAlternativeName)), "extensions"),
    "an extension more": (rebuilt(GOOD, extra=x509.OCSPNoCheck()), "extensions"),
    "an authority": (
        rebuilt(GOOD, change=replaced(x509.BasicConstraints(ca=True, path_length=0))),
        "authority",
    ),
    "a certificate signer": (
        rebuilt(GOOD, change=replaced(ROOT.extensions.get_extension_for_class(x509.KeyUsage).value)),
        "key usage",
    ),
    "an Ed25519 key": (rebuilt(GOOD, public_key=SIGNING_KEY.public_key()), "P-256"),
    "a P-384 key": (
        rebuilt(GOOD, public_key=ec.generate_private_key(ec.SECP384R1()).public_key()),
        "P-256",
    ),
}


@pytest.mark.parametrize("odd", ODD_LEAVES)
def test_an_odd_leaf_is_refused(odd: str) -> None:
    certificate, message = ODD_LEAVES[odd]
    verify(GOOD)  # the one that it differs from
    with pytest.raises(PeerError, match=message):
        verify(certificate)


@pytest.mark.parametrize(
    ("purpose", "used_for"),
    [(a, b) for a in (Purpose.TLS_CLIENT, Purpose.SIGNING) for b in Purpose if a is not b],
)
def test_a_key_is_good_for_one_purpose(purpose: Purpose, used_for: Purpose) -> None:
    with pytest.raises(PeerError, match="extended key usage"):
        verify(leaf(purpose=purpose), used_for)


@pytest.mark.parametrize(
    ("moment", "reason"),
    [
        (NOW - BACKDATED_S - 1, "not-yet-valid"),
        (NOW + LEAF_DAYS * DAY_S + 1, "expired"),
        (0.0, "not-yet-valid"),
    ],
)
def test_a_leaf_holds_only_in_its_time(moment: float, reason: str) -> None:
    verify(GOOD, now=NOW - BACKDATED_S)
    verify(GOOD, now=NOW + LEAF_DAYS * DAY_S)
    with pytest.raises(PeerError, match="dev-1") as refused:
        verify(GOOD, now=moment)
    assert refused.value.reason == reason


def test_a_leaf_does_not_outlive_its_authority() -> None:
    short = rebuilt(
        ONLINE,
        key=ROOT_KEY,
        not_valid_before=datetime.fromtimestamp(NOW, UTC) - timedelta(days=400),
        not_valid_after=datetime.fromtimestamp(NOW, UTC) - timedelta(days=35),
    )
    with pytest.raises(PeerError, match="intermediate"):
        verify(GOOD, intermediates=[short])


@pytest.mark.parametrize(
    "constraints",
    [x509.BasicConstraints(ca=False, path_length=None), x509.BasicConstraints(ca=True, path_length=None)],
)
def test_an_intermediate_must_be_one(constraints: x509.BasicConstraints) -> None:
    odd = rebuilt(ONLINE, key=ROOT_KEY, change=replaced(constraints))
    with pytest.raises(PeerError, match="intermediate"):
        verify(GOOD, intermediates=[odd])


def test_a_leaf_cannot_issue_another() -> None:
    parent = leaf(holder="dev-2")
    child = leaf(issuer=Issuer(parent, TLS_KEY), holder="dev-3")
    with pytest.raises(PeerError, match="intermediate"):
        verify(child, intermediates=[parent, ONLINE])


def test_another_root_is_not_ours() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    other = make_root(key, "lab", now=NOW, serial=next(SERIALS))
    assert other.subject == ROOT.subject
    with pytest.raises(PeerError, match="root"):
        verify(GOOD, root=other)
    with pytest.raises(PeerError, match="self-signed"):
        verify(GOOD, root=ONLINE)


def test_no_intermediate_and_too_many_are_refused() -> None:
    with pytest.raises(PeerError, match="issuer"):
        verify(GOOD, intermediates=[])
    with pytest.raises(PeerError, match="at most 4"):
        verify(GOOD, intermediates=[ONLINE] * 5)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        b"-----BEGIN CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        der(GOOD)[:-1],
        der(GOOD) + b"\x00",
        der(GOOD) * 100,
        GOOD.public_bytes(Encoding.PEM) * 6,
    ],
)
def test_what_is_no_chain_is_refused(data: bytes) -> None:
    with pytest.raises(PeerError, match="certificate: found"):
        load_certificates(data)


def test_an_issuer_does_not_show_its_key() -> None:
    assert "redacted" in repr(ISSUER)
    assert "EllipticCurvePrivateKey" not in repr(ISSUER)


def test_what_no_signature_covers_must_be_as_we_write_it() -> None:
    """The outer name of the algorithm, and the unused bits of the signature: another library would not have these."""
    whole = der(GOOD)
    name = whole.rindex(bytes.fromhex("06082a8648ce3d040302"))
    renamed = whole[: name + 9] + b"\x03" + whole[name + 10 :]
    verify(load_certificates(whole)[0])
    with pytest.raises(PeerError, match="issuer"):
        verify(load_certificates(renamed)[0])
    even = next(c for c in (leaf() for _ in range(64)) if not c.signature[-1] & 1)
    place = -len(even.signature) - 1
    unused = der(even)[:place] + b"\x01" + der(even)[place + 1 :]
    with pytest.raises(PeerError, match="issuer"):
        verify(load_certificates(unused)[0])
