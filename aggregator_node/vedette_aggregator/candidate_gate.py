"""A candidate's way past the validators into the record, whatever becomes of it; called while a release is made."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from vedette_aggregator.aggregation import Candidate
from vedette_aggregator.holdouts import Holdouts
from vedette_aggregator.lineage import ACCEPTED, FAILED, REJECTED, RELEASED, Descent, Lineage
from vedette_aggregator.validation import GateVerdict, raise_if_rejected, validate
from vedette_aggregator.validation_settings import ValidationSection
from vedette_core.learning.layout import Float32
from vedette_core.learning.network import Network
from vedette_schemas.model import Variant

log = logging.getLogger("vedette.validation")

RECENT: Final = 16
"""How many of the newest candidates are searched for one that a crash left without its version."""

Told = Callable[[str, GateVerdict], None]
"""Takes a task and the gate's verdict on a candidate of it; called in a worker thread."""


@dataclass(slots=True)
class CandidateGate:
    """The gate of one task.

    Attributes:
        task: the task.
        network: its network.
        settings: limits.
        holdouts: windows to measure on.
        lineage: where candidates are written down; None writes nothing.
        spent: ε of the most exposed device so far, or None where nothing is promised.
        told: hears of each verdict.
        told_refused: hears of each candidate that passed here and that no independent validator signed.
        judged: digest of the candidate that was judged last, and the verdict.
    """

    task: str
    network: Network
    settings: ValidationSection
    holdouts: Holdouts
    lineage: Lineage | None = None
    spent: Callable[[], float | None] = lambda: None
    told: Told = lambda task, verdict: None
    told_refused: Callable[[str], None] = lambda task: None
    judged: tuple[str, GateVerdict | None] | None = None

    def check(
        self, candidate: Candidate, parent: Float32, artifacts: Mapping[Variant, bytes], now: float
    ) -> GateVerdict | None:
        """Validate a candidate and write it down; durable before this returns.

        Args:
            candidate: what a round made.
            parent: ``(size,)`` float32 weights of the release that it started from.
            artifacts: its built files by variant.
            now: epoch seconds.

        Returns:
            The verdict; None where nothing is validated.

        Raises:
            RefusedError: it is rejected.
            TransientError: the disk is full.
        """
        digest = candidate.digest().hex()
        if self.judged is not None and self.judged[0] == digest:
            # It waits for room on the disk, or for a validator's signature, and comes by here every few seconds.
            return self._enforced(self.judged[1])
        verdict = None
        weights = artifacts[Variant.WEIGHTS]
        descent = replace(self._descent(candidate, now), weights_sha256=hashlib.sha256(weights).hexdigest())
        if self.settings.mode != "off":
            int8 = artifacts.get(Variant.INT8)
            verdict = validate(self.network, candidate.weights, parent, int8, self.holdouts, self.settings)
            rejected = self.settings.mode == "enforce" and not verdict.accepted
            descent = replace(
                descent,
                figures=dict(verdict.figures),
                verdicts=tuple(verdict.to_plain()),
                outcome=REJECTED if rejected else ACCEPTED,
                reason=verdict.against[:1000] if rejected else "",
            )
        self._keep(descent, weights)
        if verdict is not None:
            self.told(self.task, verdict)
        if verdict is not None and not verdict.accepted and self.settings.mode == "watch":
            log.warning("%s round %d: would be rejected: %s", self.task, candidate.round, verdict.against)
        self.judged = (digest, verdict)
        return self._enforced(verdict)

    def _enforced(self, verdict: GateVerdict | None) -> GateVerdict | None:
        if verdict is not None and self.settings.mode == "enforce":
            raise_if_rejected(verdict)
        return verdict

    def failed(self, candidate: Candidate, fault: Exception, now: float) -> None:
        """A candidate could not be built, or its parent was left while it waited: then its verdicts stay on record."""
        found = self._found(candidate) or self._descent(candidate, now)
        self._keep(replace(found, outcome=FAILED, reason=str(fault)[:1000]), b"")

    def refused(self, candidate: Candidate, reason: str) -> None:
        """It passed here, and an independent validator will not sign it."""
        found = self._found(candidate)
        if found is not None:
            self._keep(replace(found, outcome=REJECTED, reason=reason[:1000]), b"")
        self.told_refused(self.task)

    def released(self, candidate: Candidate, version: int, files: Mapping[Variant, str]) -> None:
        """It is a release now; `files` are hex digests by variant."""
        if self.lineage is not None:
            named = {variant.value: sha256 for variant, sha256 in files.items()}
            self.lineage.release(self.task, candidate.digest().hex(), version, named)

    def unknown(self, versions: Iterable[int]) -> tuple[int, ...]:
        """Of these releases, those that the record does not know; none where nothing is written down."""
        if self.lineage is None:
            return ()
        known = self.lineage.versions(self.task)
        return tuple(version for version in versions if version not in known)

    def initial(
        self, weights: bytes, version: int, round_number: int, files: Mapping[Variant, str], parent: str, now: float
    ) -> None:
        """Write a release down that the record does not know; see `unknown`.

        It is the first of all, one from before there was a record, or one that a crash came behind: then its candidate
        is on record already.
        """
        if self.lineage is None:
            return
        digest = hashlib.sha256(weights).hexdigest()
        named = {variant.value: sha256 for variant, sha256 in files.items()}
        for found in self.lineage.all(self.task, limit=RECENT):
            if found.version is None and found.weights_sha256 == digest and found.outcome == ACCEPTED:
                self.lineage.release(self.task, found.digest, version, named)
                return
        self._keep(
            Descent(
                task=self.task,
                digest=digest,
                round=round_number,
                attempt=0,
                made_s=now,
                parent_version=None,
                parent_sha256=parent,
                weights_sha256=digest,
                outcome=RELEASED,
                version=version,
                files=named,
            ),
            weights,
        )

    def _descent(self, candidate: Candidate, now: float) -> Descent:
        return Descent(
            task=self.task,
            digest=candidate.digest().hex(),
            round=candidate.round,
            attempt=candidate.attempt,
            made_s=now,
            parent_version=candidate.parent_version,
            parent_sha256=candidate.parent_sha256,
            plan_sha256=candidate.plan,
            contributors=len(candidate.contributors),
            epsilon=self.spent(),
            metrics=dict(candidate.metrics),
        )

    def _found(self, candidate: Candidate) -> Descent | None:
        return None if self.lineage is None else self.lineage.of_digest(self.task, candidate.digest().hex())

    def _keep(self, descent: Descent, weights: bytes) -> None:
        if self.lineage is not None:
            self.lineage.keep(descent, weights)
