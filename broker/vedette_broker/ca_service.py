"""The authority's process: answers requests for certificates over MQTT, and keeps the revocation list published.

It has a bundle of its own, with the role ``authority``, and no other way in. The private key of the authority is read
for each answer and not kept.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from typing import Final

from cryptography import x509

from vedette_broker import ca, ca_authority, ca_enrolment, ca_revocation
from vedette_broker.allow_list import AllowList
from vedette_broker.ca_settings import AuthoritySettings
from vedette_core.crypto.certificate_chain import der
from vedette_core.crypto.certificates import CertificateRole
from vedette_core.runtime.identity import Bundle, client_context, load_node, reload_context
from vedette_core.runtime.jobs import run_until_signal
from vedette_core.runtime.metrics import AUTHORITY_METRICS, Metrics, serve_configured
from vedette_core.runtime.mqtt import LinkConfig, MqttLink, MqttMessage
from vedette_schemas import codec
from vedette_schemas.enrolment import CertificateReply
from vedette_schemas.errors import ConfigError, PeerError, RefusedError, TransientError, VedetteError
from vedette_schemas.topics import RENEW, Topics

log = logging.getLogger("vedette.ca")

AUTHORITY_ID: Final = CertificateRole.AUTHORITY.value
WATCH_S: Final = 1.0
LOOK_ANYWAY_S: Final = 60.0
"""Whether half of the list's life is over is asked this often, though nobody changed anything."""
"""How soon a revocation that a person made is published."""
LAST_CHANCE_S: Final = 86_400.0
"""So long before its end the own certificate is renewed, whether or not the broker knows who issues."""
WARN_EACH_S: Final = 86_400.0
WINDOW_S: Final = 60.0
WINDOW_REQUESTS: Final = 600
"""Requests that are answered a minute, over all nodes; an answer costs two signatures and a write to the disk."""
NODE_REQUESTS: Final = 20
"""Of one node or token, whose topic it is: it asks every five seconds at most, and all share the minute above."""


class RequestWindow:
    """How many requests came in the last `WINDOW_S`.

    Without a limit for each, one node could use up what is answered, until the certificates of all others had ended.

    Args:
        all_max: requests of all.
        each_max: requests of one.
    """

    def __init__(self, all_max: int = WINDOW_REQUESTS, each_max: int = NODE_REQUESTS) -> None:
        self._all_max, self._each_max = all_max, each_max
        self._taken: deque[tuple[float, str]] = deque()
        self._each: Counter[str] = Counter()

    def take(self, who: str, now: float) -> None:
        """Count a request.

        Args:
            who: the node or token whose topic it came on.
            now: seconds of a clock that only goes forward.

        Raises:
            PeerError: too many of this one (``limit``): it gets no answer.
            TransientError: too many of all.
        """
        while self._taken and self._taken[0][0] <= now - WINDOW_S:
            _, gone = self._taken.popleft()
            self._each[gone] -= 1
            if not self._each[gone]:
                del self._each[gone]
        if self._each[who] >= self._each_max:
            raise PeerError(f"{who}: found more than {self._each_max} requests in a minute", reason="limit")
        if len(self._taken) >= self._all_max:
            raise TransientError(f"the authority has answered {self._all_max} requests in the last minute")
        self._taken.append((now, who))
        self._each[who] += 1


class AuthorityService:
    """One authority's process.

    Args:
        settings: its settings.

    Raises:
        ConfigError: no certificate authority there, or its own bundle cannot be used.
    """

    def __init__(self, settings: AuthoritySettings) -> None:
        self._settings = settings
        self._directory = settings.authority
        now = time.time()
        line = {line.id: line for line in ca.list_issued(self._directory)}.get(AUTHORITY_ID)
        if line is None or line.not_after <= now:
            ca.issue(self._directory, AUTHORITY_ID, CertificateRole.AUTHORITY, now=now, replace=line is not None)
        self._node = load_node(self._directory / "bundles" / AUTHORITY_ID, now)
        self._topics = Topics(self._node.site)
        self._allow = AllowList(settings.allow.file, settings.allow.program)
        self._metrics = Metrics(AUTHORITY_METRICS)
        self._context = client_context(self._node.bundle)
        self._link = MqttLink(
            LinkConfig(
                settings.broker.host,
                settings.broker.port,
                AUTHORITY_ID,
                self._context,
                keepalive_s=settings.broker.keepalive_s,
            ),
            self._take,
            on_connect=self._connected,
        )
        self._published: int | None = None
        self._told: tuple[x509.Certificate, ...] = ()
        self._window = RequestWindow()
        self._warned = -math.inf

    async def run(self, stop: asyncio.Event) -> None:
        """Answer until `stop` is set."""
        stop_serving = serve_configured(self._metrics, self._settings.metrics)
        await self._link.subscribe(self._topics.enrolment_request("+"), 1)
        await self._link.subscribe(self._topics.renewal_request("+"), 1)
        await self._link.start()
        watching = asyncio.create_task(self._watch(), name="watch")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        try:
            done, _ = await asyncio.wait([watching, stopping], return_when=asyncio.FIRST_COMPLETED)
            for job in done - {stopping}:
                job.result()
        finally:
            for job in (watching, stopping):
                job.cancel()
            await asyncio.gather(watching, stopping, return_exceptions=True)
            await self._link.stop()
            stop_serving()

    async def _take(self, message: MqttMessage) -> None:
        kind = "unknown"
        try:
            parsed = self._topics.parse(message.topic)
            ask: partial[CertificateReply]
            kind, who = parsed.kind, parsed.device or ""
            if kind == "enrol":
                answer = self._topics.enrolment_reply(who)
                ask = partial(ca_enrolment.enrol, allow=self._allow)
            elif kind == "rpc" and parsed.key == RENEW:
                answer = self._topics.renewal_reply(who)
                ask = partial(ca_enrolment.renew, device=who)
            else:
                raise PeerError(f"topic {message.topic[:120]!r}: found a message that is not for here", reason="topic")
            # Before anything of it is read. Who is over a limit gets no answer: nodes ask again by themselves.
            self._window.take(who, time.monotonic())
            request = ca_enrolment.request_id(message.payload)
            reply = await self._answer(kind, request, partial(ask, self._directory, message.payload, now=time.time()))
            await self._link.publish(answer, codec.pack(reply), qos=0)
        except (PeerError, TransientError) as error:
            self._metrics.inc("messages", kind, _outcome(error))
            log.log(logging.DEBUG if _outcome(error) == "limit" else logging.INFO, "%s: %s", message.topic, error)

    async def _answer(self, kind: str, request: str, ask: Callable[[], CertificateReply]) -> CertificateReply:
        try:
            reply = await asyncio.to_thread(ask)
        except (PeerError, RefusedError, TransientError, ConfigError) as fault:
            self._metrics.inc("messages", kind, _outcome(fault))
            log.warning("%s: %s", kind, fault)
            return ca_enrolment.refusal(request, fault)
        self._metrics.inc("messages", kind, "accepted")
        return reply

    def _connected(self, _session_present: bool) -> None:
        self._published, self._told = None, ()  # the broker may have forgotten the list

    async def _watch(self) -> None:
        """Publish a list that is new, make the next one in time, and renew the own bundle."""
        newest, seen, look_at = None, None, 0.0
        while True:
            try:
                stamps = self._stamps()
                if newest is None or stamps != seen or time.monotonic() >= look_at:
                    newest = await asyncio.to_thread(ca_revocation.refresh_if_due, self._directory, now=time.time())
                    seen, look_at = stamps, time.monotonic() + LOOK_ANYWAY_S
                    self._look_at_end()
                self._metrics.set("revocation_list_number", value=newest.number)
                if self._link.connected and self._published != newest.number:
                    await self._link.publish(self._topics.revoked, newest.message, retain=True)
                    self._published, self._told = newest.number, newest.authorities
                    log.info("revocation list %d: %d certificates", newest.number, len(newest.entries))
            except VedetteError as fault:
                log.error("%s", fault)
            try:  # whatever is wrong with the list: without its certificate the authority serves nobody
                await asyncio.to_thread(self._renew_self)
            except VedetteError as fault:
                log.error("%s", fault)
            await asyncio.sleep(WATCH_S)

    def _look_at_end(self) -> None:
        ends = ca_authority.ends_at(self._directory)
        self._metrics.set("authority_expiry_timestamp_seconds", value=ends)
        said = ca_authority.warning(ends, time.time())
        if said and time.monotonic() >= self._warned + WARN_EACH_S:
            self._warned = time.monotonic()
            log.warning("%s", said)

    def _stamps(self) -> tuple[int, ...]:
        """When the index and the list last changed: reading both costs a large site a fifth of a core otherwise."""
        paths = (self._directory / "index.json", self._directory / ca_revocation.LIST_FILE)
        return tuple(path.stat().st_mtime_ns if path.exists() else 0 for path in paths)

    def _renew_self(self) -> None:
        now, node = time.time(), self._node
        issuer = ca_authority.issues(self._directory)
        if node.intermediate == der(issuer):
            due = now >= (node.tls_not_before + node.tls_not_after) / 2
        else:
            # At once: the earlier authority may go at any time. But a broker that has not been told of the newer one
            # would let nobody in who could tell it.
            due = issuer in self._told or now >= node.tls_not_after - LAST_CHANCE_S
        if not due:
            return
        self._node = load_node(ca.renew(self._directory, AUTHORITY_ID, now=now), now)
        self._link.reconnect(self._reload)
        log.info("renewed the authority's own certificate")

    def _reload(self) -> None:
        try:
            reload_context(self._context, Bundle(self._directory / "bundles" / AUTHORITY_ID))
        except ConfigError as fault:
            log.error("%s", fault)


def _outcome(fault: VedetteError) -> str:
    if isinstance(fault, PeerError):
        return fault.reason
    return fault.rule if isinstance(fault, RefusedError) else "deferred"


def serve(settings: AuthoritySettings) -> None:
    """Run an authority until SIGTERM or SIGINT.

    Raises:
        VedetteError: it cannot start, or cannot go on.
    """
    run_until_signal(AuthorityService(settings).run)
