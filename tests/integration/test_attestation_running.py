"""Attestation in a running site: a node with a TPM, policies that are replaced, what the aggregator says of itself."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from software_tpm import SoftwareTpm, missing

from vedette import toml_writer
from vedette.attestation_policy import PolicyWishes, write_policy
from vedette.demo.diary import DiaryReader
from vedette.demo.fleet import Fleet, free_port
from vedette.demo.stage import StagePlan, make_site, start_swarm
from vedette.site import Site
from vedette_aggregator.attestation_keys import load_public, load_signer
from vedette_aggregator.enrolments import Drawn, open_enrolments
from vedette_aggregator.settings import AggregatorSettings
from vedette_core.attestation.policy import read_policy
from vedette_core.crypto.certificates import CertificateRole
from vedette_core.runtime.config import load
from vedette_core.runtime.durable import write_durable
from vedette_core.runtime.identity import client_context, key_ring, load_node
from vedette_core.runtime.mqtt import LinkConfig, MqttLink, MqttMessage
from vedette_device.tpm import Tpm, fingerprint
from vedette_schemas.attestation import POLICY_ID, POLICY_TYPE, STATEMENT_TYPE, AggregatorStatement, EnrolmentRequest
from vedette_schemas.envelope import seal, unseal
from vedette_schemas.topics import Topics

pytest.importorskip("amqtt", reason="needs the embedded broker")
pytestmark = pytest.mark.skipif(bool(missing()), reason=f"needs {', '.join(missing())}")

NODE, HANDLE, PCRS = "light-01", "0x81010110", (0, 7)
PATIENCE_S = 120.0


@pytest.fixture
def tpm() -> Iterator[SoftwareTpm]:
    made = SoftwareTpm()
    try:
        made.start()
        yield made
    finally:
        made.close()


def renew_policy(site: Site, tpm: SoftwareTpm, **more: Any) -> None:
    """Sign the next policy: what is installed here, and the TPM's registers as they are now."""
    files = site.directory / "attestation"
    registers = Tpm(tpm.tcti, HANDLE, PCRS).registers()
    wishes = PolicyWishes(
        site="demo-site",
        verifiers=(files / "verifier.key.pub",),
        earlier=files / "attestation.policy",
        tier_contribute=2,
        pcr=tuple(f"{index}={value.hex()}" for index, value in registers.items()),
        **more,
    )
    write_policy(wishes, files / "policy.key", files / "attestation.policy")


def enrol(site: Site, tpm: SoftwareTpm) -> None:
    node = load_node(site.directory / "ca" / "bundles" / NODE, time.time())
    device_tpm = Tpm(tpm.tcti, HANDLE, PCRS)
    ek, ak = device_tpm.make_keys()
    request = EnrolmentRequest(
        device=NODE, tier=2, certificate=node.certificate, intermediate=node.intermediate, ek_public=ek, ak_public=ak
    )
    with open_enrolments(load(AggregatorSettings, site.aggregator_config)) as known:
        drawn = Drawn(os.urandom(32), ec.generate_private_key(ec.SECP256R1()))
        credential = known.begin(request, fingerprint(ek), drawn, time.time())
        known.finish(NODE, device_tpm.open_credential(credential))


def until(fleet: Fleet, what: str, text: str, *, log: str = "aggregator.log") -> None:
    """Wait until what a member wrote says something."""
    path, limit = fleet.logs / log, time.monotonic() + PATIENCE_S
    while text not in path.read_text(errors="replace"):
        fleet.check()
        assert time.monotonic() < limit, f"{what}: {path.read_text(errors='replace')[-2000:]}"
        time.sleep(0.1)


async def retained(site: Site, port: int) -> bytes:
    """What lies on the topic of the aggregator's own measurement."""
    node = load_node(site.analytics_bundle, time.time())
    found: asyncio.Queue[bytes] = asyncio.Queue()

    async def take(message: MqttMessage) -> None:
        found.put_nowait(message.payload)

    link = MqttLink(LinkConfig("127.0.0.1", port, node.id, client_context(node.bundle)), take)
    await link.subscribe(Topics("demo-site").attestation)
    await link.start()
    try:
        return await asyncio.wait_for(found.get(), PATIENCE_S)
    finally:
        await link.stop()


def test_a_node_with_a_tpm_from_enrolment_to_refusal(tmp_path: Path, tpm: SoftwareTpm) -> None:
    port = free_port()
    task = {"round": {"quorum": 5, "checkin_s": 1.0}}
    site, config = make_site(tmp_path, port, StagePlan((NODE, "light-02"), task, attested=True))
    enrol(site, tpm)
    renew_policy(site, tpm)
    tables = {
        "site": "demo-site",
        "state_dir": site.directory / "state",
        "trust_root": site.directory / "root.json",
        "broker": {"host": "127.0.0.1", "port": port},
        "rows": {"source": "synthetic", "count": 128},
        "attestation": {"enabled": True, "tier": 2, "tcti": tpm.tcti, "ak_handle": HANDLE, "pcrs": list(PCRS)},
        "nodes": [{"device": NODE, "bundle": site.directory / "ca" / "bundles" / NODE}],
    }
    config.write_text(toml_writer.dumps(tables))
    with Fleet(tmp_path / "logs") as fleet:
        fleet.start("broker", "broker", "run", "-c", str(site.broker_config))
        fleet.wait_for_port(port)
        fleet.start("aggregator", "aggregator", "run", "-c", str(site.aggregator_config))
        lines = tmp_path / "logs" / "swarm.jsonl"
        start_swarm(fleet, config, lines)
        until(fleet, "attested", f"{NODE}: attested, tier 2, boot 1")

        statement = asyncio.run(retained(site, port))
        aggregator = load_node(site.directory / "ca" / "bundles" / "aggregator", time.time())
        ring = key_ring(aggregator.bundle, "demo-site")
        ring.learn(aggregator.certificate, time.time(), role=CertificateRole.AGGREGATOR)
        said, _ = unseal(AggregatorStatement, statement, STATEMENT_TYPE, ring, sender="aggregator")
        assert (said.tier, said.policy) == (0, 2)

        renew_policy(site, tpm)
        until(fleet, "policy", "attestation policy 3 is in force")
        tpm.extend(7, bytes(range(32)))
        ask_anew(site)
        until(fleet, "refused", f"attestation of {NODE}: wrong-pcr: found pcr/7")
        fleet.check()
        until(fleet, "the node's own word", '"what": "attested"', log=lines.name)
        assert NODE in DiaryReader(lines).read().attested


def ask_anew(site: Site) -> None:
    """The next policy with the same registers as before: another version alone asks everybody anew."""
    files = site.directory / "attestation"
    path = files / "attestation.policy"
    policy = read_policy(path.read_bytes(), load_public(files / "policy.key.pub"), "demo-site")
    newer = policy.model_copy(update={"version": policy.version + 1})
    write_durable(path, seal(newer, POLICY_TYPE, POLICY_ID, load_signer(files / "policy.key")), 0o644)
