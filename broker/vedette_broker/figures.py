"""The embedded broker's figures for Prometheus: what happened, and what it holds now."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from vedette_core.runtime.metrics import Metrics, resident_bytes

if TYPE_CHECKING:
    from vedette_broker.embedded import EmbeddedBroker

EVENTS: Final = (
    "connect_accepted",
    "connect_refused",
    "handshake_failed",
    "authority_cut",
    "expired_cut",
    "revoked_cut",
    "revocations_loaded",
    "revocations_refused",
    "packets_malformed",
    "subscribe_denied",
    "publish_accepted",
    "publish_denied",
    "publish_oversize",
    "message_dropped",
    "retained_dropped",
    "store_batches",
    "store_failures",
    "store_set_aside",
)
"""Everything that is counted; each is a value of the label ``kind``."""
PERIOD_S: Final = 2.0


async def follow(broker: EmbeddedBroker, metrics: Metrics) -> None:
    """Copy a running broker's figures into its metrics, for ever."""
    told = dict.fromkeys(EVENTS, 0)
    while True:
        for event in EVENTS:
            metrics.inc("broker_events", event, by=broker.counts[event] - told[event])
            told[event] = broker.counts[event]
        if (hub := broker.hub) is not None:
            metrics.set("broker_connections", value=hub.connections)
            metrics.set("broker_waiting_messages", value=hub.waiting)
            metrics.set("broker_retained_messages", value=len(hub.retained))
            metrics.set("broker_retained_bytes", value=hub.retained.payload_bytes)
            metrics.set("revocation_list_number", value=hub.revocation_list_number)
        metrics.set("resident_memory_bytes", value=resident_bytes())
        await asyncio.sleep(PERIOD_S)
