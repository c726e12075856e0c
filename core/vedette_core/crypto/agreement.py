"""Secrets that two nodes share: X25519 agreement, keys derived from it, and boxes that only the other one opens.

The keys are ephemeral, one pair per node and round. Who they belong to is said by a signature elsewhere; here is
only the arithmetic, and what it refuses.

Source: RFC 7748 (X25519), RFC 5869 (HKDF), NIST SP 800-38D (AES-GCM).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from vedette_schemas.errors import PeerError

KEY_BYTES: Final = 32
"""An X25519 key, private or public, what two of them agree on, and the key of a box (AES-256)."""
NONCE_BYTES: Final = 12
"""The nonce that GCM takes without hashing it first (SP 800-38D §7.1); random, so a key may seal few boxes only."""
TAG_BYTES: Final = 16
"""GCM's full tag; shorter ones are forged more easily than their length says (SP 800-38D, appendix C)."""
BOX_OVERHEAD: Final = NONCE_BYTES + TAG_BYTES
"""Bytes by which a box is longer than what is in it."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """An ephemeral X25519 key pair.

    Attributes:
        private: 32 bytes, the scalar before clamping; not shown in the representation.
        public: 32 bytes, the u coordinate, little-endian.
    """

    private: bytes = field(repr=False)
    public: bytes


def key_pair(private: bytes) -> KeyPair:
    """The key pair of 32 random bytes.

    Raises:
        ValueError: not 32 bytes.
    """
    public = _private_key(private).public_key().public_bytes_raw()
    return KeyPair(private, public)


def shared_secret(private: bytes, public: bytes) -> bytes:
    """What this private key and the other side's public key agree on: 32 bytes, not yet a key: `derive` makes one.

    Encodings that are not canonical and points on the twist are taken as RFC 7748 §5 defines them. Points of small
    order are refused: with them, the secret would be zero whatever our key is (§6.1).

    Args:
        private: ours, 32 bytes.
        public: the other side's, as it came.

    Raises:
        PeerError: the public key is not 32 bytes, or a point of small order.
        ValueError: the private key is not 32 bytes.
    """
    own = _private_key(private)
    if len(public) != KEY_BYTES:
        raise PeerError(
            f"the other side's X25519 key: found {len(public)} bytes, expected {KEY_BYTES}",
            reason="key",
        )
    try:
        return own.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as fault:
        raise PeerError(
            f"the other side's X25519 key: found {public.hex()}, a point of small order, expected an honest one",
            reason="key",
        ) from fault


def derive(secret: bytes, salt: bytes, info: bytes, length: int = KEY_BYTES) -> bytes:
    """A key from a secret (HKDF-SHA256).

    Args:
        secret: of any length; it need not be uniform.
        salt: what the key is bound to, for example a round's transcript hash. HMAC pads it with zeros, so salts of
            different meanings must have one length.
        info: what the key is for.
        length: bytes wanted, 1 to 8,160.

    Raises:
        ValueError: a length that HKDF does not give.
    """
    if not 1 <= length <= 255 * SHA256.digest_size:
        raise ValueError(f"found a length of {length} bytes, expected 1 to {255 * SHA256.digest_size}")
    return HKDF(SHA256(), length, salt, info).derive(secret)


def seal_box(key: bytes, plaintext: bytes, associated: bytes, nonce: bytes) -> bytes:
    """Encrypt and authenticate with AES-256-GCM.

    Args:
        key: 32 bytes.
        plaintext: what is to be hidden.
        associated: what is not in the box and must be the same when it is opened.
        nonce: 12 random bytes, never twice under one key.

    Returns:
        Nonce, ciphertext and tag: `BOX_OVERHEAD` bytes more than the plaintext.

    Raises:
        ValueError: a key or a nonce of another length.
    """
    if len(nonce) != NONCE_BYTES:
        raise ValueError(f"found a nonce of {len(nonce)} bytes, expected {NONCE_BYTES}")
    return nonce + _box_cipher(key).encrypt(nonce, plaintext, associated)


def open_box(key: bytes, box: bytes, associated: bytes) -> bytes:
    """Return what was sealed under this key together with this associated data.

    Raises:
        PeerError: too short, or nonce, ciphertext, tag, associated data and key do not belong together; which of them
            is wrong cannot be told.
        ValueError: a key of another length.
    """
    cipher = _box_cipher(key)
    if len(box) < BOX_OVERHEAD:
        raise PeerError(f"box: found {len(box)} bytes, expected at least {BOX_OVERHEAD}", reason="box")
    try:
        return cipher.decrypt(box[:NONCE_BYTES], box[NONCE_BYTES:], associated)
    except InvalidTag:
        raise PeerError(
            f"box: found {len(box)} bytes that do not open, expected one sealed under this key and associated data",
            reason="box",
        ) from None


def _private_key(private: bytes) -> X25519PrivateKey:
    if len(private) != KEY_BYTES:
        raise ValueError(f"found an X25519 private key of {len(private)} bytes, expected {KEY_BYTES}")
    return X25519PrivateKey.from_private_bytes(private)


def _box_cipher(key: bytes) -> AESGCM:
    # The library would take 16 and 24 bytes, too, as AES-128 and AES-192.
    if len(key) != KEY_BYTES:
        raise ValueError(f"found a box key of {len(key)} bytes, expected {KEY_BYTES}")
    return AESGCM(key)
