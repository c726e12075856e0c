"""A damaged certificate is refused, however it is damaged: a check-in must not end the process that reads it."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vedette_broker import ca
from vedette_core.crypto.certificate_chain import der, load_certificates
from vedette_core.crypto.certificates import CertificateRole
from vedette_core.crypto.signing import KeyRing
from vedette_core.runtime.identity import Bundle, key_ring
from vedette_schemas.errors import PeerError

NOW = 1_800_000_000.0


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> tuple[KeyRing, bytes, bytes]:
    authority = tmp_path_factory.mktemp("site") / "ca"
    ca.init(authority, "plant", now=NOW)
    bundle = Bundle(ca.issue(authority, "dev-a", CertificateRole.DEVICE, now=NOW))
    leaf, intermediate, *_ = load_certificates(bundle.signing_certificate.read_bytes())
    return key_ring(bundle, "plant"), der(leaf), der(intermediate)


def test_the_undamaged_chain_holds(chain: tuple[KeyRing, bytes, bytes]) -> None:
    ring, leaf, intermediate = chain
    assert ring.learn(leaf, NOW, intermediate=intermediate, sender="dev-a").id == "dev-a"


@settings(max_examples=300)
@given(data=st.data())
def test_a_damaged_chain_is_refused_and_nothing_else_happens(
    chain: tuple[KeyRing, bytes, bytes], data: st.DataObject
) -> None:
    ring, *parts = chain
    damaged = [bytearray(part) for part in parts]
    for _ in range(data.draw(st.integers(1, 4))):
        part = damaged[data.draw(st.integers(0, 1))]
        part[data.draw(st.integers(0, len(part) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(PeerError):
        ring.learn(bytes(damaged[0]), NOW, intermediate=bytes(damaged[1]))
        assert damaged[0] == parts[0], "a changed leaf must not hold"


@given(st.binary(max_size=400))
def test_bytes_that_are_no_certificate(data: bytes) -> None:
    with pytest.raises(PeerError):
        load_certificates(data)
    with pytest.raises(PeerError):
        load_certificates(b"-----BEGIN CERTIFICATE-----\n" + data)
