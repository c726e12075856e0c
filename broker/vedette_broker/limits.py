"""Limits of the MQTT contract: the embedded broker keeps them, and other brokers are configured with them."""

from __future__ import annotations

from typing import Final

from vedette_schemas.codec import PAYLOAD_BYTES_MAX

PACKET_BYTES_MAX: Final = PAYLOAD_BYTES_MAX + 4096
"""A connection that sends a larger packet is closed; a payload just above the contract's limit is only dropped."""
CONNECT_BYTES_MAX: Final = 70_000
"""Client id, will topic and a will payload of at most 65,535 bytes."""
CONNECTIONS_MAX: Final = 2000
"""Above a site's fleet by far; each costs a file descriptor and, with TLS, a few hundred KB in the embedded broker."""
CONNECT_TIMEOUT_S: Final = 10.0
"""For the TLS handshake, and again for the CONNECT."""
KEEPALIVE_MAX_S: Final = 600
"""Also for clients that ask for none: a silent connection ends, and its will is published."""
FILTERS_MAX: Final = 1000
"""Subscriptions a client: a device has about ten, and more while it fetches an artifact."""
INFLIGHT_MAX: Final = 20
"""QoS 1 messages without PUBACK: a client that acknowledges late holds the rest back at the broker."""
QUEUE_MESSAGES_MAX: Final = 10_000
QUEUE_BYTES_MAX: Final = 64 * 1024 * 1024
"""What waits for one client."""
RETAINED_MAX: Final = 10_000
RETAINED_BYTES_MAX: Final = 256 * 1024 * 1024
"""Retained messages of all clients; one beyond it is delivered but not kept."""
CLIENT_RETAINED_MAX: Final = 32
CLIENT_RETAINED_BYTES_MAX: Final = 1024 * 1024
"""Of one device: it retains its state, and nothing else of the contract. The site's own nodes share the room of all."""
HANDSHAKES_MAX: Final = 1024
ADDRESS_HANDSHAKES_MAX: Final = 256
"""Connections that have not said who they are, in all and from one address: those in TLS or before CONNECT."""
COMPLAINTS_MAX: Final = 20
"""Log lines about what one connection may not do."""
WATCH_S: Final = 2.0
"""How often certificates, and the files that they are judged by, are looked at."""
UNCONFIRMED_MAX: Final = 256
"""PUBACKs of one publisher that wait for the store; then its next packet is not read."""
STALL_S: Final = 10.0
"""How long a publisher waits for room in the aggregator's queue, and a write for a client that does not read."""
TURN_S: Final = 0.002
"""How long one connection's packets are handled before the others have their turn."""
