"""The files of another broker: which there are, and putting them where they belong."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from vedette_broker import ca
from vedette_broker.ca_revocation import status_of
from vedette_broker.ca_store import read_index
from vedette_broker.nats import CONF, USERS, ClusterNode, NatsConfig, render, render_users
from vedette_broker.nats_routes import make_route_bundles
from vedette_core.crypto.certificates import CertificateRole
from vedette_schemas.errors import ConfigError

ROUTE_PORT: Final = 6222
_KEY: Final = ".key"


def nats_files(
    site: str,
    bundle: Path,
    out: Path,
    state: str,
    host: str,
    port: int,
    authority: Path | None,
    version: str,
    cluster: Sequence[str],
    *,
    users_only: bool,
) -> dict[str, bytes]:
    """The files of a NATS server, or of each server of a cluster in a folder of its own.

    Args:
        site: the site's id.
        bundle: the broker's bundle.
        out: where the files will be.
        state: where it keeps what must survive.
        host: address that MQTT listens on.
        port: its TCP port.
        authority: folder of the certificate authority.
        version: the release of NATS, as ``2.9``.
        cluster: ``NAME=HOST`` for each server; empty for a single one.
        users_only: whether only the users are wanted.

    Returns:
        Path below `out` to content.

    Raises:
        ConfigError: something is missing or not usable.
    """
    if authority is None:
        raise ConfigError("nats: found no --ca, expected the folder of the certificate authority: its ids become users")
    if ca.site_of(authority) != site:
        raise ConfigError(f"{authority}: found the authority of site {ca.site_of(authority)!r}, expected {site!r}")
    users = render_users(site, issued_to(authority, time.time())).encode()
    nodes = tuple(_node(each) for each in cluster)
    folders = [f"{node.name}/" for node in nodes] or [""]
    files = {f"{folder}{USERS}": users for folder in folders}
    if users_only:
        return files
    routes = make_route_bundles(site, nodes, time.time()) if nodes else {}
    for number, folder in enumerate(folders):
        config = NatsConfig(
            site=site,
            bundle=str(bundle),
            state_directory=state,
            host=host,
            port=port,
            version=_version(version),
            node=number,
            cluster=nodes,
            route_ports=[ROUTE_PORT] * len(nodes),
            routes_bundle=str(out / folder / "routes") if nodes else "",
        )
        files[f"{folder}{CONF}"] = render(config).encode()
        if nodes:
            made = routes[nodes[number].name]
            files |= {
                f"{folder}routes/ca.crt": made.authority,
                f"{folder}routes/tls.crt": made.certificate,
                f"{folder}routes/tls{_KEY}": made.key,
            }
    return files


def issued_to(authority: Path, now: float) -> list[tuple[str, CertificateRole]]:
    """Ids and roles of every certificate that counts: nodes and tokens that are neither revoked nor over.

    Raises:
        ConfigError: no authority there.
    """
    index = read_index(authority)
    nodes = [(each.id, CertificateRole(each.role)) for each in index.issued.values()
             if status_of(each, index, now) == "valid"]  # fmt: skip
    tokens = [(each.id, CertificateRole.BOOTSTRAP) for each in index.tokens.values()
              if each.not_after > now and each.bootstrap and each.bootstrap not in index.revoked]  # fmt: skip
    return sorted(nodes + tokens)


def write(out: Path, files: Mapping[str, bytes]) -> list[Path]:
    """Put files below a folder; keys are readable by their owner only.

    Raises:
        ConfigError: it cannot be written there.
    """
    written = []
    try:
        for name, content in sorted(files.items()):
            path = out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            mode = 0o600 if path.suffix == _KEY else 0o644
            fresh = path.with_name(f".{path.name}.new")
            fresh.unlink(missing_ok=True)
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as file:
                file.write(content)
            fresh.replace(path)
            written.append(path)
    except OSError as fault:
        raise ConfigError(
            f"{fault.filename or out}: cannot be written ({fault.strerror}); check owner and mode"
        ) from fault
    return written


def _node(text: str) -> ClusterNode:
    name, found, host = text.partition("=")
    if not found or not host:
        raise ConfigError(f"nats cluster: found {text!r}, expected NAME=HOST")
    return ClusterNode(name, host)


def _version(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"v?([0-9]{1,3})\.([0-9]{1,3})(\.[0-9]{1,5})?", text)
    if found is None:
        raise ConfigError(f"nats version: found {text!r}, expected one as 2.9 or 2.15.1 (`nats-server --version`)")
    return int(found[1]), int(found[2])
