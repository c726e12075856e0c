"""A worker thread reads retained messages through the loop's session."""

from __future__ import annotations

import asyncio

import pytest

from vedette_device.retained import RetainedReader
from vedette_schemas.errors import TransientError


class Link:
    """Answers a subscription with what is retained, as a broker does."""

    def __init__(self, retained: dict[str, bytes]) -> None:
        self.retained = retained
        self.filters: list[str] = []
        self.reader: RetainedReader | None = None

    async def subscribe(self, topic_filter: str, qos: int = 0) -> None:
        self.filters.append(topic_filter)
        if topic_filter in self.retained and self.reader is not None:
            asyncio.get_running_loop().call_soon(self.reader.take, topic_filter, self.retained[topic_filter])

    async def unsubscribe(self, topic_filter: str) -> None:
        self.filters.remove(topic_filter)


def connected(retained: dict[str, bytes]) -> tuple[RetainedReader, Link]:
    link = Link(retained)
    link.reader = RetainedReader(link, asyncio.get_running_loop())
    return link.reader, link


def test_reads_what_is_retained_and_leaves_again() -> None:
    async def scenario() -> None:
        reader, link = connected({"a": b"1"})
        assert await asyncio.to_thread(reader, "a", 5.0) == b"1"
        assert link.filters == []
        assert not reader.take("a", b"late")

    asyncio.run(scenario())


def test_nothing_retained_is_a_transient_error() -> None:
    async def scenario() -> None:
        reader, link = connected({})
        with pytest.raises(TransientError, match="nothing retained"):
            await asyncio.to_thread(reader, "a", 0.05)
        assert link.filters == []

    asyncio.run(scenario())


def test_two_readers_of_one_topic_share_a_subscription() -> None:
    async def scenario() -> None:
        reader, link = connected({})
        both = [asyncio.create_task(asyncio.to_thread(reader, "a", 5.0)) for _ in range(2)]
        while reader._readers.get("a") != 2:
            await asyncio.sleep(0.01)
        assert link.filters == ["a"]
        assert reader.take("a", b"")
        assert reader.take("a", b"x")
        assert await asyncio.gather(*both) == [b"x", b"x"]
        assert link.filters == []

    asyncio.run(scenario())


def test_a_topic_that_somebody_else_listens_to_is_not_left_and_its_news_are_not_swallowed() -> None:
    async def scenario() -> None:
        link = Link({"a": b"1"})
        await link.subscribe("a")
        reader = link.reader = RetainedReader(link, asyncio.get_running_loop(), kept=("a",))
        reading = asyncio.create_task(reader._read("a", 5.0))
        while not (waiting := reader._waiting.get("a")) or not waiting.done():
            await asyncio.sleep(0)
        assert not reader.take("a", b"newer")
        assert await reading == b"1"
        assert "a" in link.filters

    asyncio.run(scenario())
