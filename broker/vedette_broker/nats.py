"""Configuration for NATS, one server or a cluster, with the users made of the same topic grammar that the others obey.

NATS has no pattern for "the user's own id": every certificate that was issued is a user of its own, named by its URI
(``spiffe://{site}/{role}/{id}``), and the file of users is written again and reloaded (SIGHUP) when one is added or
revoked. It knows no revocation lists: a revoked id is left out.

Source: docs.nats.io (MQTT, TLS map, authorization, JetStream clustering); measured with nats-server 2.9.10 and 2.15.1.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from vedette_broker.limits import INFLIGHT_MAX, PACKET_BYTES_MAX
from vedette_core.crypto.certificates import CertificateRole, access_role
from vedette_schemas.errors import ConfigError, PeerError
from vedette_schemas.topics import ACCESS, Action, Role, Topics, check_id

CONF: Final = "nats.conf"
USERS: Final = "users.conf"
OLDEST: Final = (2, 9)
"""The oldest release that the contracts were run against: Debian 12's."""
CONNECTIONS_MAX: Final = 5000
ACK_WAIT: Final = "10s"
"""What is not acknowledged is sent again after this, not when its client comes back: duplicates are part of it."""
MEMORY: Final = "256MB"
FILE: Final = "4GB"


@dataclass(frozen=True, slots=True)
class ClusterNode:
    """One server of a cluster.

    Attributes:
        name: its name; also its folder.
        host: name or address by which the others call it.
    """

    name: str
    host: str


@dataclass(frozen=True, slots=True)
class NatsConfig:
    """What a rendered configuration says.

    Attributes:
        site: the site that is served.
        bundle: directory of the broker's bundle, as NATS sees it.
        state_directory: where JetStream keeps what must survive.
        host: address that MQTT listens on.
        port: its TCP port.
        client_host: address of the listener for NATS clients, of which there are none: no user may use it.
        client_port: its TCP port.
        version: the release that will read it; some settings that matter are errors in older ones.
        node: which server of `cluster` this is for.
        cluster: every server, this one included; empty for a single server.
        route_host: address that the other servers of the cluster are listened for on.
        route_ports: TCP port of each server's routes, in the order of `cluster`.
        routes_bundle: directory of the certificates for routes, as NATS sees it.
    """

    site: str
    bundle: str
    state_directory: str = "/var/lib/nats"
    host: str = "127.0.0.1"
    port: int = 8883
    client_host: str = "127.0.0.1"
    client_port: int = 4222
    version: tuple[int, int] = OLDEST
    node: int = 0
    cluster: Sequence[ClusterNode] = ()
    route_host: str = "0.0.0.0"
    route_ports: Sequence[int] = ()
    routes_bundle: str = ""


def render(config: NatsConfig) -> str:
    """The text of `CONF`, which includes `USERS` from the same folder.

    Raises:
        ConfigError: a value is not usable, or the cluster is not one.
    """
    for name in ("bundle", "state_directory", "host", "client_host", "route_host", "routes_bundle"):
        value: str = getattr(config, name)
        if any(ord(c) < 32 for c in value) or value != value.strip():
            raise ConfigError(f"nats {name}: found {value!r}, expected one line without spaces around it")
    try:
        check_id(config.site, "site")
        for each in config.cluster:
            check_id(each.name, "node")
    except PeerError as fault:
        raise ConfigError(f"nats {fault}") from fault
    if config.version < OLDEST:
        raise ConfigError(f"nats version: found {_dotted(config.version)}, expected {_dotted(OLDEST)} or newer")
    if config.cluster and (len(config.cluster) < 3 or len({n.name for n in config.cluster}) != len(config.cluster)):
        raise ConfigError(
            f"nats cluster: found {len(config.cluster)} servers, expected three or more of different names: "
            "with fewer, one that ends takes the majority along"
        )
    if config.cluster and (len(config.route_ports) != len(config.cluster) or not config.routes_bundle):
        raise ConfigError("nats cluster: found servers without ports or certificates for their routes, expected both")
    name = config.cluster[config.node].name if config.cluster else f"{config.site}-nats"
    replicas = ["  # Without it, what is made while one server is alone stays on that one.", "  stream_replicas: 3"]
    lines = [
        f"# Vedette, site {config.site}: made by `vedette broker render nats`.",
        f"server_name: {_quoted(name)}",
        "# Nobody but MQTT clients may log in; this listener cannot be switched off.",
        f"host: {_quoted(config.client_host)}",
        f"port: {config.client_port}",
        "# Counts the topic too. Releases before 2.10 do not apply it to MQTT: there, receivers drop what is too "
        "large.",
        f"max_payload: {PACKET_BYTES_MAX}",
        f"max_connections: {CONNECTIONS_MAX}",
        "",
        *_jetstream(config),
        "",
        "mqtt {",
        f"  host: {_quoted(config.host)}",
        f"  port: {config.port}",
        "  # The default re-sends what is not acknowledged after 30 s.",
        f"  ack_wait: {_quoted(ACK_WAIT)}",
        f"  max_ack_pending: {INFLIGHT_MAX}",
        *(replicas if config.cluster else []),
        *_tls(config.bundle, "verify_and_map: true"),
        "}",
        *_cluster(config),
        "",
        f"include {USERS}",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def render_users(site: str, issued: Iterable[tuple[str, CertificateRole]]) -> str:
    """The text of `USERS`: what each certificate's holder may do; whoever is not in it is not let in.

    Args:
        site: the site's id.
        issued: id and role of every certificate that counts; revoked ones are left out by the caller.

    Raises:
        ConfigError: an id or the site's is invalid.
    """
    lines = [f"# Vedette, site {site}: made from the topic grammar and the ids that the site's authority issued."]
    lines += ["authorization {", "  users: ["]
    try:
        topics = Topics(site)
        for holder, role in sorted(set(issued)):
            if (access := access_role(role)) is not None:
                lines += _user(topics, check_id(holder), role, access)
    except PeerError as fault:
        raise ConfigError(f"nats {fault}") from fault
    return "\n".join([*lines, "  ]", "}"]) + "\n"


def subjects(topic_filter: str) -> list[str]:
    """A topic filter as NATS subjects; ``a/#`` also matches ``a``, for which NATS needs a subject of its own."""
    levels = ["*" if level == "+" else level for level in topic_filter.split("/")]
    if levels[-1] != "#":
        return [".".join(levels)]
    parent = ".".join(levels[:-1])
    return [parent, f"{parent}.>"]


def _user(topics: Topics, holder: str, role: CertificateRole, access: Role) -> list[str]:
    allowed: dict[Action, list[str]] = {Action.READ: ["$MQTT.sub.>"], Action.WRITE: []}
    for rule in ACCESS:
        if rule.role is access:
            allowed[rule.action] += subjects(f"{topics.root}/{rule.pattern.replace('%u', holder)}")
    publish = f"allow: {json.dumps(allowed[Action.WRITE])}" if allowed[Action.WRITE] else 'deny: [">"]'
    user = f"spiffe://{topics.site}/{role.value}/{holder}"
    return [
        f'    {{ user: {_quoted(user)}, allowed_connection_types: ["MQTT"], permissions: {{',
        f"        publish: {{ {publish} }},",
        f"        subscribe: {{ allow: {json.dumps(allowed[Action.READ])} }} }} }}",
    ]


def _jetstream(config: NatsConfig) -> list[str]:
    lines = [
        "jetstream {",
        f"  store_dir: {_quoted(config.state_directory)}",
        f"  max_mem: {MEMORY}",
        f"  max_file: {FILE}",
    ]
    if config.version >= (2, 10):
        lines += [
            "  # The default synchronises every two minutes: a power cut would lose what was acknowledged.",
            '  sync_interval: "always"',
        ]
    if config.version >= (2, 15):
        lines += [
            "  # The default of 1000 refuses the subscriptions of devices after the first few hundred.",
            "  limits { default_max_consumers: -1 }",
        ]
    return [*lines, "}"]


def _tls(bundle: str, verify: str) -> list[str]:
    folder = bundle.rstrip("/")
    return [
        "  tls {",
        f"    cert_file: {_quoted(f'{folder}/tls.crt')}",
        f"    key_file: {_quoted(f'{folder}/tls.key')}",
        f"    ca_file: {_quoted(f'{folder}/ca.crt')}",
        f"    {verify}",
        "    timeout: 5",
        "  }",
    ]


def _cluster(config: NatsConfig) -> list[str]:
    if not config.cluster:
        return []
    routes = [
        f"nats://{f'[{node.host}]' if ':' in node.host else node.host}:{port}"
        for node, port in zip(config.cluster, config.route_ports, strict=True)
    ]
    return [
        "",
        "cluster {",
        f"  name: {_quoted(config.site)}",
        f"  host: {_quoted(config.route_host)}",
        f"  port: {config.route_ports[config.node]}",
        f"  routes: {json.dumps(routes)}",
        *_tls(config.routes_bundle, "verify: true"),
        "}",
    ]


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
