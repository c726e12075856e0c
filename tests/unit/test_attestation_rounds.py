"""Rounds with attestation: nobody checks in before there is a result, or is placed whose result no longer holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import participant_parts
import pytest
from participant_parts import NOW as PARTICIPANT_NOW
from participant_parts import PEERS, SITE, TASK, TOPICS, Gateway, checkins, identity_of, opened, plan_of, release_of
from round_effects import notes, rosters
from round_parts import GATEWAYS, Stage, settings

from vedette_aggregator.round_setup import RoundParts
from vedette_core.crypto.agreement import KeyPair
from vedette_device.helper_machine import HelperMachine
from vedette_device.participant_events import ExamplesAvailable, RoundOpened
from vedette_device.participant_messages import DeviceIdentity
from vedette_schemas.errors import PeerError, RefusedError
from vedette_schemas.round import CheckIn, Phase, plan_bytes

KEPT_OUT = GATEWAYS[0]


class Guarded(Stage):
    """A stage whose aggregator admits whom it is told to."""

    def __init__(self, admit: Callable[[CheckIn, float], None], **more: Any) -> None:
        self._admit = admit
        super().__init__(**more)

    def parts(self) -> RoundParts:
        return replace(super().parts(), admit=self._admit)


def placed(stage: Stage) -> set[str]:
    return {m.device for r in rosters(stage.effects) for m in r.members}


def refusing(fault: Exception) -> Callable[[CheckIn, float], None]:
    def admit(body: CheckIn, now: float) -> None:
        if body.device == KEPT_OUT:
            raise fault

    return admit


@pytest.mark.parametrize(
    "fault", [RefusedError("ran out", rule="passport-expired"), PeerError("ended", reason="expired")]
)
def test_who_no_longer_holds_is_in_no_roster_and_the_others_go_on(fault: Exception) -> None:
    stage = Guarded(refusing(fault), rounds=settings(4, quorum=2))
    stage.to_collect()
    assert placed(stage) == set(GATEWAYS) - {KEPT_OUT}


def test_everybody_is_asked_at_the_time_of_grouping() -> None:
    asked: list[tuple[str, float]] = []
    stage = Guarded(lambda body, now: asked.append((body.device, now)), rounds=settings(4, quorum=2))
    stage.to_collect()
    assert {device for device, _ in asked} == placed(stage) == set(GATEWAYS)
    assert {now for _, now in asked} == {stage.now}


def test_without_enough_that_hold_the_attempt_is_tried_again() -> None:
    def nobody(body: CheckIn, now: float) -> None:
        raise RefusedError("no result", rule="passport-missing")

    stage = Guarded(nobody, rounds=settings(4, quorum=2))
    effects = stage.to_collect()
    assert placed(stage) == set()
    assert "expected a quorum" in notes(effects)


# --- who checks in ---


class Pocket:
    """Where a node keeps its passport."""

    def __init__(self) -> None:
        self.passport = b""

    def __call__(self) -> bytes:
        return self.passport


@pytest.fixture
def pocket(monkeypatch: pytest.MonkeyPatch) -> Pocket:
    made = Pocket()
    monkeypatch.setattr(
        participant_parts, "identity_of", lambda device, schema: replace(identity_of(device, schema), passport=made)
    )
    return made


def test_a_device_checks_in_with_its_passport_and_not_without(pocket: Pocket) -> None:
    gateway = Gateway()
    gateway.to_checked_in()
    assert checkins(gateway.effects) == []
    pocket.passport = b"sealed by the verifier"
    gateway.handle(ExamplesAvailable(128))
    (said,) = checkins(gateway.effects)
    assert said.attestation == b"sealed by the verifier"


def test_a_device_that_attests_nothing_checks_in_as_ever() -> None:
    gateway = Gateway()
    gateway.to_checked_in()
    (said,) = checkins(gateway.effects)
    assert said.attestation == b""


def test_a_helper_checks_in_with_its_passport_and_not_without() -> None:
    pocket, name = Pocket(), "opener-0"
    plan = plan_of(
        groups={"committee": "helpers", "committee_size": 2, "votes_min": 2, "threshold": 2, "corrupt_max": 1}
    )
    node = SITE.node(name)
    identity = DeviceIdentity(
        name, node.certificate, SITE.intermediate, node.signer, "0" * 64, role="unmask", passport=pocket
    )
    machine = HelperMachine(
        topics=TOPICS, task=TASK, identity=identity, new_key=lambda: KeyPair(bytes(32), bytes(32)), peers=PEERS
    )
    digest = plan_bytes(plan)[1]
    effects = machine.handle(RoundOpened(opened(Phase.CHECKIN, plan=digest)), PARTICIPANT_NOW)
    effects += machine.handle(release_of(plan), PARTICIPANT_NOW)
    assert checkins(effects) == []
    pocket.passport = b"sealed by the verifier"
    (said,) = checkins(machine.handle(release_of(plan), PARTICIPANT_NOW))
    assert (said.role, said.attestation) == ("unmask", b"sealed by the verifier")
