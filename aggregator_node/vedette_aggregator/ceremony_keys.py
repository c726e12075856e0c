"""Keys that people make and keep, each on a machine of their own: an Ed25519 key in PEM, and the public half beside it.

The private half is readable by its owner only, and under a passphrase where one was given (PKCS #8 with PBKDF2 and AES,
as ``cryptography`` writes it): the passphrase has to be long, the derivation is not slow.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from securesystemslib.signer import CryptoSigner, SSlibKey

from vedette_aggregator.registry_files import KEY_MODE_MASK, PUBLIC_FILE
from vedette_core.runtime.durable import file_error, write_durable
from vedette_schemas.errors import ConfigError

KEY_BYTES_MAX: Final = 4096
PASSPHRASE_CHARACTERS_MIN: Final = 16
PUBLIC_ENDING: Final = ".pub"


def make_key(path: Path, passphrase: str | None) -> SSlibKey:
    """Make a key pair: the private half at `path`, the public half at ``{path}.pub``.

    Raises:
        ConfigError: a file is there already, the passphrase is too short, or the folder is not writable.
        TransientError: the disk is full.
    """
    public_path = path.with_name(path.name + PUBLIC_ENDING)
    for there in (path, public_path):
        if there.exists():
            raise ConfigError(f"{there}: found a file there, expected none; a key is never replaced in its place")
    encryption: KeySerializationEncryption = NoEncryption()
    if passphrase is not None:
        if len(passphrase) < PASSPHRASE_CHARACTERS_MIN:
            raise ConfigError(
                f"passphrase: found {len(passphrase)} characters, expected {PASSPHRASE_CHARACTERS_MIN} or more"
            )
        encryption = BestAvailableEncryption(passphrase.encode())
    key = Ed25519PrivateKey.generate()
    write_durable(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    public = key.public_key()
    write_durable(public_path, public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), PUBLIC_FILE)
    return SSlibKey.from_crypto(public)


def read_public(path: Path) -> SSlibKey:
    """The public key of a ``.pub`` file.

    Raises:
        ConfigError: it is missing, or no Ed25519 key.
    """
    try:
        key = load_pem_public_key(_read(path))
    except (ValueError, UnsupportedAlgorithm) as fault:
        raise ConfigError(f"{path}: found no public key ({fault}), expected PEM of `vedette trust key new`") from fault
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"{path}: found a {type(key).__name__}, expected an Ed25519 key")
    return SSlibKey.from_crypto(key)


def read_signer(path: Path, passphrase: str | None) -> CryptoSigner:
    """Who signs with a private key.

    Raises:
        ConfigError: it is missing, others may read it, it is no Ed25519 key, or the passphrase does not open it.
    """
    data = _read(path)
    if path.stat().st_mode & KEY_MODE_MASK:
        raise ConfigError(
            f"{path}: found mode {path.stat().st_mode & 0o777:o}, expected 600: others can read this key; chmod 600 "
            "it, and replace it if it may have been read"
        )
    try:
        key = load_pem_private_key(data, None if passphrase is None else passphrase.encode())
    except TypeError as fault:
        wanted = "one with --passphrase-file or --passphrase" if passphrase is None else "none: it is not encrypted"
        raise ConfigError(
            f"{path}: found {'no' if passphrase is None else 'a'} passphrase, expected {wanted}"
        ) from fault
    except (ValueError, UnsupportedAlgorithm) as fault:
        raise ConfigError(f"{path}: found no key that this passphrase opens, expected PEM (PKCS #8)") from fault
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path}: found a {type(key).__name__}, expected an Ed25519 key")
    return CryptoSigner(key, SSlibKey.from_crypto(key.public_key()))


def read_passphrase(path: Path) -> str:
    """The first line of a file that only its owner may read.

    Raises:
        ConfigError: it is missing, empty, or others may read it.
    """
    data = _read(path)
    if path.stat().st_mode & KEY_MODE_MASK:
        raise ConfigError(f"{path}: found mode {path.stat().st_mode & 0o777:o}, expected 600: others can read it")
    lines = data.decode(errors="replace").splitlines()
    if not lines or not lines[0]:
        raise ConfigError(f"{path}: found no passphrase in its first line, expected one")
    return lines[0]


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(KEY_BYTES_MAX + 1)
    except OSError as fault:
        raise file_error(fault, f"read {path}") from fault
    if len(data) > KEY_BYTES_MAX:
        raise ConfigError(f"{path}: found more than {KEY_BYTES_MAX} bytes, expected a key file")
    return data
