"""Who is where in the network lab: gateways, devices, servers and their addresses."""

from __future__ import annotations

from dataclasses import dataclass

BROKER = "10.77.100.10"
HTTP_SERVER = "10.77.100.11"
DNS_SERVER = "10.77.100.12"
NTP_SERVER = "10.77.100.13"
COAP_COLLECTOR = "10.77.100.14"
OPERATIONS = "10.77.100.20"
"""Address from which the site's controller, recorder, SCADA poller and monitoring speak."""
SITE_ADDRESSES = (BROKER, HTTP_SERVER, DNS_SERVER, NTP_SERVER, COAP_COLLECTOR, OPERATIONS)

WAN_ROUTER = "203.0.113.1"
CLOUD = "203.0.113.10"
"""A vendor's cloud, on a network reserved for documentation."""
OUTSIDER = "203.0.113.66"
"""The attacker outside of the site."""

CORE_NAMESPACE = "vlab-core"
CLOUD_NAMESPACE = "vlab-cloud"
OUTSIDER_NAMESPACE = "vlab-out"

MQTT_USER = "site"
MQTT_PASSWORD = "lab"
"""Not a secret: the broker exists only inside the lab's namespaces while it records."""

PLUG_PORT = 9999
STREAM_PORT = 8080
RTSP_PORT = 8554
C2_PORT = 4444


@dataclass(frozen=True, slots=True)
class Device:
    """One IoT device.

    Attributes:
        gateway: Number of its gateway, from 1.
        slot: ``a`` or ``b``.
        kind: What it does; names a program of :mod:`bench.lab.devices`.
        login: Its remote login: ``ssh`` or ``telnet``.
    """

    gateway: int
    slot: str
    kind: str
    login: str

    @property
    def name(self) -> str:
        return f"{self.kind.replace('_', '-')}-{self.gateway:02d}{self.slot}"

    @property
    def ip(self) -> str:
        return f"10.77.{self.gateway}.{11 + 'ab'.index(self.slot)}"

    @property
    def mac(self) -> str:
        return f"02:77:00:00:{self.gateway:02x}:{11 + 'ab'.index(self.slot):02x}"

    @property
    def namespace(self) -> str:
        return f"vlab-{self.gateway:02d}{self.slot}"

    @property
    def gateway_id(self) -> str:
        return f"gw-{self.gateway:02d}"

    @property
    def topic(self) -> str:
        return f"site/{self.gateway_id}/{self.name}"


DEVICES = (
    Device(1, "a", "mqtt_sensor", "telnet"),
    Device(1, "b", "camera_http", "ssh"),
    Device(2, "a", "mqtt_sensor", "telnet"),
    Device(2, "b", "modbus_plc", "ssh"),
    Device(3, "a", "mqtt_actuator", "ssh"),
    Device(3, "b", "coap_sensor", "telnet"),
    Device(4, "a", "mqtt_sensor", "telnet"),
    Device(4, "b", "camera_rtsp", "ssh"),
    Device(5, "a", "mqtt_meter", "telnet"),
    Device(5, "b", "smart_plug", "telnet"),
    Device(6, "a", "mqtt_actuator", "ssh"),
    Device(6, "b", "modbus_plc", "ssh"),
    Device(7, "a", "mqtt_sensor", "telnet"),
    Device(7, "b", "http_poller", "ssh"),
    Device(8, "a", "mqtt_actuator", "ssh"),
    Device(8, "b", "coap_sensor", "telnet"),
)
GATEWAYS = tuple(sorted({device.gateway for device in DEVICES}))

NAMES = {
    "broker.site.example": BROKER,
    "updates.site.example": HTTP_SERVER,
    "api.site.example": HTTP_SERVER,
    "ntp.site.example": NTP_SERVER,
    "collector.site.example": COAP_COLLECTOR,
    "plugs.cloud.example": CLOUD,
    "t.exfil.example": OUTSIDER,
}
"""What the site's name server answers; a name stands for all names below it too."""


def gateway_namespace(gateway: int) -> str:
    """Network namespace of a gateway."""
    return f"vlab-gw-{gateway:02d}"


def local_network(gateway: int) -> str:
    """The gateway's segment."""
    return f"10.77.{gateway}.0/24"


def device(gateway: int, slot: str) -> Device:
    """The device in a slot of a gateway."""
    return next(one for one in DEVICES if (one.gateway, one.slot) == (gateway, slot))
