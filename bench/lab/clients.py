"""The small protocol clients that lab devices share: DNS, NTP, HTTP and an MQTT session."""

from __future__ import annotations

import random
import socket
import struct
import subprocess
import urllib.request

import paho.mqtt.client as mqtt
from bench.lab import plan
from paho.mqtt.enums import CallbackAPIVersion

TIMEOUT_S = 3.0


def run(*command: str, timeout_s: float = 8.0) -> None:
    """Runs a real client program for a bounded time; its failure is the network's business, not ours."""
    try:
        subprocess.run(command, capture_output=True, check=False, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        print(f"{command[0]}: no end within {timeout_s} s", flush=True)


def resolve(name: str, server: str = plan.DNS_SERVER) -> None:
    """Asks the name server for an address, and waits for the answer.

    Args:
        name: Domain name, at most 253 characters in labels of at most 63.
        server: Address of the name server.
    """
    labels = b"".join(bytes([len(label)]) + label.encode("ascii") for label in name.split("."))
    query = struct.pack(">HHHHHH", random.getrandbits(16), 0x0100, 1, 0, 0, 0) + labels + b"\0\0\1\0\1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.settimeout(TIMEOUT_S)
        sender.sendto(query, (server, 53))
        sender.recv(1500)


def ask_time() -> None:
    """One SNTP exchange with the site's time server (RFC 4330)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.settimeout(TIMEOUT_S)
        sender.sendto(b"\x23" + bytes(47), (plan.NTP_SERVER, 123))
        sender.recv(200)


def fetch(path: str) -> None:
    """Downloads a file from the site's HTTP server.

    Args:
        path: Path on the server, with its leading slash.
    """
    with urllib.request.urlopen(f"http://{plan.HTTP_SERVER}{path}", timeout=TIMEOUT_S) as answer:
        while answer.read(16_384):
            pass


class MqttSession:
    """An MQTT session with the site's broker.

    Args:
        client_id: Client identifier.
        topics: Topic filters to subscribe to on every connect.
        keepalive_s: Keep-alive interval that the session asks for.
    """

    def __init__(self, client_id: str, topics: tuple[str, ...] = (), keepalive_s: int = 30) -> None:
        self._topics = topics
        self._keepalive_s = keepalive_s
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=client_id)
        self.client.username_pw_set(plan.MQTT_USER, plan.MQTT_PASSWORD)
        self.client.on_connect = self._on_connect

    def _on_connect(self, client: mqtt.Client, *_: object) -> None:
        for topic in self._topics:
            client.subscribe(topic, qos=1)

    def open(self) -> None:
        """Connects and starts the network thread."""
        self.client.connect(plan.BROKER, 1883, keepalive=self._keepalive_s)
        self.client.loop_start()

    def close(self) -> None:
        """Says goodbye and ends the network thread."""
        self.client.disconnect()
        self.client.loop_stop()
