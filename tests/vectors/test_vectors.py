"""The committed vectors are what the code makes, and the code decodes and refuses what they say."""

from __future__ import annotations

import json
from typing import Any

import golden
import golden_round
import golden_site
import numpy as np
import pytest
import regenerate

from vedette_core.secagg.aggregator import Unmasking, UploadEvidence
from vedette_schemas import (
    alert,
    attestation,
    codec,
    command,
    enrolment,
    envelope,
    model,
    rollout,
    secagg,
    telemetry,
    trust,
)
from vedette_schemas import round as rounds
from vedette_schemas.codec import Message
from vedette_schemas.errors import PeerError
from vedette_schemas.topics import RENEW, Role, Topics

CLASSES: dict[str, type[Message]] = {
    c.__name__: c
    for module in (alert, attestation, command, enrolment, model, rollout, rounds, secagg, telemetry, trust)
    for c in vars(module).values()
    if isinstance(c, type) and issubclass(c, Message) and c is not Message
}


def committed(name: str) -> Any:
    return json.loads((golden.FOLDER / name).read_text())


@pytest.mark.parametrize("name", regenerate.files())
def test_the_committed_vectors_are_what_the_code_makes(name: str) -> None:
    made = json.loads(json.dumps(regenerate.files()[name]))
    assert made == committed(name), f"{name} differs: python tests/vectors/regenerate.py, and CHANGELOG.md under Wire"


@pytest.mark.parametrize("vector", committed("messages.json"), ids=lambda v: v["name"])
def test_a_good_message_is_decoded(vector: dict[str, Any]) -> None:
    sample = next(g for g in golden.good() if g.name == vector["name"])
    sender = vector["sender"] or None
    decoded = golden.decode(
        CLASSES[vector["message"]], vector["encoding"], bytes.fromhex(vector["hex"]), vector["type"], sender
    )
    assert decoded == sample.message
    if vector["topic"]:
        site = Topics("plant-1")
        assert site.parse(vector["topic"]).kind
        branch = site.parse(vector["topic"]).device or ""
        kind, up = site.parse(vector["topic"]).kind, "/up" in vector["topic"]
        outside = Role.BOOTSTRAP if kind == "enrol" else Role.DEVICE
        renewal = kind == "rpc" and site.parse(vector["topic"]).key == RENEW
        inside = Role.AUTHORITY if kind == "enrol" or renewal else Role.AGGREGATOR
        writer = (outside, branch) if up else (inside, inside.value)
        assert site.may_publish(*writer, vector["topic"])


@pytest.mark.parametrize("vector", committed("refused.json"), ids=lambda v: v["name"])
def test_a_bad_message_is_refused_with_its_reason(vector: dict[str, Any]) -> None:
    with pytest.raises(PeerError) as caught:
        golden.decode(
            CLASSES[vector["message"]],
            vector["encoding"],
            bytes.fromhex(vector["hex"]),
            vector["type"],
            vector["sender"],
        )
    assert caught.value.reason == vector["reason"], str(caught.value)
    assert vector["says"] in str(caught.value)


def test_every_message_that_travels_alone_has_a_vector() -> None:
    inside = {"FeatureReason", "AlertModel", "ActiveModel", "DetectorReport", "ColumnDrift", "DriftReport",
              "ReceiptItem", "TrainingPlan", "UpdatePlan", "GroupPlan", "PrivacyPlan", "Member", "UploadHeader",
              "Survivor", "DeviceShares", "ReleaseDiff", "Measurement", "BootLayer", "Pcr", "Reference",
              "RolloutPin", "RolloutProgress"}  # fmt: skip
    assert {v["message"] for v in committed("messages.json")} == CLASSES.keys() - inside


def test_the_vectors_of_a_group_belong_together() -> None:
    """Offers and headers hold, and what the members release opens the sum that the vectors have."""
    keys, roster, plan = golden_site.TestKeys(), golden_round.roster(), golden_site.plan()
    for member in roster.members:
        statement = rounds.offer_statement("network", member.device, member.seq, member.epk, "contribute")
        keys.verify(
            member.device,
            member.offer,
            envelope.pre_authentication_encoding(rounds.OFFER_TYPE, member.device, statement),
        )
    uploads = {device: golden_round.upload(device) for device in golden_round.SURVIVORS}
    for device, upload in uploads.items():
        encoded = codec.pack(rounds.header_of(upload))
        keys.verify(device, upload.header, envelope.pre_authentication_encoding(rounds.HEADER_TYPE, device, encoded))
    unmasking = Unmasking(roster, plan, {d: UploadEvidence.of(u) for d, u in uploads.items()})
    assert unmasking.close_for(golden_round.MEMBER) == golden_round.close()
    for device in golden_round.SURVIVORS:
        vote = golden_round.vote(device)
        unmasking.take_vote(vote, envelope.seal(vote, secagg.VOTE_TYPE, device, golden_site.TestKeys(device)))
    assert unmasking.certified
    assert unmasking.opening() == golden_round.opening()
    for device in golden_round.SURVIVORS:
        unmasking.take_shares(golden_round.shares(device))
    assert unmasking.try_open()
    total = np.sum([np.frombuffer(u.vector, "<u2") for u in uploads.values()], axis=0, dtype="<u2")
    unmasking.unmask(total)
    plain = [np.frombuffer(golden_round.vector(device), "<u2") for device in uploads]
    assert total.tolist() == np.sum(plain, axis=0).tolist()


def test_names_of_vectors_are_unique() -> None:
    for name in ("messages.json", "refused.json"):
        names = [v["name"] for v in committed(name)]
        assert len(names) == len(set(names))


def test_the_vectors_hold_no_key_file() -> None:
    for path in golden.FOLDER.iterdir():
        assert path.suffix not in (".pem", ".key", ".der"), path
