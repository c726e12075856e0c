"""The rendered NATS configuration says what the grammar says."""

from __future__ import annotations

import json
import re
import ssl
import time
from pathlib import Path
from typing import Any

import pytest

from vedette.broker_files import nats_files, write
from vedette_broker import ca
from vedette_broker.limits import PACKET_BYTES_MAX
from vedette_broker.nats import CONF, USERS, ClusterNode, NatsConfig, render, render_users, subjects
from vedette_broker.nats_routes import make_route_bundles
from vedette_core.crypto.certificates import CertificateRole, access_role
from vedette_schemas.errors import ConfigError
from vedette_schemas.topics import ACCESS, Action, Role, Topics

NODES = (ClusterNode("a", "10.0.0.1"), ClusterNode("b", "10.0.0.2"), ClusterNode("c", "fd00::3"))
CLUSTER: dict[str, Any] = {"cluster": NODES, "route_ports": (6222, 6223, 6224), "routes_bundle": "/routes"}
HOLDERS = {Role.DEVICE: "dev-1", Role.AGGREGATOR: "aggregator", Role.ANALYTICS: "analytics"}


def nats_matches(subject: str, topic: str) -> bool:
    """NATS's own rule: ``*`` is one level, ``>`` one or more at the end."""
    wanted, found = subject.split("."), topic.replace("/", ".").split(".")
    for at, level in enumerate(wanted):
        if level == ">":
            return len(found) > at
        if at >= len(found) or level not in ("*", found[at]):
            return False
    return len(wanted) == len(found)


def allowed(text: str, user: str, action: Action, topic: str) -> bool:
    block = text[text.index(f'"{user}"') :]
    kind = "publish" if action is Action.WRITE else "subscribe"
    found = re.search(kind + r": \{ (allow|deny): (\[.*?\]) \}", block)
    assert found is not None
    return found[1] == "allow" and any(nats_matches(s, topic) for s in json.loads(found[2]))


def role_parties() -> list[tuple[str, CertificateRole]]:
    return [("dev-1", CertificateRole.DEVICE), ("dev-2", CertificateRole.DEVICE), ("h-1", CertificateRole.COMMITTEE),
            ("aggregator", CertificateRole.AGGREGATOR), ("analytics", CertificateRole.ANALYTICS),
            ("broker", CertificateRole.BROKER)]  # fmt: skip


@pytest.mark.parametrize("role", HOLDERS)
def test_the_users_may_do_what_the_grammar_allows(role: Role) -> None:
    topics, holder = Topics("lab"), HOLDERS[role]
    text = render_users("lab", role_parties())
    below = {
        rule.pattern.replace("%u", who).replace("+", who).replace("#", "x/y")
        for rule in ACCESS
        for who in ("dev-1", "dev-2")
    }
    below |= {rule.pattern.replace("/#", "").replace("%u", "dev-1").replace("+", "dev-1") for rule in ACCESS}
    for topic in [f"{topics.root}/{b}" for b in below] + ["other", "$SYS/x", "vedette/1/other/public/intel"]:
        user = f"spiffe://lab/{role.value}/{holder}"
        assert allowed(text, user, Action.WRITE, topic) == topics.may_publish(role, holder, topic), topic
        assert allowed(text, user, Action.READ, topic) == topics.may_receive(role, holder, topic), topic


def test_who_is_a_user() -> None:
    text = render_users("lab", role_parties())
    assert re.findall(r'user: "([^"]+)"', text) == [
        "spiffe://lab/aggregator/aggregator",
        "spiffe://lab/analytics/analytics",
        "spiffe://lab/device/dev-1",
        "spiffe://lab/device/dev-2",
        "spiffe://lab/committee/h-1",
    ]
    assert text.count('allowed_connection_types: ["MQTT"]') == 5
    assert {access_role(role) for role in CertificateRole} <= {*Role, None}


@pytest.mark.parametrize(
    ("topic_filter", "expected"),
    [("a/b", ["a.b"]), ("a/+/b", ["a.*.b"]), ("a/#", ["a", "a.>"]), ("a/+/#", ["a.*", "a.*.>"])],
)
def test_filters_as_subjects(topic_filter: str, expected: list[str]) -> None:
    assert subjects(topic_filter) == expected


def test_the_settings_whose_defaults_lose_data() -> None:
    old, new = render(NatsConfig("lab", "/b")), render(NatsConfig("lab", "/b", version=(2, 15)))
    for text in (old, new):
        assert f"max_payload: {PACKET_BYTES_MAX}" in text
        assert 'ack_wait: "10s"' in text
        assert "verify_and_map: true" in text
        assert "cluster {" not in text
        assert f"include {USERS}" in text
    assert "sync_interval" not in old
    assert "default_max_consumers" not in old
    assert 'sync_interval: "always"' in new
    assert "default_max_consumers: -1" in new
    assert "default_max_consumers" not in render(NatsConfig("lab", "/b", version=(2, 14)))


def test_a_cluster_s_servers_know_each_other_by_their_own_certificates() -> None:
    text = render(NatsConfig("lab", "/b", node=1, **CLUSTER))
    assert 'server_name: "b"' in text
    assert 'routes: ["nats://10.0.0.1:6222", "nats://10.0.0.2:6223", "nats://[fd00::3]:6224"]' in text
    assert "port: 6223" in text
    assert "stream_replicas: 3" in text
    assert "verify: true" in text
    assert '"/routes/tls.key"' in text


@pytest.mark.parametrize(
    "changes",
    [
        {"bundle": '/b"\n x: y'},
        {"state_directory": "/s\x00"},
        {"host": " 0.0.0.0"},
        {"site": "+"},
        {"version": (2, 8)},
        CLUSTER | {"cluster": NODES[:2], "route_ports": (1, 2)},
        CLUSTER | {"cluster": (NODES[0], *NODES[:2])},
        CLUSTER | {"cluster": (ClusterNode("A b", "x"), *NODES[:2])},
        CLUSTER | {"route_ports": (1,)},
        CLUSTER | {"routes_bundle": ""},
    ],
)
def test_a_value_cannot_become_another_setting(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="nats"):
        render(NatsConfig(**{"site": "lab", "bundle": "/b", **changes}))


@pytest.mark.parametrize(("site", "holder"), [("+", "dev"), ("lab", '"] }'), ("lab", "a.b"), ("lab", ">")])
def test_an_id_cannot_become_a_rule(site: str, holder: str) -> None:
    with pytest.raises(ConfigError, match="nats"):
        render_users(site, [(holder, CertificateRole.DEVICE)])


def test_route_certificates_are_good_for_both_ends_and_for_their_own_host(tmp_path: Path) -> None:
    made = make_route_bundles("lab", NODES, time.time())
    for name, bundle in made.items():
        (tmp_path / f"{name}.crt").write_bytes(bundle.certificate)
        (tmp_path / f"{name}.key").write_bytes(bundle.key)
        (tmp_path / f"{name}.ca").write_bytes(bundle.authority)
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    server.verify_mode = ssl.CERT_REQUIRED
    for context, name in ((server, "a"), (client, "b")):
        context.load_cert_chain(tmp_path / f"{name}.crt", tmp_path / f"{name}.key")
        context.load_verify_locations(tmp_path / f"{name}.ca")
    shake_hands(server, client, "10.0.0.1")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(server, client, "10.0.0.2")


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, host: str) -> None:
    ends = [ssl.MemoryBIO() for _ in range(2)]
    one = server.wrap_bio(ends[0], ends[1], server_side=True)
    two = client.wrap_bio(ends[1], ends[0], server_hostname=host)
    for _ in range(3):
        for end in (two, one):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert one.getpeercert()


def test_a_revoked_id_is_no_user_and_files_are_private_where_they_must_be(tmp_path: Path) -> None:
    authority, now = tmp_path / "ca", time.time()
    ca.init(authority, "lab", now=now)
    for holder, role in role_parties():
        if role is not CertificateRole.COMMITTEE:
            ca.issue(authority, holder, role, now=now)
    options: dict[str, Any] = {"users_only": False}
    arguments = ("lab", authority / "bundles" / "broker", tmp_path / "out", "/var/lib/nats", "0.0.0.0", 8883, authority)
    files = nats_files(*arguments, "2.9", [f"{n.name}={n.host}" for n in NODES], **options)
    written = write(tmp_path / "out", files)
    assert len(written) == 3 * 5
    keys = [p for p in written if p.suffix == ".key"]
    assert len({p.read_bytes() for p in keys}) == 3
    assert {p.stat().st_mode & 0o077 for p in keys} == {0}
    assert b"dev-1" in files[f"a/{USERS}"]
    assert nats_files(*arguments, "2.9", [], users_only=True).keys() == {USERS}
    assert nats_files(*arguments, "v2.15.1", [], **options).keys() == {USERS, CONF}
    with pytest.raises(ConfigError, match="expected NAME=HOST"):
        nats_files(*arguments, "2.9", ["a"], **options)
    with pytest.raises(ConfigError, match="nats version"):
        nats_files(*arguments, "new", [], **options)
    with pytest.raises(ConfigError, match="expected 'plant'"):
        nats_files("plant", *arguments[1:], "2.9", [], **options)
    with pytest.raises(ConfigError, match="found no --ca"):
        nats_files(*arguments[:-1], None, "2.9", [], **options)
