"""The figures of attestation: every tier is really verified, and what is not sound is not measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from vedette_schemas import codec
from vedette_schemas.attestation import Passport
from vedette_schemas.envelope import Envelope

BENCH = Path(__file__).parents[2] / "bench"
sys.path.insert(0, str(BENCH))
try:
    import attestation
finally:
    sys.path.remove(str(BENCH))


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    return attestation.measure(3)


def test_every_figure_is_there_and_can_be_written(figures: dict[str, Any]) -> None:
    assert json.loads(json.dumps(figures)) == figures
    for name in ("tier_0", "tier_1", "tier_2", "passport", "certificate_chain_first_time"):
        assert figures[name]["ms_p99"] >= figures[name]["ms_p50"] > 0
    assert figures["tier_2"]["bytes"] > figures["tier_0"]["bytes"]


@pytest.mark.parametrize("tier", [0, 1, 2])
def test_what_is_measured_ends_in_a_passport_of_its_tier(tier: int, tmp_path: Path) -> None:
    scene = attestation.Scene(tmp_path)
    sealed = scene.verify(scene.evidence(tier), scene.enrolment(tier))
    assert codec.unpack(Passport, codec.unpack(Envelope, sealed).body).tier == tier


def test_evidence_that_is_refused_is_no_figure(tmp_path: Path) -> None:
    scene = attestation.Scene(tmp_path)
    evidence = scene.evidence(2)
    with pytest.raises(AssertionError, match="not-enrolled"):
        scene.verify(evidence, None)
