"""A beacon chain opens from its end, and nothing but its own values is believed."""

from __future__ import annotations

import hashlib
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vedette_core.crypto.beacon import BEACON_EPOCHS, SEED_BYTES, BeaconChain, verify_beacon
from vedette_schemas.errors import ConfigError, PeerError
from vedette_schemas.trust import BEACON_EPOCHS_MAX, BEACON_FIELD, BeaconAnchor, parse_anchor

SEED = hashlib.sha256(b"seed of a test").digest()
seeds = st.binary(min_size=SEED_BYTES, max_size=SEED_BYTES)
lengths = st.integers(1, 300)


def refused(value: bytes, epoch: int, anchor: BeaconAnchor) -> str:
    with pytest.raises(PeerError) as caught:
        verify_beacon(value, epoch, anchor)
    assert caught.value.reason == "beacon"
    return str(caught.value)


def plain_chain(seed: bytes, length: int) -> list[bytes]:
    """Seed to anchor, written down from the definition: SHA-256 over length-prefixed domain and value."""
    domain = b"vedette-beacon-chain-1"
    values = [seed]
    for _ in range(length):
        prefixed = len(domain).to_bytes(8, "big") + domain + (32).to_bytes(8, "big") + values[-1]
        values.append(hashlib.sha256(prefixed).digest())
    return values


@given(seeds, lengths)
def test_a_chain_is_what_its_definition_says(seed: bytes, length: int) -> None:
    chain, plain = BeaconChain(seed, length), plain_chain(seed, length)
    assert chain.anchor == BeaconAnchor(scheme="sha256-chain-1", anchor=plain[-1].hex(), length=length)
    assert [chain.value(epoch) for epoch in range(1, length + 1)] == plain[-2::-1]


@given(seeds, lengths, st.data())
def test_every_value_is_believed_in_its_own_epoch_and_in_no_other(
    seed: bytes, length: int, draw: st.DataObject
) -> None:
    chain = BeaconChain(seed, length)
    epoch, said = draw.draw(st.integers(1, length)), draw.draw(st.integers(1, length))
    value = chain.value(epoch)
    if said == epoch:
        verify_beacon(value, said, chain.anchor)
    else:
        assert "opened another value" in refused(value, said, chain.anchor)


@given(lengths, st.data())
def test_a_value_of_which_one_bit_is_different_is_refused(length: int, draw: st.DataObject) -> None:
    chain = BeaconChain(SEED, length)
    epoch, bit = draw.draw(st.integers(1, length)), draw.draw(st.integers(0, 8 * SEED_BYTES - 1))
    forged = bytearray(chain.value(epoch))
    forged[bit // 8] ^= 1 << bit % 8
    refused(bytes(forged), epoch, chain.anchor)


@given(seeds, seeds, lengths, st.data())
def test_the_values_of_another_chain_are_refused(one: bytes, two: bytes, length: int, draw: st.DataObject) -> None:
    epoch = draw.draw(st.integers(1, length))
    if one != two:
        refused(BeaconChain(two, length).value(epoch), epoch, BeaconChain(one, length).anchor)


@given(st.integers(2, 300), st.data())
def test_a_value_gives_away_those_before_it_only(length: int, draw: st.DataObject) -> None:
    chain = BeaconChain(SEED, length)
    epoch = draw.draw(st.integers(2, length))
    opened = chain.value(epoch)
    known = set(plain_chain(opened, epoch))
    assert all(chain.value(before) in known for before in range(1, epoch))
    assert not any(chain.value(later) in known for later in range(epoch + 1, length + 1))


@pytest.mark.parametrize("value", [b"", bytes(31), bytes(33), bytes(10_000)])
def test_a_value_of_another_length_is_refused(value: bytes) -> None:
    anchor = BeaconChain(SEED, 10).anchor
    assert f"found {len(value)} bytes, expected 32" in refused(value, 3, anchor)


def test_a_chain_that_is_used_up_says_what_to_do() -> None:
    chain = BeaconChain(SEED, BEACON_EPOCHS)
    verify_beacon(chain.value(BEACON_EPOCHS), BEACON_EPOCHS, chain.anchor)
    for epoch in (BEACON_EPOCHS + 1, 2**63):
        text = refused(SEED, epoch, chain.anchor)
        assert f"found epoch {epoch}, expected 1 to {BEACON_EPOCHS}" in text
        assert "a new ceremony" in text
        with pytest.raises(ConfigError, match="the chain is used up; a new ceremony"):
            chain.value(epoch)


@pytest.mark.parametrize("epoch", [0, -1])
def test_there_is_no_epoch_before_the_first(epoch: int) -> None:
    """Epoch 0 would be the anchor itself, which everybody knows."""
    chain = BeaconChain(SEED, 10)
    assert "expected 1 to 10" in refused(bytes.fromhex(chain.anchor.anchor), epoch, chain.anchor)
    with pytest.raises(ValueError, match="expected at least 1"):
        chain.value(epoch)


@pytest.mark.parametrize(("seed", "length"), [(bytes(31), 10), (SEED, 0), (SEED, BEACON_EPOCHS_MAX + 1), (b"", 1)])
def test_an_unusable_seed_or_length_is_a_fault_of_the_program(seed: bytes, length: int) -> None:
    with pytest.raises(ValueError, match="beacon chain: found"):
        BeaconChain(seed, length)


def test_a_chain_keeps_its_seed_to_itself() -> None:
    chain = BeaconChain(SEED, 10)
    assert SEED.hex() not in repr(chain)
    assert repr(SEED) not in repr(chain)
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(chain)


# --- the anchor in the root metadata ---


def test_an_anchor_is_read_as_it_was_written() -> None:
    anchor = BeaconChain(SEED, 10).anchor
    assert parse_anchor({"x-other": 1, BEACON_FIELD: anchor.model_dump(mode="json")}) == anchor
    assert parse_anchor({"x-other": 1}) is None


@pytest.mark.parametrize(
    "change",
    [
        {"scheme": "sha256-chain-2"},
        {"scheme": None},
        {"anchor": "00" * 31},
        {"anchor": "0G" * 32},
        {"anchor": "AB" * 32},
        {"length": 0},
        {"length": BEACON_EPOCHS_MAX + 1},
        {"length": "10"},
        {"length": True},
        {"note": "hello"},
    ],
)
def test_an_anchor_of_another_form_is_refused(change: dict[str, object]) -> None:
    plain = BeaconChain(SEED, 10).anchor.model_dump(mode="json") | change
    with pytest.raises(PeerError, match="BeaconAnchor"):
        parse_anchor({BEACON_FIELD: plain})


@pytest.mark.parametrize("plain", [None, [], "ab", 1, {}, {"length": 10}])
def test_what_is_no_anchor_is_refused(plain: object) -> None:
    with pytest.raises(PeerError, match="BeaconAnchor"):
        parse_anchor({BEACON_FIELD: plain})
