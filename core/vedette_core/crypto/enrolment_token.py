"""One-time tokens: what an operator carries to a new node, and what is derived from it.

A token is 128 random bits and the first 128 bits of the SHA-256 of the site's root certificate, as one line of text.
The random half proves that the node was invited; the other half tells the node whose site it is: with it, everything
else that enrolment needs may travel in the open. Two keys are derived from the random half: one for TLS, so that the
broker lets the node speak on its token's two topics, and one that signs the request, so that no broker can change it.
The authority keeps the public halves and a digest, and never the token.

Source: RFC 5869 (HKDF), RFC 4648 §6 (base 32).
"""

from __future__ import annotations

import base64
import hmac
import re
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding

from vedette_core.crypto.signing import Ed25519Signer
from vedette_schemas.errors import PeerError
from vedette_schemas.topics import TOKEN_ID_PREFIX

SECRET_BYTES: Final = 16
PIN_BYTES: Final = 16
TOKEN_CHARACTERS: Final = 52
_SALT: Final = b"vedette enrolment token 1"
_TEXT: Final = re.compile(rf"[a-z2-7]{{{TOKEN_CHARACTERS}}}")


@dataclass(frozen=True, slots=True)
class EnrolmentToken:
    """A token.

    Attributes:
        secret: 16 random bytes.
        pin: first 16 bytes of the SHA-256 of the root certificate's DER.
    """

    secret: bytes = field(repr=False)
    pin: bytes

    @classmethod
    def make(cls, secret: bytes, root: x509.Certificate) -> EnrolmentToken:
        """A token of a site.

        Args:
            secret: 16 fresh random bytes.
            root: the site's root certificate.
        """
        assert len(secret) == SECRET_BYTES
        return cls(secret, root_pin(root))

    @property
    def text(self) -> str:
        """The line that an operator carries: 52 characters, a secret."""
        return base64.b32encode(self.secret + self.pin).decode().rstrip("=").lower()

    @property
    def id(self) -> str:
        """The token's public name, and the bootstrap certificate's."""
        return f"{TOKEN_ID_PREFIX}{sha256(b'vedette token id' + self.secret).hexdigest()[:16]}"

    @property
    def digest(self) -> str:
        """What the authority stores of it: SHA-256 in hexadecimal. 128 random bits need no slower hash."""
        return sha256(b"vedette token digest" + self.secret).hexdigest()

    @property
    def tls_key(self) -> ec.EllipticCurvePrivateKey:
        """The bootstrap certificate's key."""
        # 256 bits modulo the group's order less one, as FIPS 186-5 A.2.1: 64 bits more than the order leave no bias.
        order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
        number = int.from_bytes(self._derive(b"tls", 40), "big") % (order - 1) + 1
        return ec.derive_private_key(number, ec.SECP256R1())

    @property
    def signing_key(self) -> Ed25519PrivateKey:
        """The key that signs the request."""
        return Ed25519PrivateKey.from_private_bytes(self._derive(b"request", 32))

    @property
    def signer(self) -> Ed25519Signer:
        """Signs the request."""
        return Ed25519Signer(self.signing_key)

    def check_root(self, root: x509.Certificate) -> None:
        """Check that a root certificate is the one that the token was made for.

        Raises:
            PeerError: it is another site's.
        """
        if not hmac.compare_digest(root_pin(root), self.pin):
            raise PeerError(
                f"token {self.id}: found the root certificate {root_pin(root).hex()}, expected {self.pin.hex()}: "
                "the certificates are not those of the site that the token is from",
                reason="chain",
            )

    def _derive(self, what: bytes, length: int) -> bytes:
        return HKDF(SHA256(), length, _SALT, what).derive(self.secret)


def root_pin(root: x509.Certificate) -> bytes:
    """What a token holds of a root certificate: 16 bytes."""
    return sha256(root.public_bytes(Encoding.DER)).digest()[:PIN_BYTES]


def parse_token(text: str) -> EnrolmentToken:
    """Read a token as an operator carries it; spaces around it and capitals do not matter.

    Raises:
        PeerError: it is none. The message does not repeat it.
    """
    plain = text.strip().lower()
    wrong = PeerError(
        f"token: found {len(plain)} characters, expected the {TOKEN_CHARACTERS} that `vedette ca token` printed",
        reason="token",
    )
    if len(text) > 4 * TOKEN_CHARACTERS or not _TEXT.fullmatch(plain):
        raise wrong
    data = base64.b32decode(plain.upper() + "====")
    token = EnrolmentToken(data[:SECRET_BYTES], data[SECRET_BYTES:])
    if token.text != plain:  # the last character has four bits to spare
        raise wrong
    return token
