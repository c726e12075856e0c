"""Configuration for Mosquitto, with the access file made of the same topic grammar that the embedded broker obeys.

Mosquitto answers every SUBSCRIBE and PUBLISH as if it were allowed; its access file acts on delivery.

Source: mosquitto.conf(5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vedette_broker.limits import (
    INFLIGHT_MAX,
    KEEPALIVE_MAX_S,
    PACKET_BYTES_MAX,
    QUEUE_BYTES_MAX,
    QUEUE_MESSAGES_MAX,
)
from vedette_schemas.codec import PAYLOAD_BYTES_MAX
from vedette_schemas.errors import ConfigError, PeerError
from vedette_schemas.topics import ACCESS, Role, Topics

CONF: Final = "mosquitto.conf"
ACL: Final = "vedette.acl"
MANY: Final = frozenset({Role.DEVICE, Role.BOOTSTRAP})
"""Roles whose holders have ids of their own. Mosquitto's patterns cannot tell them apart: see ADR 0016."""
CONNECTIONS_MAX: Final = 5000
"""More than the embedded broker's: a connection costs Mosquitto a tenth of the memory."""


@dataclass(frozen=True, slots=True)
class MosquittoConfig:
    """What a rendered configuration says.

    Attributes:
        site: the site that is served.
        bundle: directory of the broker's bundle, as Mosquitto sees it.
        directory: where the two files will be, as Mosquitto sees it.
        state_directory: where it keeps sessions and retained messages; must exist and be writable by it.
        host: address to listen on; empty for every address.
        port: TCP port.
        revocations: whether the bundle has a revocation list (``crl.pem``); Mosquitto does not start without the
            file then, and lets nobody in once the list is past its next update.
        run_as: user to drop to when it is started by root; empty for its own default.
    """

    site: str
    bundle: str
    directory: str = "/etc/mosquitto"
    state_directory: str = "/var/lib/mosquitto"
    host: str = "127.0.0.1"
    port: int = 8883
    run_as: str = ""
    revocations: bool = False


def render(config: MosquittoConfig) -> dict[str, str]:
    """The files of a Mosquitto that keeps the contract.

    Returns:
        File name to text: `CONF` and `ACL`.

    Raises:
        ConfigError: a value would break out of its line, the site's id is invalid, or the port is none.
    """
    for name in ("bundle", "directory", "state_directory", "host", "run_as"):
        value: str = getattr(config, name)
        if any(ord(c) < 32 for c in value) or value != value.strip():
            raise ConfigError(f"mosquitto {name}: found {value!r}, expected one line without spaces around it")
    try:
        topics = Topics(config.site)
    except PeerError as fault:
        raise ConfigError(f"mosquitto {fault}") from fault
    if not 1 <= config.port <= 65535:
        raise ConfigError(f"mosquitto port: found {config.port}, expected 1 to 65535")
    return {CONF: _conf(config), ACL: _acl(topics)}


def _conf(config: MosquittoConfig) -> str:
    bundle, state = config.bundle.rstrip("/"), config.state_directory.rstrip("/")
    run_as = [f"user {config.run_as}"] if config.run_as else []
    lines = [
        f"# Vedette, site {config.site}: made by `vedette broker render mosquitto`.",
        "per_listener_settings false",
        *run_as,
        "",
        f"listener {config.port} {config.host}".rstrip(),
        f"cafile {bundle}/ca.crt",
        f"certfile {bundle}/tls.crt",
        f"keyfile {bundle}/tls.key",
        *([f"crlfile {bundle}/crl.pem"] if config.revocations else []),
        "tls_version tlsv1.2",
        "require_certificate true",
        "# User and client id are the certificate's common name, whatever CONNECT says.",
        "use_identity_as_username true",
        "use_username_as_clientid true",
        "allow_anonymous false",
        f"acl_file {config.directory.rstrip('/')}/{ACL}",
        "",
        "# A message above the limit is dropped; a packet that cannot be a message of ours ends its connection.",
        f"message_size_limit {PAYLOAD_BYTES_MAX}",
        f"max_packet_size {PACKET_BYTES_MAX}",
        f"max_connections {CONNECTIONS_MAX}",
        f"max_keepalive {KEEPALIVE_MAX_S}",
        f"max_inflight_messages {INFLIGHT_MAX}",
        "# The default of 1000 drops the rest although it was acknowledged.",
        f"max_queued_messages {QUEUE_MESSAGES_MAX}",
        f"max_queued_bytes {QUEUE_BYTES_MAX}",
        "memory_limit 1073741824",
        "set_tcp_nodelay true",
        "",
        "# The default saves every 30 minutes: a crash would lose sessions and retained state of that time.",
        "persistence true",
        f"persistence_location {state}/",
        "autosave_interval 30",
        "persistent_client_expiration 7d",
        "",
        "# Nobody may read $SYS.",
        "sys_interval 0",
        "log_dest stderr",
        "log_type error",
        "log_type warning",
        "log_type notice",
    ]
    return "\n".join(lines) + "\n"


def _acl(topics: Topics) -> str:
    lines = [
        f"# Vedette, site {topics.site}: made from the topic grammar; what is not here is denied.",
        "# Every certificate, %u being its common name. Devices have names below device/, tokens below enrol/.",
    ]
    lines += [f"pattern {rule.action} {topics.root}/{rule.pattern}" for rule in ACCESS if rule.role in MANY]
    for role in Role:
        if role in MANY:
            continue
        # The authority gives the id of a role to that role only; the patterns above are for devices.
        lines += ["", f"user {role}"]
        lines += [f"topic deny {topics.root}/{branch}/{role}/#" for branch in ("device", "enrol")]
        lines += [f"topic {rule.action} {topics.root}/{rule.pattern}" for rule in ACCESS if rule.role is role]
    return "\n".join(lines) + "\n"
