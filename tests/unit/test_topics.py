"""The grammar of topics and the default-deny access table, by example."""

from __future__ import annotations

import pytest

from vedette_schemas.errors import PeerError
from vedette_schemas.topics import (
    ACCESS,
    TOPIC_BYTES_MAX,
    Action,
    FlStep,
    Parsed,
    Role,
    Topics,
    check_id,
    covers,
    is_filter,
    matches,
)

SITE = Topics("plant-1")
ROOT = "vedette/1/plant-1"
DIGEST = "ab" * 32

EXAMPLES = {
    f"{ROOT}/device/gw-01/up/alert": Parsed("alert", device="gw-01"),
    f"{ROOT}/device/gw-01/up/state": Parsed("state", device="gw-01"),
    f"{ROOT}/device/gw-01/up/telemetry": Parsed("telemetry", device="gw-01"),
    f"{ROOT}/device/gw-01/up/fl/network/checkin": Parsed("fl", device="gw-01", task="network", step=FlStep.CHECKIN),
    f"{ROOT}/device/gw-01/up/fl/network/shares": Parsed("fl", device="gw-01", task="network", step=FlStep.SHARES),
    f"{ROOT}/device/gw-01/up/rpc/score": Parsed("rpc", device="gw-01", key="score"),
    f"{ROOT}/device/gw-01/down/rpc/score": Parsed("rpc", device="gw-01", key="score"),
    f"{ROOT}/device/gw-01/down/receipt": Parsed("receipt", device="gw-01"),
    f"{ROOT}/device/gw-01/down/command": Parsed("command", device="gw-01"),
    f"{ROOT}/device/gw-01/down/committee": Parsed("committee", device="gw-01"),
    f"{ROOT}/public/round/network": Parsed("round", task="network"),
    f"{ROOT}/public/round/network/group/0": Parsed("group", task="network", index=0),
    f"{ROOT}/public/trust/12_snapshot_json": Parsed("trust", key="12.snapshot.json"),
    f"{ROOT}/public/artifact/{DIGEST}": Parsed("artifact", key=DIGEST),
    f"{ROOT}/public/artifact/{DIGEST}/3": Parsed("artifact", key=DIGEST, index=3),
    f"{ROOT}/public/rollout/sensor": Parsed("rollout", task="sensor"),
    f"{ROOT}/public/revoked": Parsed("revoked"),
    f"{ROOT}/public/intel": Parsed("intel"),
    f"{ROOT}/label/al-0001": Parsed("label", device="al-0001"),
}


@pytest.mark.parametrize("topic", EXAMPLES, ids=lambda t: t.removeprefix(ROOT + "/")[:50])
def test_a_topic_of_the_grammar_is_taken_apart(topic: str) -> None:
    assert SITE.parse(topic) == EXAMPLES[topic]


REFUSED = {
    "other site": "vedette/1/plant-2/public/revoked",
    "other wire version": "vedette/2/plant-1/public/revoked",
    "site as a prefix of another": "vedette/1/plant-10/public/revoked",
    "bare root": ROOT,
    "empty": "",
    "unknown branch": f"{ROOT}/private/x",
    "capital in an id": f"{ROOT}/device/GW-01/up/alert",
    "newline after an id": f"{ROOT}/device/gw-01\n/up/alert",
    "id too long": f"{ROOT}/device/{'a' * 61}/up/alert",
    "empty id": f"{ROOT}/device//up/alert",
    "wildcard as id": f"{ROOT}/device/+/up/alert",
    "trailing level": f"{ROOT}/device/gw-01/up/alert/x",
    "trailing slash": f"{ROOT}/device/gw-01/up/alert/",
    "receipt in the wrong direction": f"{ROOT}/device/gw-01/up/receipt",
    "alert in the wrong direction": f"{ROOT}/device/gw-01/down/alert",
    "unknown step": f"{ROOT}/device/gw-01/up/fl/network/gossip",
    "task too long": f"{ROOT}/device/gw-01/up/fl/{'t' * 41}/upload",
    "group that is no number": f"{ROOT}/public/round/network/group/x",
    "group with a leading zero": f"{ROOT}/public/round/network/group/01",
    "negative group": f"{ROOT}/public/round/network/group/-1",
    "group in other digits": f"{ROOT}/public/round/network/group/٣",
    "group too large": f"{ROOT}/public/round/network/group/1000000",
    "digest too short": f"{ROOT}/public/artifact/{DIGEST[:-1]}",
    "digest in capitals": f"{ROOT}/public/artifact/{DIGEST.upper()}",
    "path in a trust file": f"{ROOT}/public/trust/..",
    "trust file of another kind": f"{ROOT}/public/trust/root_txt",
    "hidden trust file": f"{ROOT}/public/trust/_json",
    "trust file with dots": f"{ROOT}/public/trust/root.json",
    "longer than any topic": f"{ROOT}/label/" + "a" * TOPIC_BYTES_MAX,
    "lone surrogate": f"{ROOT}/label/\ud800",
}


@pytest.mark.parametrize("topic", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_of_the_grammar_is_refused_with_its_reason(topic: str) -> None:
    with pytest.raises(PeerError, match=r"expected one of the grammar below vedette/1/plant-1/") as caught:
        SITE.parse(topic)
    assert caught.value.reason == "topic"


@pytest.mark.parametrize("value", ["", "A", "a b", "a_b", "a/b", "+", "#", "a" * 61, "ä", "a\n"])
def test_an_id_outside_the_pattern_is_refused(value: str) -> None:
    with pytest.raises(PeerError, match="site: found"):
        Topics(value)
    with pytest.raises(PeerError, match="device: found"):
        check_id(value, "device")


def test_an_id_is_returned_as_it_is() -> None:
    assert check_id("gw-01") == "gw-01"


@pytest.mark.parametrize(
    ("topic_filter", "valid"),
    [
        ("a/b", True), ("#", True), ("+", True), ("a/#", True), ("+/b/#", True), ("/", True), ("a//b", True),
        ("", False), ("a/#/b", False), ("a#", False), ("a/b+", False), ("##", False), ("++", False), ("a\0", False),
    ],
)  # fmt: skip
def test_wildcards_fill_a_whole_level(topic_filter: str, valid: bool) -> None:
    assert is_filter(topic_filter) is valid


@pytest.mark.parametrize(
    ("topic_filter", "topic", "expected"),
    [
        # Examples of MQTT 3.1.1 §4.7.1.2, §4.7.1.3 and §4.7.2.
        ("sport/tennis/player1/#", "sport/tennis/player1", True),
        ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", True),
        ("sport/#", "sport", True),
        ("#", "sport/tennis", True),
        ("sport/tennis/+", "sport/tennis/player1/ranking", False),
        ("sport/+", "sport", False),
        ("sport/+", "sport/", True),
        ("+/+", "/finance", True),
        ("/+", "/finance", True),
        ("+", "/finance", False),
        ("#", "$SYS/uptime", False),
        ("+/uptime", "$SYS/uptime", False),
        ("$SYS/#", "$SYS/uptime", True),
    ],
)
def test_filters_match_as_the_standard_says(topic_filter: str, topic: str, expected: bool) -> None:
    assert matches(topic_filter, topic) is expected


@pytest.mark.parametrize(
    ("rule", "asked", "expected"),
    [
        ("a/+", "a/#", False),  # the hole of amqtt's own rule plugin
        ("+", "#", False),
        ("a/#", "a/#", True),
        ("a/#", "a/b/+", True),
        ("a/#", "a", True),
        ("a/#", "#", False),
        ("a/#", "+/b", False),
        ("+/#", "#", True),
        ("a/+/c", "a/b/c", True),
        ("a/b/c", "a/+/c", False),
        ("#", "$SYS/#", False),
        ("+/x", "$SYS/x", False),
        ("$SYS/#", "$SYS/x", True),
        ("a/#", "a/#/b", False),
        ("a/#", "a/b+", False),
        ("#", "", False),
    ],
)
def test_a_rule_covers_only_what_it_matches_wholly(rule: str, asked: str, expected: bool) -> None:
    assert covers(rule, asked) is expected


def test_a_device_writes_and_reads_only_its_own_branch() -> None:
    own, other = SITE.alert("gw-01"), SITE.alert("gw-02")
    assert SITE.may_publish(Role.DEVICE, "gw-01", own)
    assert not SITE.may_publish(Role.DEVICE, "gw-01", other)
    assert not SITE.may_publish(Role.DEVICE, "gw-0", own)
    assert SITE.may_receive(Role.DEVICE, "gw-01", SITE.receipt("gw-01"))
    assert not SITE.may_receive(Role.DEVICE, "gw-01", SITE.receipt("gw-02"))
    assert not SITE.may_receive(Role.DEVICE, "gw-01", other)
    assert not SITE.may_receive(Role.DEVICE, "gw-01", own), "what a device says is not said back to it"
    assert not SITE.may_publish(Role.DEVICE, "gw-01", SITE.receipt("gw-01"))
    assert not SITE.may_subscribe(Role.DEVICE, "gw-01", f"{ROOT}/device/+/down/receipt")
    assert not SITE.may_subscribe(Role.DEVICE, "gw-01", f"{ROOT}/#")
    assert not SITE.may_subscribe(Role.DEVICE, "gw-01", "#")


def test_a_device_reads_what_is_public_and_writes_none_of_it() -> None:
    for topic in (SITE.round("network"), SITE.trust("timestamp.json"), SITE.artifact(DIGEST), SITE.rollout("network")):
        assert SITE.may_subscribe(Role.DEVICE, "gw-01", topic)
        assert SITE.may_receive(Role.DEVICE, "gw-01", topic)
        assert not SITE.may_publish(Role.DEVICE, "gw-01", topic)


def test_only_the_aggregator_writes_down_and_public() -> None:
    for topic in (SITE.receipt("gw-01"), SITE.command("gw-01"), SITE.committee("gw-01"), SITE.round("network")):
        assert SITE.may_publish(Role.AGGREGATOR, "agg", topic)
        assert not SITE.may_publish(Role.ANALYTICS, "ana", topic)
        assert not SITE.may_publish(Role.DEVICE, "gw-01", topic)
    assert not SITE.may_publish(Role.AGGREGATOR, "agg", SITE.alert("gw-01")), "nobody speaks for a device"


def test_analytics_reads_reports_and_never_an_update() -> None:
    for topic in (SITE.alert("gw-01"), SITE.state("gw-01"), SITE.telemetry("gw-01")):
        assert SITE.may_receive(Role.ANALYTICS, "ana", topic)
    for step in FlStep:
        assert not SITE.may_receive(Role.ANALYTICS, "ana", SITE.fl("gw-01", "network", step))
    assert SITE.may_publish(Role.ANALYTICS, "ana", f"{ROOT}/label/al-1")
    assert not SITE.may_publish(Role.ANALYTICS, "ana", f"{ROOT}/public/intel")


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize(
    "topic", ["$SYS/broker/uptime", "other/topic", "vedette/1/plant-2/public/revoked", "vedette/2"]
)
def test_what_is_not_in_the_table_is_denied(role: Role, topic: str) -> None:
    assert not SITE.may_publish(role, "someone", topic)
    assert not SITE.may_receive(role, "someone", topic)
    assert not SITE.may_subscribe(role, "someone", topic)


@pytest.mark.parametrize("level", ["+", "#", "a+", "a\0"])
def test_nobody_publishes_to_a_name_with_a_wildcard(level: str) -> None:
    assert not SITE.may_publish(Role.DEVICE, "gw-01", f"{ROOT}/device/gw-01/up/{level}")


@pytest.mark.parametrize("holder", ["+", "#", "", "GW", "a/b"])
def test_a_holder_with_a_wildcard_for_an_id_gets_no_rules(holder: str) -> None:
    with pytest.raises(PeerError, match="holder: found"):
        SITE.access(Role.DEVICE, holder)


def test_every_rule_is_a_filter_and_every_role_has_some() -> None:
    assert {rule.role for rule in ACCESS} == set(Role)
    for rule in ACCESS:
        assert is_filter(rule.pattern.replace("%u", "x"))
        assert rule.role is not Role.DEVICE or "%u" in rule.pattern or rule.action is Action.READ
