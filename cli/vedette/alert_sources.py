"""Where alerts are read from: the site's broker, live, or a file of alert lines."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

from vedette_core.runtime.identity import client_context, load_node
from vedette_core.runtime.mqtt import LinkConfig, MqttLink, MqttMessage
from vedette_schemas import alert as alerts
from vedette_schemas.alert import Alert
from vedette_schemas.errors import ConfigError, PeerError
from vedette_schemas.topics import Topics

log = logging.getLogger("vedette.alerts")

CONNECT_TIMEOUT_S: Final = 10.0
SEEN_MAX: Final = 10_000
"""Messages that are remembered so that one that is delivered again is not reported again."""
WAITING_MAX: Final = 100
"""Alerts that wait for their reader; what is beyond waits at the broker."""
LINE_BYTES_MAX: Final = 64 * 1024
"""Longer lines are cut, and refused: an alert has at most 1 kB."""
POLL_S: Final = 0.5
REFUSED_SHOWN_MAX: Final = 5
"""Refused lines that are told one by one; a file of something else would fill the screen."""


class LiveAlerts:
    """Alerts as the site's devices publish them, each once, until the end of the program.

    Args:
        bundle: folder of an analytics bundle.
        host: the broker's host.
        port: the broker's port.

    Attributes:
        site: the site's id, from the bundle.
        refused: messages that were no alert of the device whose topic they came on.

    Raises:
        ConfigError: the bundle is not one.
    """

    def __init__(self, bundle: Path, host: str, port: int) -> None:
        node = load_node(bundle, time.time())
        self.site = node.site
        self.refused = 0
        self._topics = Topics(node.site)
        self._link = MqttLink(LinkConfig(host, port, node.id, client_context(node.bundle)), self._take)
        self._waiting: asyncio.Queue[Alert] = asyncio.Queue(WAITING_MAX)
        self._seen: OrderedDict[tuple[str, str, int], None] = OrderedDict()

    async def __aenter__(self) -> Self:
        await self._link.start()
        try:
            await self._link.subscribe(f"{self._topics.root}/device/+/up/alert", 1)
            await self._link.wait_connected(CONNECT_TIMEOUT_S)
            await self._link.wait_subscribed(CONNECT_TIMEOUT_S)
        except BaseException:
            await self._link.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._link.stop()

    async def __aiter__(self) -> AsyncIterator[Alert]:
        while True:
            yield await self._waiting.get()

    async def _take(self, message: MqttMessage) -> None:
        try:
            sender = self._topics.parse(message.topic).device
            alert = alerts.decode(message.payload)
            if alert.device != sender:
                raise PeerError(f"found an alert of {alert.device} on the topic of {sender}", reason="sender")
        except PeerError as fault:
            self.refused += 1
            log.warning("%s: %s", message.topic, fault)
            return
        key = (alert.device, alert.id, alert.seq)
        if key in self._seen:
            return
        self._seen[key] = None
        if len(self._seen) > SEEN_MAX:
            self._seen.popitem(last=False)
        await self._waiting.put(alert)


class FileAlerts:
    """Alerts of a file, one JSON document a line, as ``vedette alerts tail --json`` prints them.

    Args:
        path: the file; ``-`` is standard input.
        follow: go on with what is appended, until the end of the program.

    Attributes:
        lines: lines that were not empty.
        refused: those among them that are no alert.
    """

    def __init__(self, path: Path, *, follow: bool = False) -> None:
        self._path, self._follow = path, follow
        self.lines = 0
        self.refused = 0

    async def __aiter__(self) -> AsyncIterator[Alert]:
        with self._open() as file:
            async for line in self._read(file):
                text = line.strip()
                if not text:
                    continue
                self.lines += 1
                try:
                    alert = alerts.decode(text)
                except PeerError as fault:
                    self.refuse(fault)
                else:
                    yield alert

    def refuse(self, fault: PeerError) -> None:
        """Count the line that was read last as refused."""
        self.refused += 1
        if self.refused <= REFUSED_SHOWN_MAX:
            log.warning("%s: line %d: %s", self._path, self.lines, fault)

    async def _read(self, file: BinaryIO) -> AsyncIterator[bytes]:
        """Whole lines; the last one of a file that is not followed may lack its end."""
        begun = b""
        while True:
            piece = await asyncio.to_thread(file.readline, LINE_BYTES_MAX)
            begun += piece
            if begun.endswith(b"\n") or len(begun) >= LINE_BYTES_MAX:
                yield begun
                begun = b""
            elif not piece and self._follow:
                await asyncio.sleep(POLL_S)
            elif not piece:
                yield begun
                return

    def _open(self) -> BinaryIO:
        if str(self._path) == "-":
            return sys.stdin.buffer
        try:
            return self._path.open("rb")
        except OSError as fault:
            raise ConfigError(
                f"{self._path}: cannot be read ({fault.strerror}), expected alerts, one a line"
            ) from fault
