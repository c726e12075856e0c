"""The tree of filters gives what matching every filter alone gives."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vedette_broker.routes import Routes
from vedette_schemas.topics import is_filter, matches

LEVEL = st.sampled_from(["a", "b", "", "$s"])
TOPIC = st.lists(LEVEL, min_size=1, max_size=4).map("/".join).filter(bool)
FILTER = st.lists(st.one_of(LEVEL, st.just("+"), st.just("#")), min_size=1, max_size=4).map("/".join).filter(is_filter)
CHANGE = st.tuples(st.booleans(), FILTER, st.sampled_from(["x", "y", "z"]), st.integers(0, 1))


@given(st.lists(CHANGE, max_size=30), st.lists(TOPIC, min_size=1, max_size=10))
def test_subscribers_are_those_whose_filters_match(
    changes: list[tuple[bool, str, str, int]], topics: list[str]
) -> None:
    routes, kept = Routes(), dict[tuple[str, str], int]()
    for add, topic_filter, client, qos in changes:
        if add:
            routes.add(topic_filter, client, qos)
            kept[topic_filter, client] = qos
        else:
            routes.remove(topic_filter, client)
            kept.pop((topic_filter, client), None)
    for topic in topics:
        expected: dict[str, int] = {}
        for (topic_filter, client), qos in kept.items():
            if matches(topic_filter, topic):
                expected[client] = max(expected.get(client, 0), qos)
        assert routes.subscribers(topic) == expected
    for topic_filter, client in list(kept):
        routes.remove(topic_filter, client)
    assert len(routes) == 0
