"""A process that goes on with another certificate of its own: when, when not, and with which keys."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from vedette_broker import ca
from vedette_core.crypto.certificates import CertificateRole
from vedette_core.runtime.identity import client_context, load_node
from vedette_core.runtime.metrics import AGGREGATOR_METRICS, Metrics
from vedette_core.runtime.mqtt import LinkConfig, MqttLink
from vedette_core.runtime.own_certificate import OwnCertificate


class Link:
    """Remembers that it was asked to connect anew, and lets the certificate be loaded as the network thread would."""

    def __init__(self, config: LinkConfig) -> None:
        self.config, self.reconnects = config, 0

    def reconnect(self, before: Callable[[], None]) -> None:
        self.reconnects += 1
        before()


class Process:
    """A process that was started from a bundle."""

    def __init__(self, base: Path) -> None:
        self.authority, self.started = base / "ca", time.time()
        ca.init(self.authority, "lab", now=self.started)
        bundle = ca.issue(self.authority, "aggregator", CertificateRole.AGGREGATOR, now=self.started - 4 * 86_400)
        node = load_node(bundle, self.started)
        self.metrics = Metrics(AGGREGATOR_METRICS)
        self.link = Link(LinkConfig("127.0.0.1", 1, "aggregator", client_context(node.bundle)))
        self.own = OwnCertificate(node, cast("MqttLink", self.link), self.metrics)

    @property
    def expiry(self) -> float | None:
        return self.metrics.registry.get_sample_value("vedette_certificate_expiry_timestamp_seconds")


@pytest.fixture
def process(tmp_path: Path) -> Process:
    return Process(tmp_path)


def test_a_renewed_bundle_is_taken_up_with_the_key_that_others_know(process: Process) -> None:
    before = process.own.node
    assert process.own.look() is None
    assert process.expiry == before.tls_not_after
    ca.renew(process.authority, "aggregator", now=process.started)
    fresh = process.own.look()
    assert fresh is not None
    assert fresh.signer.public_key == before.signer.public_key
    assert process.link.reconnects == 1
    assert process.expiry == fresh.tls_not_after > before.tls_not_after
    assert process.own.look() is None, "once"


def test_another_signing_key_waits_for_a_restart(process: Process, caplog: pytest.LogCaptureFixture) -> None:
    ca.issue(process.authority, "aggregator", CertificateRole.AGGREGATOR, now=process.started, replace=True)
    assert process.own.look() is None
    assert process.link.reconnects == 1, "TLS goes on with the new certificate"
    assert "restart" in caplog.text
    assert process.own.look() is None
    assert process.link.reconnects == 1


@pytest.mark.parametrize("damage", ["missing", "half", "another", "nonsense"])
def test_a_bundle_that_does_not_fit_together_is_not_taken_up(process: Process, damage: str) -> None:
    bundle, before = process.own.node.bundle, process.own.node
    other = ca.issue(process.authority, "gw-01", CertificateRole.DEVICE, now=process.started)
    acts: dict[str, Callable[[], Any]] = {
        "missing": bundle.tls_certificate.unlink,
        "half": lambda: shutil.copy(other / "tls.crt", bundle.tls_certificate),
        "another": lambda: shutil.copytree(other, bundle.directory, dirs_exist_ok=True),
        "nonsense": lambda: bundle.tls_certificate.write_bytes(b"nonsense"),
    }
    acts[damage]()
    assert process.own.look() is None
    assert process.own.node is before
    assert process.link.reconnects == 0
