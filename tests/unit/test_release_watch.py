"""A device looks at the release metadata when they change, and not because it is looking at them."""

from __future__ import annotations

import asyncio

from vedette_core.runtime.metrics import DEVICE_METRICS, Metrics
from vedette_core.runtime.mqtt import MqttMessage
from vedette_device.release_follower import ReleaseFollower
from vedette_device.retained import RetainedReader
from vedette_device.service import DeviceService
from vedette_schemas.topics import Topics
from vedette_schemas.trust import TIMESTAMP_FILE

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
        self.follower = self._follower = ReleaseFollower(self._refresh, lambda: True)
        self._reader = RetainedReader(broker, asyncio.get_running_loop(), kept=(TIMESTAMP,))
        self.refreshes = 0
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
