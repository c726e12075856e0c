"""Who may say and hear what: written out by hand, not computed from the grammar."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest
from broker_parties import Authority, BrokerUnderTest, Party, party, path

PARTIES = ("dev-a", "dev-b", "helper", "aggregator", "analytics")
DIGEST = "0" * 64
EVERYBODY = {"dev-a", "dev-b", "helper", "aggregator", "analytics"}
NOBODY: set[str] = set()

GREEDY = (
    "#",
    "+/#",
    "vedette/#",
    "vedette/1/+/#",
    "vedette/1/lab/#",
    "device/#",
    "device/+/up/#",
    "device/+/down/#",
    "device/dev-a/#",
    "device/dev-a/up/#",
    "device/dev-a/down/#",
    "device/dev-b/#",
    "device/dev-b/down/#",
    "device/helper/#",
    "device/helper/down/#",
    "device/+/up/alert",
    "device/+/up/state",
    "device/+/up/telemetry",
    "public/#",
    "label/#",
    "$MQTT/#",
    "$MQTT/sub/#",
    "$JS/#",
    "$share/g/vedette/1/lab/#",
)
"""What every party tries to subscribe to, each in a SUBSCRIBE of its own."""

CASES: tuple[tuple[str, str, set[str]], ...] = (
    # a device: below its own up/, and nowhere else
    ("dev-a", "device/dev-a/up/alert", {"aggregator", "analytics"}),
    ("dev-a", "device/dev-a/up/state", {"aggregator", "analytics"}),
    ("dev-a", "device/dev-a/up/telemetry", {"aggregator", "analytics"}),
    ("dev-a", "device/dev-a/up/fl/network/upload", {"aggregator"}),
    ("dev-a", "device/dev-a/up/rpc/renew", {"aggregator"}),
    ("dev-a", "device/dev-b/up/alert", NOBODY),
    ("dev-a", "device/dev-b/up/fl/network/upload", NOBODY),
    ("dev-a", "device/dev-a/down/receipt", NOBODY),
    ("dev-a", "device/dev-b/down/command", NOBODY),
    ("dev-a", "device/dev-a/sideways", NOBODY),
    ("dev-a", "device/dev-a/upper/alert", NOBODY),
    ("dev-a", "public/round/network", NOBODY),
    ("dev-a", "public/trust/root_json", NOBODY),
    ("dev-a", f"public/artifact/{DIGEST}", NOBODY),
    ("dev-a", "label/alert-1", NOBODY),
    ("dev-a", "vedette/1/other/device/dev-a/up/alert", NOBODY),
    ("dev-a", "anything", NOBODY),
    ("dev-a", "device/helper/up/fl/network/vote", NOBODY),
    ("dev-a", "device/helper/down/committee", NOBODY),
    ("dev-a", "device/dev-a/down/committee", NOBODY),
    # a committee helper: the branch of its id, as a device
    ("helper", "device/helper/up/fl/network/checkin", {"aggregator"}),
    ("helper", "device/helper/up/fl/network/vote", {"aggregator"}),
    ("helper", "device/helper/up/fl/network/shares", {"aggregator"}),
    ("helper", "device/dev-a/up/fl/network/vote", NOBODY),
    ("helper", "device/dev-a/down/committee", NOBODY),
    ("helper", "device/helper/down/committee", NOBODY),
    ("helper", "committee/helper/up/vote", NOBODY),
    ("helper", "public/round/network/group/0", NOBODY),
    ("helper", "label/alert-1", NOBODY),
    # the aggregator: down/ and public/, and nobody's up/
    ("aggregator", "device/dev-a/down/receipt", {"dev-a"}),
    ("aggregator", "device/dev-b/down/committee", {"dev-b"}),
    ("aggregator", "device/helper/down/committee", {"helper"}),
    ("aggregator", "device/helper/up/fl/network/vote", NOBODY),
    ("aggregator", "public/round/network", EVERYBODY),
    ("aggregator", f"public/artifact/{DIGEST}/0", EVERYBODY),
    ("aggregator", "public/intel", EVERYBODY),
    ("aggregator", "device/dev-a/up/alert", NOBODY),
    ("aggregator", "device/aggregator/up/alert", NOBODY),
    ("aggregator", "label/alert-1", NOBODY),
    ("aggregator", "vedette/1/other/public/intel", NOBODY),
    # analytics: labels
    ("analytics", "label/alert-1", {"aggregator", "analytics"}),
    ("analytics", "public/intel", NOBODY),
    ("analytics", "device/dev-a/down/command", NOBODY),
    ("analytics", "device/dev-a/up/alert", NOBODY),
    ("analytics", "device/analytics/up/alert", NOBODY),
)


async def fence(parties: dict[str, Party], mark: bytes) -> None:
    """Everything published before is delivered, or never will be: brokers keep the order of a client's queue."""
    await parties["dev-a"].link.publish(path("device/dev-a/up/alert"), mark)
    for device in ("dev-a", "dev-b", "helper"):
        await parties["aggregator"].link.publish(path(f"device/{device}/down/command"), mark)
    for each in parties.values():
        await each.until_payload(mark)


def test_each_party_hears_exactly_what_it_may_whatever_it_asks_for(
    broker: BrokerUnderTest, authority: Authority
) -> None:
    async def scenario() -> dict[tuple[str, str], set[str]]:
        async with AsyncExitStack() as stack:
            parties = {who: await stack.enter_async_context(party(broker, authority, who, GREEDY)) for who in PARTIES}
            for who, topic, _ in CASES:
                await parties[who].link.publish(path(topic), f"{who} {topic}".encode())
            await fence(parties, b"fence")
            for listener, each in parties.items():
                # NATS has a queue for each filter: what comes by one may be behind the fence in another.
                wanted = {f"{who} {topic}".encode() for who, topic, readers in CASES if listener in readers}
                await each.until_payloads(wanted)
            heard: dict[tuple[str, str], set[str]] = {(who, topic): set() for who, topic, _ in CASES}
            for listener, each in parties.items():
                for payload in each.payloads:
                    publisher, _, topic = payload.decode().partition(" ")
                    if topic:
                        heard[publisher, topic].add(listener)
            return heard

    heard = asyncio.run(scenario())
    assert heard == {(who, topic): readers for who, topic, readers in CASES}


def test_a_wildcard_at_the_broker_s_own_topics_hears_nothing(broker: BrokerUnderTest, authority: Authority) -> None:
    async def scenario() -> list[str]:
        async with (
            party(broker, authority, "aggregator", ["$SYS/#", "$SYS/broker/version", "device/+/up/#"]) as listener,
            party(broker, authority, "dev-a") as device,
        ):
            await device.link.publish(path("device/dev-a/up/alert"), b"after the retained ones")
            await listener.until_payload(b"after the retained ones")
            return [m.topic for m in listener.received if m.topic.startswith("$")]

    assert asyncio.run(scenario()) == []


@pytest.mark.parametrize("clean", [True, False])
def test_retained_messages_reach_only_who_subscribed_and_may_read(
    broker: BrokerUnderTest, authority: Authority, clean: bool
) -> None:
    async def scenario() -> list[bytes]:
        private, public = path("device/dev-a/down/command"), path("public/round/leak")
        async with (
            party(broker, authority, "aggregator") as aggregator,
            party(broker, authority, "dev-a", ["device/dev-a/down/#", "public/round/leak"]) as owner,
        ):
            await aggregator.link.publish(private, b"for dev-a only", retain=True)
            await aggregator.link.publish(public, b"for who asks", retain=True)
            await owner.until(lambda: len(owner.received) == 2)
            # dev-b connects while others are subscribed, asks first for nothing, then for what it may not have.
            async with party(broker, authority, "dev-b", clean_session=clean) as other:
                for topic_filter in ("#", "device/dev-a/down/#", "device/dev-a/down/command", "device/dev-b/down/#"):
                    await other.link.subscribe(path(topic_filter), 1)
                await aggregator.link.publish(path("device/dev-b/down/command"), b"first")
                await asyncio.gather(
                    aggregator.link.publish(path("device/dev-b/down/command"), b"fence", retain=True),
                    other.until_payload(b"fence"),
                )
                heard = [p for p in other.payloads if p not in (b"first", b"fence")]
            for topic in (private, public, path("device/dev-b/down/command")):
                await aggregator.link.publish(topic, b"", retain=True)
            return heard

    heard = asyncio.run(scenario())
    # "#" may be granted (Mosquitto), and then delivers what dev-b may read; never what is dev-a's.
    assert b"for dev-a only" not in heard
    if broker.name == "embedded":
        assert heard == []
