"""What a chained boot leaves for the node: the chain, and the last layer's key.

An early boot stage that alone can read the device's secret writes them (`vedette attest boot`) into a folder in memory
that only the node can read; at the next boot of other software the key is another one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field

from vedette_core.attestation.boot_chain import Boot, boot
from vedette_core.runtime.durable import write_durable
from vedette_core.runtime.identity import read_file, read_secret
from vedette_schemas import codec
from vedette_schemas.attestation import LAYERS_MAX, BootLayer
from vedette_schemas.codec import Message
from vedette_schemas.errors import ConfigError, PeerError

CHAIN_FILE: Final = "chain.bin"
KEY_FILE: Final = "key.bin"
SECRET_BYTES: Final = 32


class _Chain(Message):
    """The file of a chain: the root's public key and the layers."""

    root: Annotated[bytes, Field(min_length=32, max_length=32)]
    layers: Annotated[tuple[BootLayer, ...], Field(min_length=1, max_length=LAYERS_MAX)]


@dataclass(frozen=True, slots=True)
class BootKeys:
    """A boot chain and its last key; see `Proof`.

    Attributes:
        boot: what the boot left.
        tier: 1.
    """

    boot: Boot = field(repr=False)
    tier: int = 1

    @classmethod
    def load(cls, folder: Path | None) -> BootKeys:
        """Read what a boot left.

        Raises:
            ConfigError: nothing there, or not what a boot leaves, or others may read it.
        """
        if folder is None:
            raise ConfigError("attestation: found tier 1 without boot_dir, expected the folder that the boot writes")
        try:
            chain = codec.unpack(_Chain, read_file(folder / CHAIN_FILE))
        except PeerError as fault:
            raise ConfigError(f"{folder / CHAIN_FILE}: {fault}") from fault
        secret = read_secret(folder / KEY_FILE)
        if len(secret) != 32:
            raise ConfigError(f"{folder / KEY_FILE}: found {len(secret)} bytes, expected 32; boot again")
        key = Ed25519PrivateKey.from_private_bytes(secret)
        if key.public_key().public_bytes_raw() != chain.layers[-1].key:
            raise ConfigError(f"{folder / KEY_FILE}: found a key that is not the last layer's; boot again")
        return cls(Boot(chain.root, chain.layers, key))

    def prove(self, bound: bytes) -> dict[str, Any]:
        """See `Proof.prove`."""
        return {"chain": self.boot.layers, "boot_signature": self.boot.key.sign(bound)}


def write_boot(secret: bytes, measured: list[tuple[str, bytes]], folder: Path) -> bytes:
    """Go through a boot's layers and leave chain and key for the node.

    Args:
        secret: the device's, 32 bytes.
        measured: name and SHA-256 of each layer, in order.
        folder: where; made 0700 if it is missing.

    Returns:
        The root's public key, to enrol.

    Raises:
        ConfigError: a secret of another size, no layer or too many, or a folder that cannot be written.
        TransientError: the disk is full.
    """
    if len(secret) != SECRET_BYTES or not 1 <= len(measured) <= LAYERS_MAX:
        raise ConfigError(
            f"boot: found a secret of {len(secret)} bytes and {len(measured)} layers, expected {SECRET_BYTES} bytes "
            f"and 1 to {LAYERS_MAX} layers"
        )
    made = boot(secret, measured)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as fault:
        raise ConfigError(f"{folder}: cannot be made ({fault.strerror}), expected a folder of its own") from fault
    write_durable(folder / CHAIN_FILE, codec.pack(_Chain(root=made.root, layers=made.layers)))
    write_durable(folder / KEY_FILE, made.key.private_bytes_raw())
    return made.root
