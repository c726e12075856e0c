"""A broker and the links to it: retained messages, QoS 0 and 1, sessions, and everything that goes wrong with them.

QoS 1 is repeated while the connection stands, so that it is delivered at least once or the connection ends; an
acknowledged message may still be lost with the broker. QoS 0 may be lost at any time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Final

from vedette_schemas import topics
from vedette_schemas.topics import Role, Topics

from .schedule import Scheduler

RETRY_S: Final = 5.0
RECONNECT_S: Final = 5.0
REPLAY_KEPT: Final = 400

matches = lru_cache(maxsize=10_000)(topics.matches)


@dataclass
class Weather:
    """What the network does to packets.

    Attributes:
        loss: share of packets lost.
        duplicate: share of packets that arrive twice.
        delay_s: shortest time on the way.
        jitter_s: mean of what is added to it; any jitter reorders.
        corrupt: share of messages of which a bit flips.
        replay: share of messages upon which an old one of the same topic's tree comes again.
    """

    loss: float = 0.0
    duplicate: float = 0.0
    delay_s: float = 0.05
    jitter_s: float = 0.0
    corrupt: float = 0.0
    replay: float = 0.0


class Session:
    """What the broker keeps for a client."""

    def __init__(self, *, keeps: bool) -> None:
        self.keeps = keeps
        self.filters: dict[str, int] = {}
        self.queue: list[tuple[str, bytes]] = []


class Broker:
    """The broker. `stop` and `start` take it away; what it retained may be gone when it comes back."""

    def __init__(self, scheduler: Scheduler, random: Random, topics: Topics, weather: Weather) -> None:
        self.scheduler = scheduler
        self.random = random
        self.topics = topics
        self.weather = weather
        self.up = True
        self.links: list[Link] = []
        self.retained: dict[str, bytes] = {}
        self.sessions: dict[str, Session] = {}
        self._old: list[tuple[str, bytes, bool]] = []

    def stop(self, *, forget: bool) -> None:
        """Go away; with `forget`, retained messages and sessions are lost."""
        self.up = False
        if forget:
            self.retained.clear()
            self.sessions.clear()
        for link in self.links:
            link.drop()

    def start(self) -> None:
        """Come back."""
        self.up = True

    def attach(self, link: Link) -> None:
        """Begin or resume a link's session."""
        session = self.sessions.get(link.client)
        if session is None or not link.keeps_session:
            session = self.sessions[link.client] = Session(keeps=link.keeps_session)
        waiting, session.queue = session.queue, []
        for topic, payload in waiting:
            self.send(link, topic, payload, 1)

    def subscribe(self, link: Link, topic_filter: str, qos: int) -> None:
        """Subscribe, and send what is retained."""
        assert self.topics.may_subscribe(link.role, link.client, topic_filter), f"{link.client}: {topic_filter}"
        self.sessions[link.client].filters[topic_filter] = qos
        for topic, payload in self.retained.items():
            if matches(topic_filter, topic):
                self.send(link, topic, payload, qos)

    def unsubscribe(self, link: Link, topic_filter: str) -> None:
        """Leave."""
        self.sessions[link.client].filters.pop(topic_filter, None)

    def publish(self, topic: str, payload: bytes, qos: int, retain: bool) -> None:
        """Take a message and pass it on."""
        if retain:
            self.retained[topic] = payload
        self._old.append((topic, payload, retain))
        del self._old[:-REPLAY_KEPT]
        self._pass_on(topic, payload, qos)
        if self.random.random() < self.weather.replay:
            old_topic, old_payload, old_retain = self.random.choice(self._old)
            if old_retain and self.random.random() < 0.3:
                self.retained[old_topic] = old_payload
            self._pass_on(old_topic, old_payload, 1)

    def inject(self, topic: str, payload: bytes, *, retain: bool) -> None:
        """A message of an attacker who sits on the broker."""
        self.publish(topic, payload, 1, retain)

    def _pass_on(self, topic: str, payload: bytes, qos: int) -> None:
        for link in self.links:
            session = self.sessions.get(link.client)
            wanted = [q for f, q in session.filters.items() if matches(f, topic)] if session else []
            if session is None or not wanted:
                continue
            level = min(qos, max(wanted))
            if link.connected:
                self.send(link, topic, payload, level)
            elif session.keeps and level == 1:
                session.queue.append((topic, payload))

    def send(self, link: Link, topic: str, payload: bytes, qos: int) -> None:
        """Send a message down a link."""
        epoch = link.epoch
        body = self._corrupted(payload)
        self.carry(lambda: link.epoch == epoch, lambda: link.on_message(topic, body), reliable=qos == 1)

    def carry(self, alive: Callable[[], bool], deliver: Callable[[], None], *, reliable: bool) -> None:
        """Bring a packet over, if its connection lives that long."""
        if self.random.random() < self.weather.loss:
            if reliable:
                self.scheduler.after(RETRY_S, lambda: self.carry(alive, deliver, reliable=True) if alive() else None)
            return
        for _ in range(2 if self.random.random() < self.weather.duplicate else 1):
            jitter = self.random.expovariate(1 / self.weather.jitter_s) if self.weather.jitter_s else 0.0
            self.scheduler.after(self.weather.delay_s + jitter, lambda: deliver() if alive() else None)

    def _corrupted(self, payload: bytes) -> bytes:
        if not payload or self.random.random() >= self.weather.corrupt:
            return payload
        place = self.random.randrange(len(payload))
        return payload[:place] + bytes([payload[place] ^ (1 << self.random.randrange(8))]) + payload[place + 1 :]


class Link:
    """A client's connection.

    Args:
        broker: the broker.
        client: client id, which is the node's id.
        role: its role, for the access rules.
        keeps_session: whether the broker keeps its session while it is away.
        on_connected: called when a session has begun.
        on_message: called with what arrives.
    """

    def __init__(
        self,
        broker: Broker,
        client: str,
        role: Role,
        *,
        keeps_session: bool,
        on_connected: Callable[[], None],
        on_message: Callable[[str, bytes], None],
    ) -> None:
        self.broker = broker
        self.client = client
        self.role = role
        self.keeps_session = keeps_session
        self.on_connected = on_connected
        self.on_message = on_message
        self.connected = False
        self.epoch = 0
        self._wanted = False
        self._cut_until = 0.0
        broker.links.append(self)

    def open(self) -> None:
        """Connect, and stay connected."""
        self._wanted = True
        self._try(self.epoch)

    def close(self) -> None:
        """The process is gone."""
        self._wanted = False
        self.connected = False
        self.epoch += 1

    def drop(self) -> None:
        """The connection breaks."""
        if self._wanted:
            self.close()
            self.open()

    def cut(self, duration_s: float) -> None:
        """A partition."""
        self._cut_until = max(self._cut_until, self.broker.scheduler.now + duration_s)
        self.drop()

    def publish(self, topic: str, payload: bytes, qos: int, retain: bool) -> None:
        """Publish, if connected."""
        assert self.broker.topics.may_publish(self.role, self.client, topic), f"{self.client} may not write {topic}"
        self._send(lambda: self.broker.publish(topic, payload, qos, retain), reliable=qos == 1)

    def subscribe(self, topic_filter: str, qos: int) -> None:
        """Subscribe, if connected."""
        self._send(lambda: self.broker.subscribe(self, topic_filter, qos), reliable=True)

    def unsubscribe(self, topic_filter: str) -> None:
        """Leave, if connected."""
        self._send(lambda: self.broker.unsubscribe(self, topic_filter), reliable=True)

    def _send(self, deliver: Callable[[], None], *, reliable: bool) -> None:
        epoch = self.epoch
        if self.connected:
            self.broker.carry(lambda: self.epoch == epoch and self.broker.up, deliver, reliable=reliable)

    def _try(self, epoch: int) -> None:
        if epoch != self.epoch or not self._wanted or self.connected:
            return
        if self.broker.up and self.broker.scheduler.now >= self._cut_until:
            self.connected = True
            self.epoch += 1
            self.broker.attach(self)
            self.on_connected()
        else:
            self.broker.scheduler.after(RECONNECT_S, lambda: self._try(epoch))
