"""Finds out whom a device must never cut off: itself, its next hops, its brokers, and whom the operator names."""

from __future__ import annotations

import socket
from typing import Final

from vedette_device.own_addresses import own_addresses
from vedette_device.policy_protection import Protection
from vedette_device.settings import DeviceSettings
from vedette_schemas.errors import TransientError

ADDRESSES_MAX: Final = 256
"""Addresses of one name that are remembered; a name that has more over time is none of a broker on this site."""


class ProtectionLookup:
    """Looks the protected addresses up, again and again: addresses and names change.

    What a broker's name once stood for stays protected for as long as the process lives: a connection may be open.

    Args:
        settings: the device's.
    """

    def __init__(self, settings: DeviceSettings) -> None:
        self._local = () if settings.network is None else settings.network.local_networks
        self._allow = settings.policy.allow
        hosts = {"the broker": settings.broker.host}
        if settings.sensor is not None and settings.sensor.source == "mqtt":
            hosts["the sensors' broker"] = settings.sensor.broker.host
        if settings.policy.broker is not None:
            hosts["the site's broker"] = settings.policy.broker.host
        self._hosts = hosts
        self._found: dict[str, dict[str, None]] = {owner: {} for owner in hosts}

    def learn(self) -> Protection:
        """Ask the kernel and the resolver; blocks for as long as they take.

        Raises:
            TransientError: a broker's name has never been resolved, or the kernel does not answer.
        """
        for owner, host in self._hosts.items():
            known = self._found[owner]
            try:
                answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            except OSError as fault:
                if not known:
                    raise TransientError(
                        f"policy: cannot resolve {host} ({owner}): found {fault}, expected its address; nobody is cut "
                        "off before it is known who must not be"
                    ) from fault
                continue
            for answer in answers:
                address = str(answer[4][0]).partition("%")[0]
                known.pop(address, None)
                known[address] = None
            while len(known) > ADDRESSES_MAX:
                del known[next(iter(known))]
        own = own_addresses()
        return Protection.of(
            self._local,
            {
                "this gateway": own.local,
                "a broadcast address": own.broadcast,
                "a next hop": own.gateways,
                **{owner: tuple(known) for owner, known in self._found.items()},
                "the allow list": self._allow,
            },
        )
