"""Network namespaces, bridges and routes of the lab; needs root."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from bench.lab import plan

BRIDGE = "br0"
"""Name of each segment's bridge, inside its gateway's namespace: the place where it is captured."""

SYSCTLS = {
    "net.ipv6.conf.all.disable_ipv6": "1",
    "net.ipv6.conf.default.disable_ipv6": "1",
    "net.ipv4.conf.all.rp_filter": "0",
    "net.ipv4.conf.default.rp_filter": "0",
}
DEVICE_SYSCTLS = {
    # Small stacks such as lwIP send no TCP timestamps and soon give up on a half-open connection.
    "net.ipv4.tcp_timestamps": "0",
    "net.ipv4.tcp_synack_retries": "1",
}
OFFLOADS = ("tso", "gso", "gro", "tx")
"""Switched off, so that captures hold real segments with real checksums."""


def _run(*arguments: str) -> None:
    outcome = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if outcome.returncode != 0:
        raise RuntimeError(f"{' '.join(arguments)}: {outcome.stderr.strip() or outcome.stdout.strip()}")


def _in(namespace: str, *arguments: str) -> None:
    _run("ip", "-n", namespace, *arguments)


def _namespace(name: str, settings: dict[str, str]) -> None:
    _run("ip", "netns", "add", name)
    for key, value in settings.items():
        _run("ip", "netns", "exec", name, "sysctl", "-qw", f"{key}={value}")
    _in(name, "link", "set", "lo", "up")


def _cable(one: str, one_port: str, other: str, other_port: str, mac: str | None = None) -> None:
    """Lays a cable between two namespaces; ``mac`` is set on the first end."""
    _in(one, "link", "add", one_port, "type", "veth", "peer", "name", other_port, "netns", other)
    if mac is not None:
        _in(one, "link", "set", one_port, "address", mac)
    for namespace, port in ((one, one_port), (other, other_port)):
        switches = [word for offload in OFFLOADS for word in (offload, "off")]
        _run("ip", "netns", "exec", namespace, "ethtool", "-K", port, *switches)
        _in(namespace, "link", "set", port, "up")


def _bridge(namespace: str, name: str, mac: str, address: str) -> None:
    _in(namespace, "link", "add", name, "address", mac, "type", "bridge", "mcast_snooping", "0")
    _in(namespace, "address", "add", address, "dev", name)
    _in(namespace, "link", "set", name, "up")


def _build_core() -> None:
    _namespace(plan.CORE_NAMESPACE, {**SYSCTLS, "net.ipv4.ip_forward": "1"})
    core = plan.CORE_NAMESPACE
    for address in plan.SITE_ADDRESSES:
        _in(core, "address", "add", f"{address}/32", "dev", "lo")
    _bridge(core, "wan0", "02:77:00:00:ff:01", f"{plan.WAN_ROUTER}/24")
    for name, address, octet in (
        (plan.CLOUD_NAMESPACE, plan.CLOUD, 10),
        (plan.OUTSIDER_NAMESPACE, plan.OUTSIDER, 66),
    ):
        _namespace(name, SYSCTLS)
        _cable(name, "eth0", core, f"wan{octet}", f"02:77:00:00:ff:{octet:02x}")
        _in(core, "link", "set", f"wan{octet}", "master", "wan0")
        _in(name, "address", "add", f"{address}/24", "dev", "eth0")
        _in(name, "route", "add", "default", "via", plan.WAN_ROUTER)


def _build_gateway(gateway: int) -> None:
    name = plan.gateway_namespace(gateway)
    _namespace(name, {**SYSCTLS, "net.ipv4.ip_forward": "1"})
    _cable(name, "up0", plan.CORE_NAMESPACE, f"gw{gateway}")
    _in(name, "address", "add", f"10.78.{gateway}.2/30", "dev", "up0")
    _in(plan.CORE_NAMESPACE, "address", "add", f"10.78.{gateway}.1/30", "dev", f"gw{gateway}")
    _in(name, "route", "add", "default", "via", f"10.78.{gateway}.1")
    _bridge(name, BRIDGE, f"02:77:00:00:{gateway:02x}:01", f"10.77.{gateway}.1/24")
    _in(
        plan.CORE_NAMESPACE, "route", "add", plan.local_network(gateway), "via", f"10.78.{gateway}.2",
        "src", plan.OPERATIONS,
    )  # fmt: skip
    for device in plan.DEVICES:
        if device.gateway != gateway:
            continue
        _namespace(device.namespace, {**SYSCTLS, **DEVICE_SYSCTLS})
        _cable(device.namespace, "eth0", name, f"port-{device.slot}", device.mac)
        _in(name, "link", "set", f"port-{device.slot}", "master", BRIDGE)
        _in(device.namespace, "address", "add", f"{device.ip}/24", "dev", "eth0")
        _in(device.namespace, "route", "add", "default", "via", f"10.77.{gateway}.1")


def namespaces() -> list[str]:
    """All namespaces of the lab."""
    fixed = [plan.CORE_NAMESPACE, plan.CLOUD_NAMESPACE, plan.OUTSIDER_NAMESPACE]
    return [
        *fixed,
        *(plan.gateway_namespace(gateway) for gateway in plan.GATEWAYS),
        *(device.namespace for device in plan.DEVICES),
    ]


@contextmanager
def network() -> Iterator[None]:
    """The lab's network, for as long as the context lasts.

    Raises:
        RuntimeError: A namespace of that name is there already, or a command failed (not root?).
    """
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    there = {line.split()[0] for line in listed.splitlines() if line}
    if clash := there.intersection(namespaces()):
        raise RuntimeError(
            f"namespaces {sorted(clash)} exist already, expected none: another recording runs, or one was killed; "
            "remove them with `ip netns del`"
        )
    try:
        _build_core()
        for gateway in plan.GATEWAYS:
            _build_gateway(gateway)
        yield
    finally:
        for name in namespaces():
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
