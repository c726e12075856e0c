"""Laws of the topic grammar, against an oracle that works another way."""

from __future__ import annotations

import contextlib
import itertools
import re

from hypothesis import example, given
from hypothesis import strategies as st

from vedette_schemas.errors import PeerError
from vedette_schemas.topics import Action, FlStep, Parsed, Role, Topics, covers, is_filter, matches

ids = st.from_regex(r"[a-z0-9-]{1,60}", fullmatch=True)
tasks = st.from_regex(r"[a-z0-9-]{1,40}", fullmatch=True)
digests = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)
files = st.from_regex(r"([0-9]{1,4}\.)?[a-z-]{1,20}\.json", fullmatch=True)
numbers = st.integers(0, 999_999)
sites = ids.map(Topics)


@given(sites, ids, tasks, st.sampled_from(FlStep), digests, files, numbers)
def test_every_topic_that_is_built_is_parsed_back(
    site: Topics, device: str, task: str, step: FlStep, digest: str, file: str, number: int
) -> None:
    built = {
        site.alert(device): Parsed("alert", device=device),
        site.state(device): Parsed("state", device=device),
        site.telemetry(device): Parsed("telemetry", device=device),
        site.fl(device, task, step): Parsed("fl", device=device, task=task, step=step),
        site.receipt(device): Parsed("receipt", device=device),
        site.command(device): Parsed("command", device=device),
        site.committee(device): Parsed("committee", device=device),
        site.round(task): Parsed("round", task=task),
        site.group(task, number): Parsed("group", task=task, index=number),
        site.trust(file): Parsed("trust", key=file),
        site.artifact(digest): Parsed("artifact", key=digest),
        site.artifact(digest, number): Parsed("artifact", key=digest, index=number),
        site.rollout(task): Parsed("rollout", task=task),
    }
    assert {topic: site.parse(topic) for topic in built} == built


@given(
    st.text(max_size=80)
    | st.lists(st.sampled_from(["device", "x", "up", "down", "public", "round", "", "+"])).map("/".join)
)
@example("device/x/up/alert")
def test_any_text_is_parsed_or_refused_and_nothing_else(tail: str) -> None:
    site = Topics("s")
    for topic in (tail, f"{site.root}/{tail}"):
        with contextlib.suppress(PeerError):
            assert site.parse(topic).kind


# Few letters and short texts, so that every topic that could tell two filters apart can be enumerated.
LEVELS = ("a", "b", "", "$a")
# Empty levels are levels (§4.7.1.1); only the empty topic is none.
ALL_TOPICS = [t for n in range(1, 5) for t in map("/".join, itertools.product(LEVELS, repeat=n)) if t]
levels = st.sampled_from(LEVELS)
filters = st.builds(
    lambda body, tail: "/".join([*body, *tail]),
    st.lists(st.sampled_from([*LEVELS, "+"]), max_size=3),
    st.sampled_from([[], ["#"]]),
).filter(is_filter)


def oracle(topic_filter: str, topic: str) -> bool:
    """§4.7 by regular expression: ``+`` is one level, a last ``/#`` is any number of them, none included."""
    if topic.startswith("$") and topic_filter.startswith(("+", "#")):
        return False
    pattern = re.escape(topic_filter).replace(r"\+", "[^/]*")
    if pattern == r"\#":
        pattern = ".*"
    elif pattern.endswith(r"/\#"):
        pattern = pattern.removesuffix(r"/\#") + "(/.*)?"
    return re.fullmatch(pattern, topic, re.DOTALL) is not None


@given(filters, st.lists(levels, min_size=1, max_size=4).map("/".join))
def test_matches_agrees_with_the_oracle(topic_filter: str, topic: str) -> None:
    assert matches(topic_filter, topic) is oracle(topic_filter, topic)


@given(filters, filters)
@example("a/+", "a/#")
@example("+/#", "#")
@example("#", "$a/#")
@example("+/a", "$a/a")
@example("+/#", "+/#")
@example("a", "/")
def test_covers_means_that_no_topic_escapes(rule: str, asked: str) -> None:
    # Filters have at most four levels here, so that a topic that tells them apart has at most four as well.
    escaped = [t for t in ALL_TOPICS if oracle(asked, t) and not oracle(rule, t)]
    assert covers(rule, asked) is (not escaped), escaped[:3]


@given(
    st.sampled_from(Role),
    ids,
    filters,
    st.sampled_from(["", "vedette/1/s/", "vedette/1/s/device/", "vedette/1/s/public/"]),
)
def test_a_subscription_that_is_allowed_delivers_only_what_may_be_received(
    role: Role, holder: str, tail: str, prefix: str
) -> None:
    site = Topics("s")
    asked = prefix + tail
    if is_filter(asked) and site.may_subscribe(role, holder, asked):
        for topic in ALL_TOPICS:
            if matches(asked, prefix + topic):
                assert site.may_receive(role, holder, prefix + topic)


@given(ids, ids, tasks, st.sampled_from(FlStep))
def test_no_device_reads_or_writes_another_devices_topics(one: str, other: str, task: str, step: FlStep) -> None:
    site = Topics("s")
    topics = [
        site.alert(other), site.state(other), site.telemetry(other), site.fl(other, task, step),
        site.receipt(other), site.command(other), site.committee(other),
    ]  # fmt: skip
    for topic in topics:
        allowed = site.may_publish(Role.DEVICE, one, topic) or site.may_receive(Role.DEVICE, one, topic)
        assert allowed is (one == other)


@given(st.sampled_from(Role), ids, st.text(max_size=60))
def test_default_is_deny(role: Role, holder: str, topic: str) -> None:
    site = Topics("s")
    granted = [f for a, f in site.access(role, holder) if a is Action.WRITE]
    assert site.may_publish(role, holder, topic) <= any(oracle(f, topic) for f in granted)
