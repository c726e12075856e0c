"""A chained boot key: each layer is given a secret that depends on what it is, and the next layer's key is vouched for.

As in DICE: the device has one secret that only its first layer reads. Each layer measures the next one, derives a
secret from its own and that measurement, makes the next key of it, signs it, and forgets its own secret. Other
software means another key, which nobody vouches for.

How much it is worth is decided by who can read the device's secret after boot: that is the gateway's matter.

Source: TCG "DICE Layering Architecture" 1.0 §5; RFC 5869 (HKDF). The statements are ours instead of X.509: nothing has
to be parsed that an attacker wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from vedette_core.attestation.rules import refusal
from vedette_schemas.attestation import BootLayer, layer_statement


@dataclass(frozen=True, slots=True)
class Boot:
    """What a boot leaves behind.

    Attributes:
        root: raw public key of the device's secret: what is enrolled.
        layers: what was started, and the keys of it.
        key: the last layer's key: what it attests with.
    """

    root: bytes
    layers: tuple[BootLayer, ...]
    key: Ed25519PrivateKey = field(repr=False)


def boot(secret: bytes, measured: Sequence[tuple[str, bytes]]) -> Boot:
    """Go through the layers.

    Args:
        secret: 32 bytes that only this device's first layer can read.
        measured: name and SHA-256 of each layer, in the order in which they start; at least one.
    """
    current, key = secret, _key(secret)
    root, layers = _raw(key), []
    for name, measurement in measured:
        current = HKDF(SHA256(), 32, salt=measurement, info=b"vedette-boot-secret-1" + name.encode()).derive(current)
        following = _key(current)
        signature = key.sign(layer_statement(name, measurement, _raw(following)))
        layers.append(BootLayer(name=name, measurement=measurement, key=_raw(following), signature=signature))
        key = following
    return Boot(root, tuple(layers), key)


def check_chain(root: bytes, layers: Sequence[BootLayer], whose: str) -> bytes:
    """Check that every layer was vouched for by the one before.

    Args:
        root: the enrolled key.
        layers: of the evidence.
        whose: the device, for messages.

    Returns:
        The last layer's public key.

    Raises:
        RefusedError: a signature does not hold, or there is no layer (``boot-chain``).
    """
    if not layers:
        raise refusal("boot-chain", whose, "no layer", "one or more")
    key = root
    for layer in layers:
        statement = layer_statement(layer.name, layer.measurement, layer.key)
        check_signed(key, layer.signature, statement, "boot-chain", f"{whose}: layer {layer.name}")
        key = layer.key
    return key


def check_signed(key: bytes, signature: bytes, data: bytes, rule: str, whose: str) -> None:
    """Check a signature of a raw Ed25519 key.

    Raises:
        RefusedError: it does not hold, by the name of `rule`.
    """
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, data)
    except (InvalidSignature, ValueError):
        raise refusal(rule, whose, "a signature that the key before did not make", "its own") from None


def _key(secret: bytes) -> Ed25519PrivateKey:
    seed = HKDF(SHA256(), 32, salt=None, info=b"vedette-boot-key-1").derive(secret)
    return Ed25519PrivateKey.from_private_bytes(seed)


def _raw(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()
