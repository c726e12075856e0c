"""The rendered Mosquitto configuration says what the grammar says."""

from __future__ import annotations

from typing import Any

import pytest

from vedette_broker.limits import PACKET_BYTES_MAX
from vedette_broker.mosquitto import ACL, CONF, MosquittoConfig, render
from vedette_schemas.codec import PAYLOAD_BYTES_MAX
from vedette_schemas.errors import ConfigError, PeerError
from vedette_schemas.topics import Action, Role, Topics, matches


def settings(text: str) -> dict[str, str]:
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {line.split(" ", 1)[0]: line.split(" ", 1)[1] for line in lines}


def acl_allows(text: str, user: str, action: Action, topic: str) -> bool:
    """Mosquitto's own rule: the user's lines and the patterns, a deny before anything else."""
    allowed, section = False, ""
    for line in text.splitlines():
        if line.startswith("#") or not line:
            continue
        if line.startswith("user "):
            section = line.removeprefix("user ")
            continue
        kind, access, topic_filter = line.split(" ", 2)
        if kind == "topic" and section != user:
            continue
        if not matches(topic_filter.replace("%u", user), topic):
            continue
        if access == "deny":
            return False
        allowed = allowed or access == action.value
    return allowed


def test_the_settings_that_keep_the_contract() -> None:
    conf = settings(render(MosquittoConfig("lab", "/etc/vedette/broker/"))[CONF])
    expected = {
        "listener": "8883 127.0.0.1",
        "cafile": "/etc/vedette/broker/ca.crt",
        "certfile": "/etc/vedette/broker/tls.crt",
        "keyfile": "/etc/vedette/broker/tls.key",
        "require_certificate": "true",
        "use_identity_as_username": "true",
        "use_username_as_clientid": "true",
        "allow_anonymous": "false",
        "acl_file": f"/etc/mosquitto/{ACL}",
        "message_size_limit": str(PAYLOAD_BYTES_MAX),
        "max_packet_size": str(PACKET_BYTES_MAX),
        "persistence": "true",
        "max_queued_messages": "10000",
        "per_listener_settings": "false",
    }
    assert {key: conf.get(key) for key in expected} == expected
    assert int(conf["autosave_interval"]) <= 60
    assert "user" not in conf


def test_every_address_and_another_user_can_be_asked_for() -> None:
    conf = settings(render(MosquittoConfig("lab", "/b", host="", port=1883, run_as="mqtt"))[CONF])
    assert conf["listener"] == "1883"
    assert conf["user"] == "mqtt"


HOLDERS = {
    Role.DEVICE: "dev-1",
    Role.AGGREGATOR: "aggregator",
    Role.ANALYTICS: "analytics",
    Role.AUTHORITY: "authority",
    Role.BOOTSTRAP: "enrol-1",
}


BELOW = (
    *(f"device/{device}/{rest}" for device in ("dev-1", "dev-2") for rest in ("up/alert", "up/fl/n/upload", "up", "x")),
    "device/dev-1/down/receipt",
    "device/dev-2/down/receipt",
    "public/round/network",
    "public/intel",
    "label/a-1",
    "public/revoked",
    *(f"enrol/{token}/{way}" for token in ("enrol-1", "enrol-2") for way in ("up", "down")),
    *(f"device/dev-1/{way}/rpc/renew" for way in ("up", "down")),
    "other",
)


@pytest.mark.parametrize("role", [role for role in Role if role is not Role.BOOTSTRAP])
def test_the_access_file_allows_what_the_grammar_allows(role: Role) -> None:
    topics, holder = Topics("lab"), HOLDERS[role]
    text = render(MosquittoConfig("lab", "/b"))[ACL]
    for topic in (f"{topics.root}/{below}" for below in BELOW):
        write, read = (acl_allows(text, holder, action, topic) for action in (Action.WRITE, Action.READ))
        assert write == topics.may_publish(role, holder, topic), topic
        assert read == topics.may_receive(role, holder, topic), topic


def test_a_token_s_holder_can_no_more_than_its_own_topics_and_to_read_what_is_public() -> None:
    """Mosquitto's patterns know a name and no role: the one place where it allows more than the grammar does."""
    topics, holder = Topics("lab"), HOLDERS[Role.BOOTSTRAP]
    text = render(MosquittoConfig("lab", "/b"))[ACL]
    for below in BELOW:
        topic = f"{topics.root}/{below}"
        write, read = (acl_allows(text, holder, action, topic) for action in (Action.WRITE, Action.READ))
        assert write == topics.may_publish(Role.BOOTSTRAP, holder, topic), topic
        assert read == (topics.may_receive(Role.BOOTSTRAP, holder, topic) or below.startswith("public/")), topic
    with pytest.raises(PeerError, match="grammar"):
        topics.parse(f"{topics.root}/device/{holder}/up/alert")


@pytest.mark.parametrize("role", [Role.AGGREGATOR, Role.ANALYTICS, Role.AUTHORITY])
def test_the_devices_patterns_give_a_role_nothing(role: Role) -> None:
    text = render(MosquittoConfig("lab", "/b"))[ACL]
    for rest in ("up/alert", "up/state", "down/command"):
        for action in Action:
            assert not acl_allows(text, HOLDERS[role], action, f"vedette/1/lab/device/{role}/{rest}")
            assert not acl_allows(text, HOLDERS[role], action, f"vedette/1/lab/enrol/{role}/up")


def test_another_site_is_denied() -> None:
    text = render(MosquittoConfig("lab", "/b"))[ACL]
    for holder in HOLDERS.values():
        for action in Action:
            assert not acl_allows(text, holder, action, "vedette/1/other/public/intel")


@pytest.mark.parametrize(
    "changes",
    [
        {"bundle": "/b\nallow_anonymous true"},
        {"directory": "/d\r"},
        {"host": " 0.0.0.0"},
        {"run_as": "root "},
        {"state_directory": "/s\x00"},
        {"site": "+"},
        {"port": 0},
        {"port": 65536},
    ],
)
def test_a_value_cannot_become_another_setting(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="mosquitto"):
        render(MosquittoConfig(**{"site": "lab", "bundle": "/b", **changes}))
