"""The rest of a participant's group: it uploads, votes and releases its shares, and an aggregator adds it all up."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from participant_parts import (
    ME,
    MODEL,
    NOW,
    OTHERS,
    PEERS,
    SITE,
    TASK,
    TOPICS,
    body_of,
    contribution,
    identity_of,
    key_of,
    result,
    said,
)

from vedette_core.learning.local_training import TrainingResult
from vedette_core.learning.round_vector import make_vector, ring_of
from vedette_core.secagg.aggregator import Unmasking, UploadEvidence
from vedette_core.secagg.committee import CloseReceived, CommitteeMember, OpeningReceived, Seated
from vedette_device.participant_events import Train
from vedette_device.participant_messages import ParticipantMessages
from vedette_schemas import codec
from vedette_schemas.envelope import Envelope
from vedette_schemas.round import Plan, Roster, Upload
from vedette_schemas.secagg import VOTE_TYPE, Close, Opening, Shares, Vote


class Rest:
    """The rest of a group, which uploaded too and sits in the committee, and an honest aggregator's view of it.

    Args:
        roster: the group's.
        plan: the roster's.
        own: the upload of this device; None if it did not upload.
        absent: members that did not upload.
        made_of: what a device's training makes, by its number.
    """

    def __init__(
        self,
        roster: Roster,
        plan: Plan,
        own: Upload | None,
        absent: Sequence[str] = (),
        made_of: Callable[[int], TrainingResult] = result,
    ) -> None:
        self.roster, self.plan = roster, plan
        self.uploads = {} if own is None else {ME: own}
        self.members: dict[str, CommitteeMember] = {}
        for device in OTHERS:
            if device in absent:
                continue
            pair = key_of(device)
            train = Train(TASK, roster.round, roster.attempt, 0, MODEL, plan, roster, pair)
            say = ParticipantMessages(TOPICS, TASK, identity_of(device))
            seed = int(device[-2:])
            _, sealed = say.upload(roster, contribution(train, seed=seed, device=device, made_of=made_of))
            self.uploads[device] = body_of(sealed, Upload)
            node = CommitteeMember(
                topics=TOPICS, task=TASK, member=device, signer=SITE.node(device).signer, peers=PEERS
            )
            node.handle(Seated(roster, plan, pair), NOW)
            self.members[device] = node
        self.unmasking = Unmasking(roster, plan, {d: UploadEvidence.of(u) for d, u in self.uploads.items()})

    def vote(self) -> None:
        """Everybody else votes."""
        for device, node in self.members.items():
            for sealed in said(node.handle(CloseReceived(self.unmasking.close_for(device)), NOW)):
                self.take(sealed)

    def release(self) -> None:
        """Everybody else releases its shares."""
        for node in self.members.values():
            for sealed in said(node.handle(OpeningReceived(self.unmasking.opening()), NOW)):
                self.take(sealed)

    def take(self, sealed: bytes) -> None:
        """The aggregator takes a vote or shares."""
        if codec.unpack(Envelope, sealed).type == VOTE_TYPE:
            self.unmasking.take_vote(body_of(sealed, Vote), sealed)
        else:
            self.unmasking.take_shares(body_of(sealed, Shares))

    def close(self) -> Close:
        """What this device is asked to vote for."""
        return self.unmasking.close_for(ME)

    def opening(self) -> Opening:
        """What this device is shown."""
        return self.unmasking.opening()

    def sum(self) -> np.ndarray:
        """What the aggregator finds behind the masks."""
        kind = np.dtype(f"<u{ring_of(self.plan) // 8}")
        vectors = [np.frombuffer(u.vector, kind) for u in self.uploads.values()]
        total = np.sum(vectors, axis=0, dtype=kind)
        self.unmasking.unmask(total)
        return total

    def plain_sum(self, seed: int = 1) -> np.ndarray:
        """The same, computed of what nobody but the devices knows."""
        kind = np.dtype(f"<u{ring_of(self.plan) // 8}")
        total = 0
        for device in self.uploads:
            number = seed if device == ME else int(device[-2:])
            made = result(number)
            vector, _ = make_vector(
                self.plan,
                self.roster,
                device,
                made.delta,
                loss_before=made.loss_before,
                loss_after=made.loss_after,
                ranges={},
                rng=np.random.default_rng(number),
            )
            total = total + vector.astype(np.uint64)
        return np.asarray(total % 2 ** ring_of(self.plan)).astype(kind)
