"""One POST of a webhook: no redirects, no proxy, no credentials of the environment, and an end at its deadline."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from vedette_core.runtime.identity import read_secret
from vedette_device.policy_rules import WebhookRule, check_url
from vedette_schemas.errors import ConfigError, RefusedError, TransientError

BODY_BYTES_MAX: Final = 16 * 1024
"""An alert has at most 1 kB."""
SIGNATURE: Final = "X-Vedette-Signature"
_PORTS: Final = {"https": 443, "http": 80}


class OpenCalls:
    """Connections of calls that are under way, so that all of them can be ended at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._closed = False

    def add(self, connection: socket.socket) -> None:
        """Count one in."""
        with self._lock:
            self._open.add(connection)
            if self._closed:
                hang_up(connection)

    def remove(self, connection: socket.socket) -> None:
        """Count one out."""
        with self._lock:
            self._open.discard(connection)

    def close(self) -> None:
        """End all of them, and every one that is added from now on."""
        with self._lock:
            self._closed = True
            for connection in self._open:
                hang_up(connection)


def call_webhook(
    rule: WebhookRule, body: bytes, calls: OpenCalls, *, context: Callable[[], ssl.SSLContext] | None = None
) -> int:
    """POST a body; blocks up to the rule's `timeout_s` (and the resolver's own time for a name).

    Args:
        rule: where to.
        body: JSON, at most `BODY_BYTES_MAX`.
        calls: where the connection is counted in while it lasts.
        context: makes the TLS context; the system's certificates without it.

    Returns:
        The status, 200–299.

    Raises:
        RefusedError: the body is too large, or the URL is none that is allowed.
        ConfigError: the secret cannot be read.
        TransientError: no connection, no valid certificate, no answer in time, or another status.
    """
    if len(body) > BODY_BYTES_MAX:
        raise RefusedError(
            f"webhook: found a body of {len(body)} bytes, expected at most {BODY_BYTES_MAX}", rule="size"
        )
    try:
        check_url(rule.url, plain_http_allowed=rule.plain_http_allowed)
    except ValueError as fault:
        raise RefusedError(f"webhook: {fault}", rule="url") from fault
    parts = urlsplit(rule.url)
    host = str(parts.hostname)
    headers = {"Content-Type": "application/json", "User-Agent": "vedette", "Connection": "close"}
    if rule.secret_file is not None:
        headers[SIGNATURE] = "sha256=" + hmac.new(_secret(rule.secret_file), body, hashlib.sha256).hexdigest()
    deadline = time.monotonic() + rule.timeout_s
    name = f"webhook {parts.scheme}://{host}"
    try:
        with _connected(host, parts.port or _PORTS[parts.scheme], deadline, calls) as stream:
            connection = http.client.HTTPConnection(host, parts.port, timeout=rule.timeout_s)
            if parts.scheme == "https":
                made = ssl.create_default_context() if context is None else context()
                connection.sock = made.wrap_socket(stream, server_hostname=host)
            else:
                connection.sock = stream
            with contextlib.closing(connection):
                target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
                connection.request("POST", target, body, headers)
                status = connection.getresponse().status
            if time.monotonic() >= deadline:
                raise TimeoutError  # an answer that was hung up on is taken for one that ended
    except (OSError, http.client.HTTPException) as fault:
        late = time.monotonic() >= deadline
        words = f"no answer within {rule.timeout_s:g} s" if late else f"{type(fault).__name__}: {fault}"
        raise TransientError(f"{name}: {words}") from fault
    if not 200 <= status < 300:
        raise TransientError(f"{name}: found status {status}, expected 200–299")
    return status


def hang_up(connection: socket.socket) -> None:
    """End a connection at once, whoever waits on it."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def _connected(host: str, port: int, deadline: float, calls: OpenCalls) -> Iterator[socket.socket]:
    """A stream to the first address of a host that answers; everything on it ends at the deadline.

    A timeout of a socket is one of each read: who sends a byte a second would hold its reader for ever.
    """
    fault: OSError = TimeoutError("no time left")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            break
        with socket.socket(family, kind, protocol) as stream:
            # What TLS wraps is taken away from this object; the copy reaches the same connection all the same.
            copy = stream.dup()
            watch = threading.Timer(left_s, hang_up, (copy,))
            watch.daemon = True
            watch.start()
            calls.add(copy)
            try:
                stream.settimeout(left_s)
                try:
                    stream.connect(address)
                except OSError as found:
                    fault = found
                    continue
                yield stream
                return
            finally:
                watch.cancel()
                calls.remove(copy)
                copy.close()
    raise fault


def _secret(path: Path) -> bytes:
    secret = read_secret(path).strip()
    if not secret:
        raise ConfigError(f"{path}: found an empty secret, expected a key for the webhook's signature")
    return secret
