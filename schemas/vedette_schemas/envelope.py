"""The signed envelope: sign what you send, no canonicalisation.

The signature covers the DSSE pre-authentication encoding of (type, body bytes as sent), so that a body can never be
taken for one of another type.

Source: DSSE protocol v1.0, "PAE"; RFC 8032 (Ed25519).
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Protocol, TypeVar

from pydantic import Field

from vedette_schemas import codec
from vedette_schemas.codec import PAYLOAD_BYTES_MAX, Message
from vedette_schemas.errors import PeerError
from vedette_schemas.topics import ID_PATTERN, WIRE_VERSION

SIGNATURE_BYTES: Final = 64
TYPE_PREFIX: Final = "application/vnd.vedette."

M = TypeVar("M", bound=Message)


class Signer(Protocol):
    """Signs bytes; holds the private key so that nothing else has to."""

    def sign(self, data: bytes) -> bytes:
        """Return the 64-byte Ed25519 signature of `data`."""


class Verifier(Protocol):
    """Knows the public keys of the senders."""

    def verify(self, sender: str, signature: bytes, data: bytes) -> None:
        """Check a signature; raises `PeerError` if it is wrong or the sender is unknown."""


class Envelope(Message):
    """A signed message as it travels.

    Attributes:
        v: wire version.
        type: what the body is, for example ``round.upload``.
        sender: id of the signer.
        body: msgpack of the message, exactly the bytes that were signed.
        sig: Ed25519 over `pre_authentication_encoding`.
    """

    v: Annotated[int, Field(ge=0, le=65535)]
    type: Annotated[str, Field(pattern=r"^[a-z][a-z0-9.]{0,39}$")]
    sender: Annotated[str, Field(pattern=f"^{ID_PATTERN}$")]
    body: Annotated[bytes, Field(max_length=PAYLOAD_BYTES_MAX)]
    sig: Annotated[bytes, Field(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]


def pre_authentication_encoding(kind: str, sender: str, body: bytes) -> bytes:
    """The bytes that are signed: DSSE's PAE over the payload type (with sender) and the body as sent."""
    payload_type = f"{TYPE_PREFIX}{kind};v={WIRE_VERSION};sender={sender}".encode()
    return b"DSSEv1 %d %s %d %s" % (len(payload_type), payload_type, len(body), body)


def seal(message: Message, kind: str, sender: str, signer: Signer) -> bytes:
    """Encode, sign and wrap a message.

    Args:
        message: the body.
        kind: its type, as in the table of ``schemas/README.md``.
        sender: own id.
        signer: holder of own key.

    Returns:
        The bytes to publish.
    """
    body = codec.pack(message)
    signature = signer.sign(pre_authentication_encoding(kind, sender, body))
    return codec.pack(Envelope(v=WIRE_VERSION, type=kind, sender=sender, body=body, sig=signature))


def unseal(cls: type[M], data: bytes, kind: str, verifier: Verifier, *, sender: str | None = None) -> tuple[M, str]:
    """Check and open a sealed message; nothing of the body is read before its signature holds.

    Args:
        cls: class of the body.
        data: bytes as received.
        kind: the type expected here.
        verifier: knows the senders' keys.
        sender: the only sender allowed here (the device of the topic, the aggregator), where there is one.

    Returns:
        The body and its sender's id.

    Raises:
        PeerError: malformed, wrong wire version or type, other sender than expected, unknown sender, bad signature.
    """
    plain = codec.unpack_plain(data, Envelope.__name__)
    _check_version(plain, kind)
    envelope = codec.validate(Envelope, plain)
    if envelope.type != kind:
        raise PeerError(f"from {envelope.sender}: found type {envelope.type!r}, expected {kind!r}", reason="type")
    if sender is not None and envelope.sender != sender:
        raise PeerError(f"{kind}: found sender {envelope.sender!r}, expected {sender!r}", reason="sender")
    verifier.verify(envelope.sender, envelope.sig, pre_authentication_encoding(kind, envelope.sender, envelope.body))
    return codec.unpack(cls, envelope.body), envelope.sender


def kind_of(data: bytes) -> str:
    """The type that an envelope claims, where a topic carries more than one; nothing is believed of it yet.

    Raises:
        PeerError: not an envelope.
    """
    return codec.unpack(Envelope, data).type


def _check_version(plain: Any, kind: str) -> None:
    # Before the shape: another version may have other fields, and "unknown field" would send its reader astray.
    found = plain.get("v") if isinstance(plain, dict) else None
    if isinstance(found, int) and not isinstance(found, bool) and found != WIRE_VERSION:
        raise PeerError(
            f"{kind}: found wire version {found}, expected {WIRE_VERSION}; update the older side", reason="version"
        )
