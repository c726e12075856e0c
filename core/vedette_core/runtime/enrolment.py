"""A new node asks the authority for its first certificates, over the two topics of its token."""

from __future__ import annotations

import asyncio
import ssl
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from vedette_core.crypto.certificates import Identity, Purpose
from vedette_core.crypto.enrolment_token import EnrolmentToken
from vedette_core.runtime.bundle_requests import enrolment_request, install, read_ticket
from vedette_core.runtime.durable import write_durable
from vedette_core.runtime.identity import Bundle, client_context, load_tls_identity
from vedette_core.runtime.mqtt import LinkConfig, MqttLink, MqttMessage
from vedette_core.runtime.sections import BrokerSection
from vedette_schemas import codec
from vedette_schemas.enrolment import CertificateReply, EnrolRequest
from vedette_schemas.envelope import Envelope
from vedette_schemas.errors import PeerError, TransientError
from vedette_schemas.topics import Topics

RESEND_S: Final = 5.0
"""The authority may come back after the node has asked."""


async def enrol_over_mqtt(
    directory: Path,
    token: EnrolmentToken,
    ticket: bytes,
    broker: BrokerSection,
    *,
    serial: str = "",
    timeout_s: float = 60.0,
) -> Identity:
    """Make keys, ask for their certificates, and install the answer.

    Args:
        directory: the new bundle's; an earlier attempt is taken up.
        token: the invitation.
        ticket: the token's public half, PEM.
        broker: where the site's broker is.
        serial: hardware serial number, if the node knows one.
        timeout_s: how long to wait for the broker and the authority.

    Returns:
        Who the node is now.

    Raises:
        PeerError: the ticket is another site's, or the answer does not hold.
        RefusedError: the authority refused.
        TransientError: no answer in time.
        ConfigError: the folder cannot be used, or the broker refuses the bootstrap certificate.
    """
    anchors, _ = read_ticket(ticket, token)
    sealed = enrolment_request(directory, token, serial)
    with tempfile.TemporaryDirectory(prefix="vedette-enrol-") as folder:
        bootstrap = Bundle(Path(folder))
        key = token.tls_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_durable(bootstrap.tls_key, key)
        write_durable(bootstrap.tls_certificate, ticket)
        write_durable(
            bootstrap.ca, b"".join(c.public_bytes(Encoding.PEM) for c in (anchors.root, *anchors.intermediates))
        )
        site = load_tls_identity(bootstrap, time.time(), Purpose.TLS_CLIENT).site
        context = client_context(bootstrap)
    reply = await _converse(Topics(site), token.id, sealed, broker, context, timeout_s)
    return install(directory, reply, anchors, now=time.time())


def take_answer(sealed: bytes) -> Callable[[bytes], CertificateReply]:
    """Reads answers to one request.

    Args:
        sealed: the request.

    Returns:
        A function from bytes to the answer; it raises `PeerError` for what is no answer to this request.
    """
    wanted = codec.unpack(EnrolRequest, codec.unpack(Envelope, sealed).body).id

    def take(data: bytes) -> CertificateReply:
        reply = codec.unpack(CertificateReply, data)
        if reply.request != wanted:
            raise PeerError(f"answer: found one to request {reply.request}, expected {wanted}", reason="id")
        return reply

    return take


async def _converse(
    topics: Topics, token: str, sealed: bytes, broker: BrokerSection, context: ssl.SSLContext, timeout_s: float
) -> CertificateReply:
    answered: asyncio.Future[CertificateReply] = asyncio.get_running_loop().create_future()
    read = take_answer(sealed)

    async def take(message: MqttMessage) -> None:
        reply = read(message.payload)
        # "Later" is no answer yet: the request is sent again.
        if reply.outcome != "later" and not answered.done():
            answered.set_result(reply)

    config = LinkConfig(broker.host, broker.port, token, context, keepalive_s=broker.keepalive_s)
    async with MqttLink(config, take) as link:
        await link.subscribe(topics.enrolment_reply(token))
        try:
            async with asyncio.timeout(timeout_s):
                await link.wait_subscribed(timeout_s)
                while not answered.done():
                    await link.publish(topics.enrolment_request(token), sealed)
                    await asyncio.wait([answered], timeout=RESEND_S)
        except TimeoutError:
            raise TransientError(
                f"broker {broker.host}:{broker.port}: found no answer of the authority within {timeout_s:g} s; check "
                "that `vedette ca serve` runs, and try again: the same request is sent"
            ) from None
    return answered.result()
