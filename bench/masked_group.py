"""One group of our secure aggregation, played through with the functions that the nodes call, in one process.

Devices, committee and aggregator are the ones of `vedette_core.secagg`; signatures are made and verified. What is left
out is what happens once and is remembered: certificate chains (`vedette_core.crypto.signing.KeyRing` keeps those that
held), and the network.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from vedette_core.crypto.signing import Ed25519Signer
from vedette_core.learning.encoding import EncodedUpdate, Encoding, encode, rotation_seed
from vedette_core.learning.statistics_slots import LocalStatistics
from vedette_core.learning.update_vector import (
    GroupSum,
    RingArray,
    VectorLayout,
    add_vector,
    pack_vector,
    ring_bits,
    unpack_sum,
    vector_from_bytes,
    zero_vector,
)
from vedette_core.secagg.aggregator import Unmasking, UploadEvidence
from vedette_core.secagg.membership import check_members, learn_members
from vedette_core.secagg.participant import mask_update
from vedette_schemas import codec
from vedette_schemas.envelope import pre_authentication_encoding, seal, unseal
from vedette_schemas.round import (
    HEADER_TYPE,
    UPLOAD_TYPE,
    VECTOR_BYTES_MAX,
    Upload,
    header_of,
    transcript_hash,
    upload_id,
)
from vedette_schemas.secagg import CLOSE_TYPE, OPENING_TYPE, SHARES_TYPE, VOTE_TYPE, Shares, Vote

if TYPE_CHECKING or __package__:
    from bench import masked_site as site
else:
    import masked_site as site


@dataclass(slots=True)
class Costs:
    """Seconds and bytes of one side or step each; devices and committee members one entry a piece."""

    clock: site.Clock = time.process_time
    devices_s: list[dict[str, float]] = field(default_factory=list)
    members_s: list[float] = field(default_factory=list)
    server_s: float = 0.0
    server_steps_s: dict[str, float] = field(default_factory=dict)
    plain_s: float = 0.0
    upload_bytes: list[int] = field(default_factory=list)

    @contextmanager
    def server(self, step: str) -> Iterator[None]:
        """Time that is the aggregator's."""
        start = self.clock()
        yield
        spent = self.clock() - start
        self.server_s += spent
        self.server_steps_s[step] = self.server_steps_s.get(step, 0.0) + spent


class MaskedGroup:
    """A group with its committee, ready to upload.

    Args:
        shape: sizes of the plan.
        members: devices of this group.
        d: parameters of the model.
        gid: number of the group.
        groups: how many there are; device ids are such that the beacon puts them into this one.
        rng: makes everything that is random here, so that runs repeat.
    """

    def __init__(
        self, shape: site.GroupShape, members: int, d: int, *, gid: int, groups: int, rng: np.random.Generator
    ) -> None:
        self.shape, self.d, self._rng = shape, d, rng
        self.keys = site.SiteKeys()
        self.plan = site.make_plan(shape, d, groups)
        names = site.ids_of_group(gid, groups, members)
        self.devices = [site.Node.make(name, "contribute", rng.bytes, self.keys) for name in names]
        helpers = sorted(f"helper-{gid}-{i}" for i in range(shape.committee))
        self.helpers = [site.Node.make(name, "unmask", rng.bytes, self.keys) for name in helpers]
        self.aggregator = Ed25519Signer.from_seed(rng.bytes(32))
        self.keys.keys[site.AGGREGATOR] = self.aggregator.public_key
        weights = [1 + i % shape.weight_max for i in range(members)]
        self.roster = site.make_roster(self.plan, gid, self.devices, weights, self.helpers)
        seed = rotation_seed(
            task=site.TASK, round_number=1, attempt=1, model=site.MODEL, plan=self.roster.plan, beacon=site.BEACON
        )
        self.encoding = Encoding(d, site.CLIP_NORM, seed, shape.bits)
        self.layout = VectorLayout(self.encoding.padded, site.TENSORS, True)
        self.ring = ring_bits(shape.members_max, shape.weight_max, shape.bits)
        self.enveloped = self.layout.length * self.ring // 8 <= VECTOR_BYTES_MAX

    def run(
        self, missing: Iterable[str], costs: Costs, *, answering: int | None = None, check_rosters: bool = True
    ) -> GroupSum:
        """A whole round of the group, and the check that its sum is exact.

        Args:
            missing: devices that vanish after the roster: their upload never comes.
            costs: what it takes is added here.
            answering: committee members that answer; all by default.
            check_rosters: whether devices check their roster, too.

        Raises:
            AssertionError: the sum is not that of the survivors' vectors.
        """
        gone = set(missing)
        total, plain = zero_vector(self.layout, self.ring), zero_vector(self.layout, self.ring)
        oracle = np.zeros(self.layout.length, np.int64)
        evidence: dict[str, UploadEvidence] = {}
        weight = 0
        for node, member in zip(self.devices, self.roster.members, strict=True):
            if node.name in gone:
                continue
            vector, encode_s = self._encode(member.weight, costs.clock)
            oracle += vector
            self._add_plain(plain, vector.tobytes(), costs)
            upload = self._upload(node, vector, encode_s, costs, check_rosters=check_rosters)
            weight += member.weight
            with costs.server("intake"):
                self._take(upload, node.name, total, evidence)
        self._open(total, evidence, costs, self.shape.committee if answering is None else answering)
        with costs.server("sum read"):
            result = unpack_sum(total, weight, len(evidence), self.layout, self.encoding, self.ring)
        if not np.array_equal(total, oracle) or not np.array_equal(plain, oracle):
            raise AssertionError("the unmasked sum is not that of the survivors' vectors")
        return result

    # -- device -------------------------------------------------------------------------------------------------------

    def _encode(self, weight: int, clock: site.Clock) -> tuple[RingArray, float]:
        delta = self._rng.standard_normal(self.d, dtype=np.float32) * np.float32(0.5 * site.CLIP_NORM / self.d**0.5)
        start = clock()
        encoded = encode(delta, self.encoding, self._rng)
        vector = pack_vector(encoded.levels, weight, statistics_of(encoded), self.layout, self.encoding, self.ring)
        return vector, clock() - start

    def _upload(
        self, node: site.Node, vector: RingArray, encode_s: float, costs: Costs, *, check_rosters: bool
    ) -> bytes | Upload:
        clock, steps = costs.clock, {"encode": encode_s}
        start = clock()
        site.check_in(
            node.name, "contribute", node.signer, self._rng.bytes
        )  # as costly as the one that the roster shows
        steps["check-in"] = clock() - start
        if check_rosters:
            start = clock()
            check_members(self.roster, self.plan)
            learn_members(self.roster, self.keys, site.NOW)
            steps["roster"] = clock() - start
        start = clock()
        masked = mask_update(vector, self.roster, self.plan, node.name, node.pair, self._rng.bytes)
        steps["mask"] = clock() - start
        start = clock()
        fields: dict[str, Any] = {
            "id": upload_id(site.TASK, 1, 1, node.name),
            "task": site.TASK,
            "round": 1,
            "attempt": 1,
            "gid": self.roster.gid,
            "device": node.name,
            "transcript": transcript_hash(self.roster),
            "vector": masked.vector,
            "boxes": masked.boxes,
            "commitments": masked.commitments,
        }
        unsigned = Upload.model_construct(**fields, header=bytes(64))
        header = node.signer.sign(pre_authentication_encoding(HEADER_TYPE, node.name, codec.pack(header_of(unsigned))))
        upload: bytes | Upload
        if self.enveloped:
            upload = seal(Upload(**fields, header=header), UPLOAD_TYPE, node.name, node.signer)
        else:
            upload = Upload.model_construct(**fields, header=header)
        steps["sign and seal"] = clock() - start
        costs.devices_s.append(steps)
        costs.upload_bytes.append(len(upload) if isinstance(upload, bytes) else _bare_bytes(upload))
        return upload

    def _add_plain(self, total: RingArray, data: bytes, costs: Costs) -> None:
        """The peer without any protection: the same vector, as bytes, added to a sum."""
        start = costs.clock()
        add_vector(total, vector_from_bytes(data, self.layout, self.ring))
        costs.plain_s += costs.clock() - start

    # -- aggregator ---------------------------------------------------------------------------------------------------

    def _take(self, data: bytes | Upload, device: str, total: RingArray, evidence: dict[str, UploadEvidence]) -> None:
        if isinstance(data, bytes):
            upload, _ = unseal(Upload, data, UPLOAD_TYPE, self.keys, sender=device)
        else:
            upload = data
        found = UploadEvidence.of(upload)
        encoded = pre_authentication_encoding(HEADER_TYPE, device, codec.pack(found.header))
        self.keys.verify(device, found.signature, encoded)
        add_vector(total, vector_from_bytes(upload.vector, self.layout, self.ring))
        evidence[device] = found

    def _open(self, total: RingArray, evidence: dict[str, UploadEvidence], costs: Costs, answering: int) -> None:
        with costs.server("close"):
            unmasking = Unmasking(self.roster, self.plan, evidence)
            closes = {
                m: seal(unmasking.close_for(m), CLOSE_TYPE, site.AGGREGATOR, self.aggregator)
                for m in unmasking.committee
            }
        seats = [site.HelperSeat(n, self.roster, self.plan, self.keys, costs.clock) for n in self.helpers[:answering]]
        for seat in seats:
            vote = seat.vote(closes[seat.name])
            with costs.server("votes"):
                unmasking.take_vote(unseal(Vote, vote, VOTE_TYPE, self.keys, sender=seat.name)[0], vote)
        with costs.server("votes"):
            opening = seal(unmasking.opening(), OPENING_TYPE, site.AGGREGATOR, self.aggregator)
        for seat in seats:
            shares = seat.release(opening)
            with costs.server("shares"):
                unmasking.take_shares(unseal(Shares, shares, SHARES_TYPE, self.keys, sender=seat.name)[0])
            costs.members_s.append(seat.seconds)
        with costs.server("secrets"):
            opened = unmasking.try_open()
        if not opened:
            raise AssertionError(f"{answering} of {self.shape.committee} members' shares did not open the group")
        with costs.server("masks"):
            unmasking.unmask(total)


def statistics_of(encoded: EncodedUpdate) -> LocalStatistics:
    """What a device would say of its training."""
    return LocalStatistics(encoded.clipped, encoded.norm, 1.0, 0.5, dict.fromkeys(site.TENSORS, (-1.0, 1.0)))


def _bare_bytes(upload: Upload) -> int:
    """Payload of an upload that is too large for one envelope: its byte strings."""
    return sum(map(len, (upload.vector, upload.transcript, upload.header, *upload.boxes, *upload.commitments)))
