"""Key files of attestation: Ed25519 private keys as PEM (0600), public ones as PEM beside them."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_public_key,
)

from vedette_core.crypto.signing import Ed25519Signer
from vedette_core.runtime.identity import read_file, read_signing_key
from vedette_schemas.errors import ConfigError


def make_key(path: Path) -> Path:
    """Make a key pair.

    Args:
        path: new file for the private key; the public one gets ``.pub`` behind its name.

    Returns:
        The public key's file.

    Raises:
        ConfigError: a file is there, or cannot be written.
    """
    key = Ed25519PrivateKey.generate()
    public = path.with_name(path.name + ".pub")
    private_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public_pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for file, data, mode in ((path, private_pem, 0o600), (public, public_pem, 0o644)):
        try:
            handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            with os.fdopen(handle, "wb") as out:
                out.write(data)
        except OSError as fault:
            raise ConfigError(f"{file}: cannot be written ({fault.strerror}), expected a new file") from fault
    return public


def load_signer(path: Path) -> Ed25519Signer:
    """A private key.

    Raises:
        ConfigError: missing, readable by others, or no Ed25519 key.
    """
    return Ed25519Signer(read_signing_key(path, "make one with `vedette attest key`"))


def load_public(path: Path) -> bytes:
    """A public key, raw, 32 bytes.

    Raises:
        ConfigError: missing, or no Ed25519 public key.
    """
    try:
        key = load_pem_public_key(read_file(path))
    except (ValueError, UnsupportedAlgorithm) as fault:
        raise ConfigError(f"{path}: found something else than a PEM public key") from fault
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"{path}: found another kind of key, expected Ed25519; make one with `vedette attest key`")
    return key.public_bytes_raw()
