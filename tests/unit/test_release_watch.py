"""A device looks at the release metadata when they change, and not because it is looking at them."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vedette_core.runtime.metrics import DEVICE_METRICS, Metrics
from vedette_core.runtime.mqtt import MqttMessage
from vedette_device import release_follower
from vedette_device.release_follower import CHASED_MAX, ReleaseFollower
from vedette_device.retained import RetainedReader
from vedette_device.service import DeviceService
from vedette_schemas.topics import Topics
from vedette_schemas.trust import TIMESTAMP_BYTES_MAX, TIMESTAMP_FILE, announced_version

TOPICS = Topics("site")
TIMESTAMP = TOPICS.trust(TIMESTAMP_FILE)


class Broker:
    """Answers every subscription with what is retained, and hands on what is published to a filter."""

    connected = True

    def __init__(self) -> None:
        self.filters: list[str] = []
        self.service: DeviceService | None = None

    async def subscribe(self, topic_filter: str, qos: int = 0) -> None:
        if topic_filter not in self.filters:
            self.filters.append(topic_filter)
        self.deliver(topic_filter)

    async def unsubscribe(self, topic_filter: str) -> None:
        self.filters.remove(topic_filter)

    def deliver(self, topic: str) -> None:
        assert self.service is not None
        if topic in self.filters:
            message = self.service._take(MqttMessage(topic, b"signed", 0, True))
            asyncio.get_running_loop().call_soon(asyncio.ensure_future, message)


class Watching(DeviceService):
    """The part of a device that follows releases; a refresh reads the timestamp, as the real one does."""

    def __init__(self, broker: Broker) -> None:
        self._topics, self._metrics, self._link = TOPICS, Metrics(DEVICE_METRICS), broker  # type: ignore[assignment]
        self.follower = self._follower = ReleaseFollower(self._refresh, lambda: True, lambda: self.reached)
        self._reader = RetainedReader(broker, asyncio.get_running_loop(), kept=(TIMESTAMP,))
        self.refreshes = self.reached = 0
        self.done = asyncio.Event()

    async def _refresh(self) -> bool:
        self.refreshes += 1
        assert await asyncio.to_thread(self._reader, TIMESTAMP, 5.0) == b"signed"
        self.done.set()
        return True


async def quiet(watching: Watching) -> None:
    """Wait until nothing is on its way any more (or until it has plainly gone round in circles)."""
    for _ in range(50):
        await asyncio.sleep(0.002)
        if watching.refreshes > 20:
            return


def test_reading_the_timestamp_is_no_reason_to_read_it_again_and_its_news_still_come() -> None:
    async def scenario() -> None:
        broker = Broker()
        watching = broker.service = Watching(broker)
        job = asyncio.create_task(watching.follower.run())
        await broker.subscribe(TIMESTAMP)
        await watching.done.wait()
        await quiet(watching)
        before = watching.refreshes
        assert before == 1
        assert broker.filters == [TIMESTAMP]
        watching.done.clear()
        broker.deliver(TIMESTAMP)
        await watching.done.wait()
        await quiet(watching)
        assert watching.refreshes == before + 1
        job.cancel()

    asyncio.run(scenario())


class Lagging:
    """A server of a cluster: it has passed on the news of version 2, and still hands out what it retained before."""

    def __init__(self, behind: int) -> None:
        self.behind = behind
        self.looks = self.reached = 0
        self.follower = ReleaseFollower(self.look, lambda: True, lambda: self.reached)

    async def look(self) -> bool:
        self.looks += 1
        self.reached = 1 if self.looks <= self.behind else 2
        return True

    async def follow(self, *announced: int) -> None:
        job = asyncio.create_task(self.follower.run())
        for version in announced:
            self.follower.announced(version)
            for _ in range(3 * CHASED_MAX):
                await asyncio.sleep(0.001)
        job.cancel()


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release_follower, "REFRESH_RETRY_S", (0.0,))


@pytest.mark.usefixtures("soon")
def test_a_look_that_ends_below_what_was_announced_is_repeated() -> None:
    server = Lagging(behind=3)
    asyncio.run(server.follow(2))
    assert (server.looks, server.reached) == (4, 2)


@pytest.mark.usefixtures("soon")
def test_what_was_announced_and_never_comes_is_not_looked_for_for_ever() -> None:
    server = Lagging(behind=10**9)
    asyncio.run(server.follow(2))
    assert server.looks == CHASED_MAX + 1
    server.behind = 0
    asyncio.run(server.follow(3))
    assert server.reached == 2


@pytest.mark.usefixtures("soon")
def test_what_is_known_is_no_news() -> None:
    server = Lagging(behind=0)
    asyncio.run(server.follow(2, 2, 1))
    assert server.looks == 1


@pytest.mark.usefixtures("soon")
def test_an_older_file_behind_the_news_of_a_newer_one_does_not_end_the_search() -> None:
    async def scenario() -> None:
        server = Lagging(behind=2)
        server.follower.announced(2)
        server.follower.announced(1)
        job = asyncio.create_task(server.follower.run())
        for _ in range(3 * CHASED_MAX):
            await asyncio.sleep(0.001)
        job.cancel()
        assert (server.looks, server.reached) == (3, 2)

    asyncio.run(scenario())


@pytest.mark.usefixtures("soon")
def test_looks_that_failed_before_take_nothing_from_the_search() -> None:
    class Away(Lagging):
        async def look(self) -> bool:
            self.looks += 1
            self.reached = 2 if self.looks > CHASED_MAX + 4 else 1
            return self.looks > CHASED_MAX + 2

    server = Away(behind=0)
    asyncio.run(server.follow(2))
    assert server.reached == 2


@given(st.binary(max_size=200) | st.sampled_from([b"[" * 10_000, b'{"signed": {"version": ' + b"9" * 5_000 + b"}}"]))
def test_what_names_no_version_announces_none(data: bytes) -> None:
    assert announced_version(data) == 0


def test_a_timestamp_file_says_its_version() -> None:
    assert announced_version(b'{"signatures": [], "signed": {"_type": "timestamp", "version": 7}}') == 7
    assert [announced_version(b'{"signed": {"version": %s}}' % v) for v in (b"true", b"-1", b"1.0", b"1e400")] == [
        0
    ] * 4
    assert announced_version(b'{"signed": {"version": 7}}'.ljust(TIMESTAMP_BYTES_MAX + 1)) == 0
