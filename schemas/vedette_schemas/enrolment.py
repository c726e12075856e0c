"""How a node gets its certificates, and newer ones: requests of nodes, answers of the authority.

A request proves three things: the signatures in its two PKCS #10 requests, that the node holds both private keys; the
envelope's, that whoever asks was invited (the token's key) or is who it was (the current signing key). An answer is not
signed: what it holds are certificates, and each is checked up to the root that the node knows already.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from vedette_schemas.codec import Message
from vedette_schemas.topics import ID_PATTERN

ENROL_TYPE: Final = "enrol.request"
RENEW_TYPE: Final = "renew.request"
HARDWARE_SERIAL_PATTERN: Final = r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}"

RequestId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Pkcs10 = Annotated[bytes, Field(min_length=1, max_length=1024)]
Certificate = Annotated[bytes, Field(min_length=1, max_length=2048)]
MaybeCertificate = Annotated[bytes, Field(max_length=2048)]


class EnrolRequest(Message):
    """A new node asks for certificates; sealed with the key of its token, under the token's id.

    Attributes:
        id: of this request, random; the answer names it.
        token: the token's id.
        tls: PKCS #10 for the P-256 key, DER.
        signing: PKCS #10 for the Ed25519 key, DER.
        serial: serial number of the hardware as the node knows it; empty if it knows none. A claim, nothing more.
    """

    id: RequestId
    token: Annotated[str, Field(pattern=f"^{ID_PATTERN}$")]
    tls: Pkcs10
    signing: Pkcs10
    serial: Annotated[str, Field(pattern=f"^({HARDWARE_SERIAL_PATTERN})?$")] = ""


class RenewRequest(Message):
    """A node asks for newer certificates; sealed with its current signing key.

    Attributes:
        id: of this request, random; the answer names it.
        device: own id.
        certificate: its current signing certificate, DER.
        tls: PKCS #10 for the new P-256 key, DER.
        signing: PKCS #10 for the signing key, DER; it stays the one that the node has.
    """

    id: RequestId
    device: Annotated[str, Field(pattern=f"^{ID_PATTERN}$")]
    certificate: Certificate
    tls: Pkcs10
    signing: Pkcs10


class CertificateReply(Message):
    """The authority's answer to either request. Not signed: every certificate in it is checked by itself.

    Attributes:
        request: id of the request.
        outcome: ``issued``, or ``refused`` for good, or ``later`` (try again).
        reason: why not, in words; empty if issued.
        holder: the id that the authority gives; empty if not issued.
        tls: TLS leaf, DER; empty if not issued.
        signing: signing leaf, DER; empty if not issued.
        intermediate: the online authority that issued them, DER; empty if not issued.
        aggregator: the aggregator's signing leaf, DER; empty if there is none yet.
        aggregator_intermediate: the authority that issued that one, DER; empty if there is none yet.
    """

    request: RequestId
    outcome: Literal["issued", "refused", "later"]
    reason: Annotated[str, Field(max_length=400)] = ""
    holder: Annotated[str, Field(pattern=f"^({ID_PATTERN})?$")] = ""
    tls: MaybeCertificate = b""
    signing: MaybeCertificate = b""
    intermediate: MaybeCertificate = b""
    aggregator: MaybeCertificate = b""
    aggregator_intermediate: MaybeCertificate = b""
