"""The signed envelope: what is signed, and what is refused before anything of the body is read."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from vedette_schemas import codec
from vedette_schemas.envelope import Envelope, kind_of, pre_authentication_encoding, seal, unseal
from vedette_schemas.errors import PeerError
from vedette_schemas.telemetry import Receipt, ReceiptItem

BODY = Receipt(device="gw-01", items=(ReceiptItem(id="a-1", outcome="accepted"),))


class Keys:
    """Keys from seeds, one an identity; counts what it was asked to verify."""

    def __init__(self, identity: str = "agg", known: tuple[str, ...] = ("agg", "gw-01")) -> None:
        self._own, self._known, self.asked = self._key(identity), known, 0

    @staticmethod
    def _key(identity: str) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"test " + identity.encode()).digest())

    def sign(self, data: bytes) -> bytes:
        return self._own.sign(data)

    def verify(self, sender: str, signature: bytes, data: bytes) -> None:
        self.asked += 1
        if sender not in self._known:
            raise PeerError(f"unknown sender {sender}", reason="sender")
        try:
            self._key(sender).public_key().verify(signature, data)
        except InvalidSignature as fault:
            raise PeerError(f"signature of {sender} does not hold", reason="signature") from fault


def refusal(data: bytes, kind: str = "receipt", sender: str | None = "agg") -> str:
    with pytest.raises(PeerError) as caught:
        unseal(Receipt, data, kind, Keys(), sender=sender)
    return caught.value.reason


def test_what_was_sealed_is_opened_and_names_its_sender() -> None:
    data = seal(BODY, "receipt", "agg", Keys())
    assert unseal(Receipt, data, "receipt", Keys(), sender="agg") == (BODY, "agg")
    assert unseal(Receipt, data, "receipt", Keys()) == (BODY, "agg")


def test_the_pre_authentication_encoding_is_that_of_dsse() -> None:
    kind = b"application/vnd.vedette.receipt;v=1;sender=agg"
    assert pre_authentication_encoding("receipt", "agg", b"\x00hi") == b"DSSEv1 %d %s 3 \x00hi" % (len(kind), kind)


def test_every_changed_byte_is_refused() -> None:
    data = seal(BODY, "receipt", "agg", Keys())
    for at in range(len(data)):
        for flip in (0x01, 0x80, 0xFF):
            refusal(data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :])


def test_every_shortened_or_lengthened_message_is_refused() -> None:
    data = seal(BODY, "receipt", "agg", Keys())
    for length in range(len(data)):
        assert refusal(data[:length]) in ("encoding", "schema")
    assert refusal(data + b"\x00") == "encoding"


def test_a_message_of_another_type_is_refused_although_its_signature_holds() -> None:
    assert refusal(seal(BODY, "command", "agg", Keys())) == "type"


def test_a_sender_cannot_be_swapped_for_another_known_one() -> None:
    assert refusal(seal(BODY, "receipt", "gw-01", Keys("gw-01"))) == "sender"
    assert refusal(seal(BODY, "receipt", "agg", Keys("gw-01"))) == "signature"
    assert refusal(seal(BODY, "receipt", "gw-99", Keys("gw-99")), sender=None) == "sender"


def test_a_signature_does_not_carry_over_to_another_type_or_sender() -> None:
    wire = codec.unpack(Envelope, seal(BODY, "command", "agg", Keys()))
    assert refusal(codec.pack(wire.model_copy(update={"type": "receipt"}))) == "signature"
    wire = codec.unpack(Envelope, seal(BODY, "receipt", "gw-01", Keys("gw-01")))
    assert refusal(codec.pack(wire.model_copy(update={"sender": "agg"}))) == "signature"


@pytest.mark.parametrize("version", [0, 2, 65535])
def test_another_wire_version_says_what_to_do(version: int) -> None:
    wire = codec.unpack(Envelope, seal(BODY, "receipt", "agg", Keys()))
    other = codec.pack(wire.model_copy(update={"v": version}))
    with pytest.raises(PeerError, match=f"found wire version {version}, expected 1; update the older side") as caught:
        unseal(Receipt, other, "receipt", Keys())
    assert caught.value.reason == "version"


def test_the_signature_is_checked_before_the_body_is_read() -> None:
    keys = Keys()
    signature = keys.sign(pre_authentication_encoding("receipt", "agg", b"\xc1"))
    data = codec.pack(Envelope(v=1, type="receipt", sender="agg", body=b"\xc1", sig=signature))
    with pytest.raises(PeerError) as caught:
        unseal(Receipt, data, "receipt", keys)
    assert (caught.value.reason, keys.asked) == ("encoding", 1)
    forged = codec.pack(Envelope(v=1, type="receipt", sender="agg", body=b"\xc1", sig=bytes(64)))
    assert refusal(forged) == "signature", "an unsigned body is not even decoded"


def test_a_body_beyond_the_limit_is_not_signed() -> None:
    class Signer:
        def sign(self, data: bytes) -> bytes:
            raise AssertionError("asked to sign a body that cannot be sent")

    class Blob(codec.Message):
        data: bytes

    with pytest.raises(PeerError, match="larger bodies are chunked"):
        seal(Blob(data=bytes(codec.PAYLOAD_BYTES_MAX)), "blob", "agg", Signer())


def test_the_type_that_an_envelope_claims_is_read_without_believing_it() -> None:
    data = seal(BODY, "receipt", "agg", Keys())
    assert kind_of(data) == "receipt"
    claimed = codec.pack(codec.unpack(Envelope, data).model_copy(update={"type": "committee.close"}))
    assert kind_of(claimed) == "committee.close"
    assert refusal(claimed, "committee.close") == "signature"


@pytest.mark.parametrize("damaged", [b"", b"\x80", b"\xc1", seal(BODY, "receipt", "agg", Keys())[:-1]])
def test_what_is_no_envelope_claims_nothing(damaged: bytes) -> None:
    with pytest.raises(PeerError) as caught:
        kind_of(damaged)
    assert caught.value.reason in ("encoding", "schema")
