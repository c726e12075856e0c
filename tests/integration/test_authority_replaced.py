"""The online authority is replaced while rounds run: real broker, aggregator, authority and nodes over MQTT."""

from __future__ import annotations

import asyncio
import fcntl
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from vedette.demo.stage import ScenarioOptions, Stage, StagePlan, names, staged
from vedette.site import Site
from vedette_broker import ca, ca_authority, ca_revocation, ca_tokens
from vedette_broker.ca_store import load_chain
from vedette_core.crypto.certificate_chain import load_certificates
from vedette_core.crypto.revocation import RevocationReason
from vedette_core.runtime.enrolment import enrol_over_mqtt
from vedette_core.runtime.identity import Bundle, client_context
from vedette_core.runtime.mqtt import AuthenticationError, LinkConfig, MqttLink, MqttMessage
from vedette_core.runtime.sections import BrokerSection

LIMIT_S = 280.0
DAY_S = 86_400.0
DEVICES = names(8)
EARLY, LATE, GONE = DEVICES[:4], DEVICES[4:7], DEVICES[7]
"""Those past half of their certificates' life, who renew themselves; those who do not yet; and one that is revoked."""


def arrange(site: Site) -> None:
    """The broker's bundle lies apart, as on another machine: nobody carries anything to it by itself."""
    bundles = site.directory / "ca" / "bundles"
    shutil.copytree(bundles / "broker", site.directory / "broker-bundle")
    text = site.broker_config.read_text(encoding="utf-8")
    assert str(bundles / "broker") in text
    site.broker_config.write_text(text.replace(str(bundles / "broker"), str(site.directory / "broker-bundle")))


ACTS = StagePlan(
    devices=DEVICES,
    task={
        "training": {"local_epochs": 1, "batch_size": 32, "learning_rate": 0.003, "examples_min": 32},
        "round": {
            "checkin_s": 2.0,
            "collect_s": 15.0,
            "unmask_s": 15.0,
            "interval_s": 0.5,
            "quorum": 5,
            "group_size": 8,
            "groups": 1,
            "survivors_min": 5,
            "epoch_rounds": 1,
            "clip_norm": 3.0,
        },
    },
    rows={"source": "synthetic", "count": 32},
    arrange=arrange,
)


async def ignore(_: MqttMessage) -> None: ...


def issuer_of(bundle: Path) -> int:
    return load_certificates(Bundle(bundle).tls_certificate.read_bytes())[1].serial_number


async def comes_in(stage: Stage, bundle: Path, who: str) -> bool:
    """Whether the broker lets somebody in, under the name that its certificate has."""
    tls = client_context(Bundle(bundle))
    async with MqttLink(LinkConfig("127.0.0.1", stage.port, who, tls), ignore) as link:
        try:
            await link.wait_connected(30)
        except AuthenticationError:
            return False
        return True


async def round_of(stage: Stage, *devices: str) -> None:
    """Wait until a round that began from now on was released, with these devices in it."""
    # By the log: the observer, too, is cut off in the end. The round that is under way may have its roster.
    before = released(stage) + 1
    await stage.until("round", lambda: before < min(stage.diary.last_round_of(d) for d in devices) <= released(stage))


def released(stage: Stage) -> int:
    """The newest round that was released."""
    return max(map(int, re.findall(r"round (\d+)\.\d+: released", stage.aggregator_log)), default=0)


def hold_up(stage: Stage, authority: Path) -> None:
    """Hold the authority's process up at a moment at which it has no lock of its files: everybody waits for that."""
    with (authority / ".lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stage.fleet.signal("authority", signal.SIGSTOP)


async def play(folder: Path) -> None:
    options = ScenarioOptions(data=folder, keep=folder, timeout_s=LIMIT_S)
    async with staged(options, lambda _: ACTS) as stage:
        directory = stage.site.directory
        authority, bundles = directory / "ca", directory / "ca" / "bundles"
        broker_log = folder / "logs" / "broker.log"

        def authority_log() -> str:
            return (folder / "logs" / "authority.log").read_text(errors="replace")

        await stage.until("round", lambda: stage.completed >= 1)
        old = load_chain(authority)[1][0]
        shutil.copytree(bundles / LATE[0], folder / "copy")

        stage.fleet.start("authority", "ca", "serve", "-c", str(stage.site.authority_config))
        await stage.until("authority", lambda: "revocation list" in authority_log())
        # It shall not answer before it has been replaced.
        hold_up(stage, authority)
        for device in EARLY:
            ca.renew(authority, device, now=time.time() - 4 * DAY_S)
        made = ca_authority.renew(authority, now=time.time())
        stage.fleet.signal("authority", signal.SIGCONT)
        ca.renew(authority, "aggregator", now=time.time())
        new = int(made.serial, 16)
        for device in EARLY:
            await stage.until("renewal", lambda device=device: issuer_of(bundles / device) == new)  # type: ignore[misc]
        assert {issuer_of(bundles / device) for device in (*LATE, GONE)} == {old.serial_number}
        await round_of(stage, *EARLY, *LATE)

        token = ca_tokens.make_token(authority, now=time.time(), holder="gw-new")
        section = BrokerSection(host="127.0.0.1", port=stage.port)
        fresh = await enrol_over_mqtt(folder / "new", token.token, token.ticket.read_bytes(), section, timeout_s=60)
        assert fresh.id == "gw-new"
        assert issuer_of(folder / "new") == new
        assert await comes_in(stage, folder / "new", "gw-new")

        ca_revocation.revoke(authority, GONE, RevocationReason.KEY_COMPROMISE, now=time.time())
        await stage.until("cut", lambda: f"session refused: {GONE}:" in broker_log.read_text(errors="replace"))
        assert not await comes_in(stage, bundles / GONE, GONE)
        await stage.until("list", lambda: f"revoked: {GONE}" in stage.aggregator_log)

        for device in (*LATE, "broker"):
            ca.renew(authority, device, now=time.time())
        for name in ("tls.crt", "tls.key"):
            shutil.copy(bundles / "broker" / name, directory / "broker-bundle" / name)
        await stage.until("aggregator", lambda: "certificate renewed" in stage.aggregator_log)
        await stage.until("authority", lambda: "renewed the authority's own" in authority_log())
        await round_of(stage, *EARLY, *LATE)

        ca_authority.retire(authority, now=time.time())
        listed = ca_revocation.newest_list(authority)
        assert old.serial_number in listed.entries
        await stage.until("list", lambda: f"list {listed.number} with" in broker_log.read_text(errors="replace"))
        assert not await comes_in(stage, folder / "copy", LATE[0]), "a certificate in force, of the earlier authority"
        await round_of(stage, *EARLY, *LATE)
        assert old.serial_number not in {
            c.serial_number for c in load_certificates(Bundle(bundles / LATE[0]).ca.read_bytes())
        }


@pytest.mark.timeout(330)
def test_a_site_survives_its_issuing_authority(tmp_path: Path) -> None:
    asyncio.run(play(tmp_path))
