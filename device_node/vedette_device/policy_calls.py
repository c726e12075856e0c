"""Calls that a policy makes to the outside: webhooks, programs, messages; beside everything else, and few at a time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from vedette_core.machine import Effect
from vedette_core.runtime.jobs import Jobs
from vedette_core.runtime.mqtt import LinkConfig, MqttLink, MqttMessage
from vedette_device.policy_effects import Audit, Execute, PublishCommand, Webhook
from vedette_device.program_run import run_program
from vedette_device.sensor_broker import site_broker_context
from vedette_device.settings import PolicyBrokerSection
from vedette_device.webhook_call import OpenCalls, call_webhook
from vedette_schemas.errors import RefusedError, TransientError, VedetteError

log = logging.getLogger("vedette.policy")

CALLS_MAX: Final = 64
"""Calls that wait or run; with more, somebody does not answer, and a further one is given up."""
WEBHOOKS_AT_ONCE: Final = 4
PROGRAMS_AT_ONCE: Final = 2
WEBHOOK_PAUSES_S: Final = (2.0, 10.0)
"""Pauses before the second and third attempt of a webhook."""
PUBLISH_S: Final = 30.0
"""Seconds that a message waits for the site's broker to take it."""

Call = Webhook | Execute | PublishCommand


class PolicyCalls:
    """The calls of one device.

    Args:
        write: takes the line for the audit when a call has ended.
        broker: the site's own broker; None where no rule publishes.

    Raises:
        ConfigError: what is needed for the broker cannot be read.
    """

    def __init__(self, write: Callable[[Audit], None], broker: PolicyBrokerSection | None) -> None:
        self._write = write
        self._jobs = Jobs()
        self._pending: dict[int, Call] = {}
        self._number = 0
        self._open = OpenCalls()
        # Threads of its own: the node's signatures and downloads must not wait for somebody's slow server.
        self._threads = ThreadPoolExecutor(WEBHOOKS_AT_ONCE, thread_name_prefix="webhook")
        self._programs = asyncio.Semaphore(PROGRAMS_AT_ONCE)
        self._link: MqttLink | None = None
        if broker is not None:
            tls, login = site_broker_context(broker)
            self._link = MqttLink(LinkConfig(broker.host, broker.port, broker.client_id, tls, login=login), _ignore)

    @property
    def waiting(self) -> int:
        """Calls that have not ended."""
        return len(self._pending)

    async def start(self) -> None:
        """Connect to the site's broker, in the background and for ever."""
        if self._link is not None:
            await self._link.start()

    async def stop(self) -> None:
        """Give up what has not ended."""
        self._open.close()
        await self._jobs.cancel()
        for call in self._pending.values():
            self._end(call, "failed", "given up: the node was stopped")
        self._pending.clear()
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._link is not None:
            await self._link.stop()

    def begin(self, call: Call) -> None:
        """Make a call, in the background; how it ends is written into the audit."""
        if self.waiting >= CALLS_MAX:
            self._end(call, "failed", f"{self.waiting} calls wait already, expected at most {CALLS_MAX}")
            return
        self._number += 1
        self._pending[self._number] = call
        self._jobs.start(self._make(self._number, call), f"policy-{call.rule.name}")

    async def _make(self, number: int, call: Call) -> None:
        try:
            match call:
                case Webhook():
                    detail = f"status {await self._post(call)}"
                case Execute():
                    async with self._programs:
                        detail = await run_program(call)
                case PublishCommand():
                    await self._publish(call)
                    detail = f"published to {call.rule.topic}"
        except VedetteError as fault:
            self._end(call, "failed", str(fault))
        except Exception as fault:
            log.exception("policy %s failed", call.rule.name)
            self._end(call, "failed", repr(fault))
        else:
            self._end(call, "done", detail)
        del self._pending[number]

    async def _post(self, call: Webhook) -> int:
        for pause_s in (*WEBHOOK_PAUSES_S, None):
            try:
                return await asyncio.get_running_loop().run_in_executor(
                    self._threads, call_webhook, call.rule, call.body, self._open
                )
            except TransientError:
                if pause_s is None:
                    raise
                await asyncio.sleep(pause_s)
        raise AssertionError("the last attempt answers or raises")

    async def _publish(self, call: PublishCommand) -> None:
        if self._link is None:
            raise RefusedError("no [policy.broker] is set: nothing is published", rule="broker")
        try:
            async with asyncio.timeout(PUBLISH_S):
                await self._link.publish(call.rule.topic, call.payload, retain=call.rule.retain)
        except TimeoutError as fault:
            raise TransientError(f"{call.rule.topic}: the site's broker did not take it in {PUBLISH_S:g} s") from fault

    def _end(self, call: Call, outcome: str, detail: str) -> None:
        if outcome != "done":
            log.warning("policy %s: %s", call.rule.name, detail)
        with contextlib.suppress(VedetteError):  # the caller has said in the log what it could not write
            self._write(
                Audit(call.rule.action, outcome, call.rule.name, call.alert.id, call.alert.entity, None, detail[:1000])
            )


def describe(call: Effect) -> str:
    """What a call would do, for a dry run."""
    match call:
        case Webhook(rule):
            return f"POST {rule.url}"
        case Execute(rule):
            return f"run {' '.join(rule.command)}"
        case PublishCommand(rule):
            return f"publish to {rule.topic}"
    raise AssertionError(f"{call!r} is no call")


async def _ignore(message: MqttMessage) -> None:
    """Nothing is subscribed to."""
