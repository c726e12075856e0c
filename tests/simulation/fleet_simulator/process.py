"""What aggregator and device have in common: a disk, a link, a clock that jumps, and a life that may end any time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from vedette_core.machine import Count, Effect, Event, Note, Persist, Publish, Subscribe, Tick, Unsubscribe
from vedette_schemas.topics import Role

from .disk import Disk, PowerLost
from .network import Broker, Link
from .observer import Observer
from .schedule import Scheduler
from .site import EPOCH, Site

RESTART_S: Final = 20.0
TICK_MAX_S: Final = 60.0
"""A shell ticks this often whatever the deadline: the clock may have been set back since."""


class Process:
    """A node. `boot` makes everything that is in memory anew; only the disk stays.

    Args:
        name: node id.
        role: its role.
        scheduler: simulated time.
        broker: the broker.
        site: keys and certificates.
        observer: sees everything that is said and done.
        keeps_session: whether the broker keeps its session.
    """

    def __init__(
        self,
        name: str,
        role: Role,
        scheduler: Scheduler,
        broker: Broker,
        site: Site,
        observer: Observer,
        *,
        keeps_session: bool,
    ) -> None:
        self.name = name
        self.scheduler = scheduler
        self.site = site
        self.topics = site.topics
        self.observer = observer
        self.disk = Disk()
        self.up = False
        self.clock_offset_s = 0.0
        self.crashes = 0
        self.restart_s = RESTART_S
        self._generation = 0
        self._timer = 0
        self.link = Link(
            broker,
            name,
            role,
            keeps_session=keeps_session,
            on_connected=lambda: self._guarded(self.connected),
            on_message=lambda topic, payload: self._guarded(lambda: self._take(topic, payload)),
        )

    # what a kind of node adds

    machine: Any

    def start(self) -> None:
        """Make what is in memory, from the disk."""
        raise NotImplementedError

    def connected(self) -> None:
        """A session has begun."""
        raise NotImplementedError

    def take(self, topic: str, payload: bytes) -> None:
        """A message has arrived."""
        raise NotImplementedError

    def special(self, effect: Effect) -> None:
        """An effect that only this kind of node knows."""
        raise NotImplementedError

    def send(self, publish: Publish) -> None:
        """Publish."""
        self.observer.published(self.name, publish)
        self.link.publish(publish.topic, publish.payload, publish.qos, publish.retain)

    # life

    def now(self) -> float:
        """What this node's clock shows, epoch seconds."""
        return EPOCH + self.scheduler.now + self.clock_offset_s

    def boot(self) -> None:
        """Start the process."""
        if self.up:
            return
        self.up = True
        self._generation += 1
        self.observer.tell(f"{self.name}: starts")
        self._guarded(self.start)
        if self.up:
            self.link.open()

    def crash(self, why: str = "killed") -> None:
        """End the process at once, and start it again after a while."""
        if not self.up:
            return
        self.crashes += 1
        self.up = False
        self._generation += 1
        self.link.close()
        self.observer.tell(f"{self.name}: CRASH ({why})")
        self.scheduler.after(self.restart_s, self.boot)

    def later(self, delay_s: float, what: Callable[[], None]) -> None:
        """Do something later, if this process still lives then."""
        generation = self._generation
        self.scheduler.after(delay_s, lambda: self._guarded(what) if generation == self._generation else None)

    def handle(self, event: Event) -> None:
        """Feed the machine, carry out what it asks for, and set its timer."""
        effects = self.machine.handle(event, self.now())
        self.observer.handled(self.name, event, effects)
        self.carry_out(effects)
        self.set_timer()

    def carry_out(self, effects: Iterable[Effect]) -> None:
        """Carry effects out in their order."""
        for effect in effects:
            match effect:
                case Persist(key=key, value=value):
                    self.disk.put(key, value)
                case Publish():
                    self.send(effect)
                case Subscribe(topic_filter=topic_filter, qos=qos):
                    self.link.subscribe(topic_filter, qos)
                case Unsubscribe(topic_filter=topic_filter):
                    self.link.unsubscribe(topic_filter)
                case Count() | Note():
                    pass
                case _:
                    self.special(effect)

    def set_timer(self) -> None:
        """Ask to be woken when the machine wants it, by the monotonic clock."""
        deadline = self.machine.next_deadline()
        self._timer += 1
        if deadline is not None:
            timer = self._timer
            # A second at least, as a real shell's ticker has: a deadline in the past is no busy loop.
            self.later(min(TICK_MAX_S, max(1.0, deadline - self.now())), lambda: self._tick(timer))

    def _tick(self, timer: int) -> None:
        if timer == self._timer:
            self.handle(Tick())

    def _take(self, topic: str, payload: bytes) -> None:
        if self.up:
            self.take(topic, payload)

    def _guarded(self, what: Callable[[], None]) -> None:
        try:
            what()
        except PowerLost as lost:
            self.crash(f"at the write of {lost}")
