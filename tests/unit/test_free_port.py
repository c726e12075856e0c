"""Ports that a demo or a test chooses long before it listens there."""

from __future__ import annotations

import socket

import pytest

from vedette.demo import fleet
from vedette.demo.fleet import PORTS_HELD_MAX, free_port


def is_taken(port: int) -> bool:
    """Whether somebody who asks the system for any port could not be given this one."""
    with socket.socket() as other:
        try:
            other.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def test_a_port_that_was_chosen_is_given_to_nobody_else_and_servers_can_use_it() -> None:
    port = free_port()
    for _ in range(2):  # a server that is started again finds it as the first one did
        assert is_taken(port)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), 60)
        server = socket.create_server(("127.0.0.1", port))
        with server, socket.create_connection(("127.0.0.1", port), 60), server.accept()[0]:
            pass
    assert is_taken(port)


def test_ports_are_not_held_without_end() -> None:
    first = free_port()
    ports = {first, *(free_port() for _ in range(PORTS_HELD_MAX))}
    assert len(ports) == PORTS_HELD_MAX + 1
    assert len(fleet._held) == PORTS_HELD_MAX
    assert first not in {held.getsockname()[1] for held in fleet._held}
