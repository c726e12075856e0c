"""Who is let in, and as whom."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from pathlib import Path

import pytest
from broker_parties import (
    SITE,
    WAIT_S,
    Authority,
    BrokerUnderTest,
    make_authority,
    party,
    path,
)
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from vedette_broker import ca
from vedette_core.crypto.certificate_chain import load_certificates
from vedette_core.crypto.certificates import CertificateRole, Issuer, Purpose, make_leaf
from vedette_core.runtime.identity import Bundle
from vedette_core.runtime.mqtt import AuthenticationError, LinkConfig, MqttLink, MqttMessage
from vedette_schemas.errors import RefusedError

DAY_S = 86_400


def connects(broker: BrokerUnderTest, tls: ssl.SSLContext, client_id: str = "dev-a") -> None:
    """Connect, or raise what the link says."""

    async def ignore(_: MqttMessage) -> None: ...

    async def scenario() -> None:
        async with MqttLink(LinkConfig("127.0.0.1", broker.port, client_id, tls), ignore) as link:
            await link.wait_connected(WAIT_S)

    asyncio.run(scenario())


def bare_context(authority: Authority) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(Bundle(authority.bundles["dev-a"]).ca)
    return context


def with_certificate(context: ssl.SSLContext, certificate: Path, key: Path) -> ssl.SSLContext:
    context.load_cert_chain(certificate, key)
    return context


def forged(authority: Authority, tmp_path: Path, *, holder: str, uri: str) -> ssl.SSLContext:
    """A client context with a certificate that the authority's own key signed, but that it would never issue."""
    _, online = load_certificates((authority.directory / "online" / "ca.crt").read_bytes())
    issuer_key = load_pem_private_key((authority.directory / "online" / "ca.key").read_bytes(), None)
    assert isinstance(issuer_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    honest = make_leaf(
        Issuer(online, issuer_key),
        key.public_key(),
        holder="dev-a",
        role=CertificateRole.DEVICE,
        site=SITE,
        purpose=Purpose.TLS_CLIENT,
        now=time.time(),
        serial=x509.random_serial_number(),
    )
    builder = x509.CertificateBuilder(
        issuer_name=online.subject,
        subject_name=x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, holder)]),
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=honest.not_valid_before_utc,
        not_valid_after=honest.not_valid_after_utc,
    )
    for extension in honest.extensions:
        value = extension.value
        if isinstance(value, x509.SubjectAlternativeName):
            value = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
        builder = builder.add_extension(value, critical=extension.critical)
    certificate = builder.sign(issuer_key, hashes.SHA256())
    (tmp_path / "forged.crt").write_bytes(certificate.public_bytes(Encoding.PEM) + online.public_bytes(Encoding.PEM))
    (tmp_path / "forged.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return with_certificate(bare_context(authority), tmp_path / "forged.crt", tmp_path / "forged.key")


def test_an_enrolled_device_is_let_in(broker: BrokerUnderTest, authority: Authority) -> None:
    connects(broker, authority.context("dev-a"))


REFUSED = r"refuses this node's certificate|closed the connection after the TLS handshake"
"""Mosquitto sends the TLS alert; asyncio closes without it."""


def test_no_certificate_is_refused(broker: BrokerUnderTest, authority: Authority) -> None:
    with pytest.raises(AuthenticationError, match=REFUSED):
        connects(broker, bare_context(authority))


def test_another_authority_s_certificate_is_refused(
    broker: BrokerUnderTest, authority: Authority, tmp_path: Path
) -> None:
    foreign = make_authority(tmp_path / "ca", ["dev-a"])
    bundle = Bundle(foreign.bundles["dev-a"])
    with pytest.raises(AuthenticationError, match=REFUSED):
        connects(broker, with_certificate(bare_context(authority), bundle.tls_certificate, bundle.tls_key))


def test_another_authority_s_broker_is_refused_by_the_client(broker: BrokerUnderTest, tmp_path: Path) -> None:
    foreign = make_authority(tmp_path / "ca", ["dev-a"])
    with pytest.raises(AuthenticationError, match="its certificate is refused here"):
        connects(broker, foreign.context("dev-a"))


def test_an_expired_certificate_is_refused(broker: BrokerUnderTest, authority: Authority) -> None:
    old = authority.directory.parent / "old.crt", authority.directory.parent / "old.key"
    if not old[0].exists():
        bundle = Bundle(ca.issue(authority.directory, "dev-old", CertificateRole.DEVICE, now=time.time() - 8 * DAY_S))
        old[0].write_bytes(bundle.tls_certificate.read_bytes())
        old[1].write_bytes(bundle.tls_key.read_bytes())
    with pytest.raises(AuthenticationError, match=REFUSED):
        connects(broker, with_certificate(bare_context(authority), *old), "dev-old")


def test_a_signing_certificate_does_not_open_a_session(broker: BrokerUnderTest, authority: Authority) -> None:
    bundle = Bundle(authority.bundles["dev-a"])
    with pytest.raises(AuthenticationError, match=REFUSED):
        connects(broker, with_certificate(bare_context(authority), bundle.signing_certificate, bundle.signing_key))


def test_the_broker_s_own_certificate_does_not_open_a_session(broker: BrokerUnderTest, authority: Authority) -> None:
    bundle = Bundle(authority.bundles["broker"])
    with pytest.raises(AuthenticationError, match=REFUSED):
        connects(broker, with_certificate(bare_context(authority), bundle.tls_certificate, bundle.tls_key), "broker")


def test_a_client_id_that_is_not_the_certificate_s_name_gives_nothing(
    broker: BrokerUnderTest, authority: Authority
) -> None:
    """Neither its topics nor its messages: the embedded broker refuses, Mosquitto puts the certificate's name. NATS
    lets it in with its own rights and ends the other connection of that client id, which then comes back.
    """

    async def scenario() -> tuple[list[bytes], list[bytes], int]:
        async with (
            party(broker, authority, "aggregator", ["device/+/up/#"]) as aggregator,
            party(broker, authority, "dev-b", ["device/dev-b/down/#"]) as victim,
            party(broker, authority, "dev-b", ["device/dev-b/down/#"], wait=False, certificate_of="dev-a") as impostor,
        ):
            if broker.name == "embedded":
                with pytest.raises(AuthenticationError, match="Not authorized"):
                    await impostor.link.wait_connected(WAIT_S)
            else:
                await impostor.link.wait_connected(WAIT_S)
                await impostor.link.publish(path("device/dev-b/up/alert"), b"forged")
            if broker.name == "nats":
                await impostor.link.stop(drain_s=0)
                await victim.link.wait_connected(WAIT_S)
            await victim.link.publish(path("device/dev-b/up/alert"), b"true")
            await aggregator.until_payload(b"true")
            # Where it had to come back first, its message leaves before its filter is asked for.
            await victim.link.wait_subscribed(WAIT_S)
            await aggregator.link.publish(path("device/dev-b/down/command"), b"secret")
            await victim.until_payload(b"secret")
            await victim.link.publish(path("device/dev-b/up/alert"), b"still here")
            await aggregator.until_payload(b"still here")
            return aggregator.payloads, impostor.payloads, victim.link.counters.disconnects

    heard, stolen, disconnects = asyncio.run(scenario())
    assert heard == [b"true", b"still here"]
    assert stolen == []
    assert disconnects == 0 or broker.name == "nats"


@pytest.mark.parametrize("role", ["aggregator", "analytics", "broker"])
def test_a_device_never_gets_the_id_of_a_role(authority: Authority, role: str) -> None:
    with pytest.raises(RefusedError, match="reserved"):
        ca.issue(authority.directory, role, CertificateRole.DEVICE, now=time.time(), replace=True)


@pytest.mark.parametrize(
    ("holder", "uri"),
    [
        ("aggregator", f"spiffe://{SITE}/device/aggregator"),
        ("dev-a", f"spiffe://{SITE}/aggregator/dev-a"),
        ("dev-a", f"spiffe://{SITE}/device/dev-b"),
        ("dev-a", "spiffe://elsewhere/device/dev-a"),
        ("+", f"spiffe://{SITE}/device/+"),
    ],
)
@pytest.mark.parametrize("broker", ["embedded"], indirect=True)
def test_even_a_certificate_of_the_authority_s_key_must_be_of_the_right_shape(
    authority: Authority, broker: BrokerUnderTest, tmp_path: Path, holder: str, uri: str
) -> None:
    """Mosquitto sees the common name only: there the authority's refusal to issue is the defence."""
    with pytest.raises(AuthenticationError, match="Not authorized"):
        connects(broker, forged(authority, tmp_path, holder=holder, uri=uri), holder)


def test_a_newer_connection_takes_the_older_one_s_place(broker: BrokerUnderTest, authority: Authority) -> None:
    async def scenario() -> list[bytes]:
        async with (
            party(broker, authority, "aggregator", ["device/dev-c/up/#"]) as aggregator,
            party(broker, authority, "dev-c") as older,
        ):
            async with party(broker, authority, "dev-c") as newer:
                await older.link.stop(drain_s=0)
                await newer.link.wait_connected(WAIT_S)
                await newer.link.publish(path("device/dev-c/up/alert"), b"newer")
                await aggregator.until_payload(b"newer")
            return aggregator.payloads

    assert asyncio.run(scenario()) == [b"newer"]


@pytest.mark.parametrize("version", [3, 5])
def test_another_protocol_version_does_not_harm(broker: BrokerUnderTest, authority: Authority, version: int) -> None:
    """The contract is 3.1.1; whatever a broker answers to another version, it goes on serving."""
    names = {3: b"\x00\x06MQIsdp\x03", 5: b"\x00\x04MQTT\x05"}
    properties = b"\x00" if version == 5 else b""
    body = names[version] + b"\x02\x00\x1e" + properties + b"\x00\x05dev-c"
    with (
        socket.create_connection(("127.0.0.1", broker.port), WAIT_S) as plain,
        authority.context("dev-c").wrap_socket(plain, server_hostname="127.0.0.1") as secure,
    ):
        secure.sendall(bytes([0x10, len(body)]) + body)
        answer = secure.recv(4)
    if broker.name == "embedded":
        assert answer == b"\x20\x02\x00\x01" if version == 5 else answer[:1] in (b"\x20", b"")
    connects(broker, authority.context("dev-c"), "dev-c")
