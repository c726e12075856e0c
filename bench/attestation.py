"""What a verifier's work costs: one piece of evidence of each tier, from the bytes that came to the sealed answer.

Measured is all of it on one core: the certificate's chain (which the ring remembers after the first time, and which is
measured apart), the envelope, the claims, what stands behind them, the policy, and the sealed passport in its sealed
answer. And what a check-in costs: a passport held to the policy.

Run: ``python bench/attestation.py [--json]``
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any, Final

from vedette_aggregator.attestation_machine import ChallengeAsked, EvidenceReceived, VerifierMachine
from vedette_aggregator.claimed_identity import learn, unseal_claimed
from vedette_broker import ca
from vedette_core.attestation.boot_chain import boot
from vedette_core.attestation.passport import PassportCheck
from vedette_core.crypto.certificates import CertificateRole
from vedette_core.machine import Publish
from vedette_core.runtime.identity import NodeIdentity, key_ring, load_node
from vedette_schemas import codec
from vedette_schemas.attestation import (
    CHALLENGE_TYPE,
    EVIDENCE_TYPE,
    AttestationAnswer,
    AttestationPolicy,
    Challenge,
    Claims,
    Enrolment,
    Evidence,
    Reference,
    binding,
)
from vedette_schemas.envelope import Envelope, seal, unseal
from vedette_schemas.topics import Topics

if TYPE_CHECKING or __package__:
    from bench.fuzz_attestation import MEASURED, policy, signer
    from bench.soft_tpm import REGISTERS, attestation_key, quote, signature
else:
    from fuzz_attestation import MEASURED, policy, signer
    from soft_tpm import REGISTERS, attestation_key, quote, signature

SITE: Final = "plant-1"
DEVICE: Final = "gw-01"
REPETITIONS: Final = 300
LAYERS: Final = (("loader", b"l" * 32), ("kernel", b"k" * 32), ("image", b"i" * 32))
TARGET_MS: Final = 5.0


class Scene:
    """A device and a verifier of one site, with real certificates."""

    def __init__(self, folder: Path) -> None:
        self.now = time.time()
        ca.init(folder / "ca", SITE, now=self.now)
        for holder, role in ((DEVICE, CertificateRole.DEVICE), ("aggregator", CertificateRole.AGGREGATOR)):
            ca.issue(folder / "ca", holder, role, now=self.now)
        self.node = self._load(folder, DEVICE)
        self.aggregator = self._load(folder, "aggregator")
        self.ring = key_ring(self.aggregator.bundle, SITE)
        self.boot = boot(bytes(32), LAYERS)
        self.policy = _with_layers(policy())
        self.machine = VerifierMachine(
            Topics(SITE),
            "aggregator",
            self.aggregator.signer,
            verifier=signer("verifier"),
            policy=self.policy,
            entropy=os.urandom,
        )

    def _load(self, folder: Path, holder: str) -> NodeIdentity:
        return load_node(folder / "ca" / "bundles" / holder, self.now)

    def enrolment(self, tier: int) -> Enrolment | None:
        """The keys of the device's tier."""
        if tier == 0:
            return None
        keys: dict[str, Any] = {"boot_root": self.boot.root} if tier == 1 else {"ak_public": attestation_key()}
        return Enrolment(device=DEVICE, tier=tier, activated=True, since_s=self.now, **keys)

    def evidence(self, tier: int) -> bytes:
        """A fresh challenge, answered and sealed."""
        (asked,) = (e for e in self.machine.handle(ChallengeAsked(DEVICE), self.now) if isinstance(e, Publish))
        self.ring.learn(self.aggregator.certificate, self.now, intermediate=self.aggregator.intermediate)
        challenge, _ = unseal(Challenge, asked.payload, CHALLENGE_TYPE, self.ring)
        claims = codec.pack(
            Claims(
                eat_nonce=challenge.nonce,
                ueid=DEVICE,
                cnf=self.node.signer.public_key.public_bytes_raw(),
                swname="vedette",
                swversion="0.1.0",
                dbgstat=1,
                bootcount=1,
                measurements=MEASURED,
            )
        )
        bound, proof = binding(DEVICE, claims), dict[str, Any]()
        if tier == 1:
            proof = {"chain": self.boot.layers, "boot_signature": self.boot.key.sign(bound)}
        elif tier == 2:
            attested = quote(bound)
            proof = {"quote": attested, "quote_signature": signature(attested), "pcrs": REGISTERS}
        body = Evidence(
            tier=tier,
            claims=claims,
            certificate=self.node.certificate,
            intermediate=self.node.intermediate,
            **proof,
        )
        return seal(body, EVIDENCE_TYPE, DEVICE, self.node.signer)

    def verify(self, sealed: bytes, enrolment: Enrolment | None) -> bytes:
        """Everything that the aggregator does with evidence; returns the passport."""
        body, key = unseal_claimed(Evidence, sealed, EVIDENCE_TYPE, self.ring, self.now, device=DEVICE)
        effects = self.machine.handle(EvidenceReceived(DEVICE, key, body, enrolment), self.now)
        (said,) = (e for e in effects if isinstance(e, Publish))
        answer = codec.unpack(AttestationAnswer, codec.unpack(Envelope, said.payload).body)
        if not answer.passport:
            raise AssertionError(f"refused: {answer.rule}: {answer.detail}")
        return answer.passport


def _with_layers(made: AttestationPolicy) -> AttestationPolicy:
    layers = (Reference(component=f"boot/{name}", digests=(digest,)) for name, digest in LAYERS)
    references = tuple(sorted((*made.references, *layers), key=lambda r: r.component))
    return made.model_copy(update={"references": references})


def measure(repetitions: int) -> dict[str, Any]:
    """All figures, milliseconds of one core."""
    with tempfile.TemporaryDirectory() as name:
        scene = Scene(Path(name))
        tiers = {}
        for tier in (0, 1, 2):
            known = scene.enrolment(tier)
            times = []
            for _ in range(repetitions):
                sealed = scene.evidence(tier)
                times.append(_took(partial(scene.verify, sealed, known)))
            passport = scene.verify(scene.evidence(tier), known)
            tiers[f"tier_{tier}"] = {"bytes": len(sealed), **_figures(times)}
        check, key = PassportCheck(scene.policy), scene.node.signer.public_key.public_bytes_raw()
        shown = [_took(lambda: check.check(passport, DEVICE, key, "contribute", scene.now)) for _ in range(repetitions)]
        chains = []
        for _ in range(min(repetitions, 100)):
            ring = key_ring(scene.aggregator.bundle, SITE)  # remembers no chain yet
            node = scene.node
            chains.append(_took(partial(learn, ring, DEVICE, node.certificate, node.intermediate, scene.now)))
    slowest = max(figures["ms_p99"] for figures in tiers.values())
    return {
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "measurements": len(MEASURED),
        "registers": len(REGISTERS),
        **tiers,
        "passport": {"bytes": len(passport), **_figures(shown)},
        "certificate_chain_first_time": _figures(chains),
        "target_ms": TARGET_MS,
        "within_target": slowest <= TARGET_MS,
    }


def _took(call: Callable[[], object]) -> float:
    began = time.thread_time()
    call()
    return (time.thread_time() - began) * 1e3


def _figures(times: list[float]) -> dict[str, float]:
    return {"ms_p50": round(median(times), 3), "ms_p99": round(quantiles(times, n=100)[98], 3)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--repetitions", type=int, default=REPETITIONS, help="of each figure, at least 2")
    arguments = parser.parse_args()
    figures = measure(arguments.repetitions)
    if arguments.json:
        print(json.dumps(figures, indent=2))
        return
    for name, value in figures.items():
        print(f"{name:30} {value}")


if __name__ == "__main__":
    main()
