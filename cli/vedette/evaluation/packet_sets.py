"""Network sets whose packets are rows of Parquet tables: set-ups, a plug's life, MQTT clients, mining."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vedette.evaluation.datasets import DataSet, Fleet, Loader, Recording, find
from vedette.evaluation.packet_tables import (
    ARP_BYTES,
    DEVICE,
    ETHERNET_BYTES,
    PEER_NETWORKS,
    PacketTable,
    one_after_another,
    typed_peers,
    windows_of,
)
from vedette.evaluation.parquet import read_parquet
from vedette_device.features.windows import Window
from vedette_device.sources.application import DNS_PORT
from vedette_device.sources.packets import ARP, ICMP, ICMP6, TCP, UDP
from vedette_schemas.errors import PeerError
from vedette_schemas.features import NETWORK_FLOWS, FeatureSchema

BEHAVIOUR_FOLDER: Final = "device_behaviour"
NETWORK_FOLDER: Final = "network_flows"
TYPED_COLUMNS: Final = (
    "t",
    "len",
    "dir",
    "ethertype",
    "ip_proto",
    "sport",
    "dport",
    "tcp_flags",
    "peer_type",
    "peer_id",
)
"""All but the TTL, which is no feature."""
TYPED_NOTE: Final = "packets without names, sequence numbers and ICMP types; a device's IPv4 and IPv6 are one"
MQTT_COLUMNS: Final = ("t", "sport", "dport", "to_broker", "ip_len", "tcp_flags", "mqtt_types")
MQTT_ATTACKS: Final = ("bruteforce-train", "flood", "slowite-train")
MINING: Final = (
    ("webbrowsing", 0),
    ("interactive", 0),
    ("webmine_aggressive", 1),
    ("webminepool_aggressive", 1),
    ("webminepool_stealthy", 1),
)
"""Recordings of the cryptojacking set, each benign (0) or with a miner running (1) as a whole."""
MINING_PROTOCOLS: Final[Mapping[str, int]] = {
    **dict.fromkeys(("TCP", "HTTP", "OCSP", "SSLv2", "TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"), TCP),
    **dict.fromkeys(("UDP", "DNS", "DHCP", "MDNS", "NBNS", "NTP", "QUIC", "SSDP"), UDP),
    "ARP": ARP,
    "ICMP": ICMP,
    "ICMPv6": ICMP6,
    "IGMPv3": 2,
}
"""What Wireshark's names of protocols are carried by."""
MINING_KNOWN: Final = (
    "packets_in",
    "packets_out",
    "bytes_in",
    "bytes_out",
    "size_mean_bytes",
    "size_std_bytes",
    "size_max_bytes",
    "interarrival_mean_s",
    "interarrival_std_s",
    "tcp_share",
    "udp_share",
    "dns_queries",
)
"""Columns of ``NETWORK_FLOWS`` that need neither peers nor ports nor flags, which the set does not have."""
MINING_SCHEMA: Final = FeatureSchema(
    use_case="network",
    version=1,
    columns=MINING_KNOWN,
    window_s=NETWORK_FLOWS.window_s,
    history=NETWORK_FLOWS.history,
)


def iot_sentinel(data: Path) -> DataSet:
    """Seventeen devices that are set up again and again, up to twenty times: nothing but benign traffic."""
    recordings = tuple(
        one_after_another(device, [(windows, 0) for windows in sessions]) for device, sessions in _set_ups(data).items()
    )
    notes = (
        "no attack in it: a test of false alarms; up to 20 set-ups of minutes a device, an hour apart",
        TYPED_NOTE,
    )
    return DataSet("iot_sentinel", "network", (Fleet("iot_sentinel", NETWORK_FLOWS, recordings),), notes=notes)


def iot_sentinel_swapped(data: Path) -> DataSet:
    """The same set-ups, and behind them the last one of every other device under this device's address.

    The last ones are in no training stretch of their own device either, so that no model has seen them.
    """
    sessions = _set_ups(data)
    recordings = []
    for device, own in sessions.items():
        others = [(theirs[-1], 1) for name, theirs in sessions.items() if name != device and theirs]
        recordings.append(one_after_another(device, [*((windows, 0) for windows in own), *others]))
    notes = (
        "constructed: the last set-up of each other device, put under this device's address, is the anomaly",
        "makers' own twins among them (D-Link's sensors, TP-Link's plugs, Edimax's cameras, both WeMo)",
        "windows in which a swapped device is silent count as neither",
        TYPED_NOTE,
    )
    fleet = Fleet("iot_sentinel_swapped", NETWORK_FLOWS, tuple(recordings))
    return DataSet("iot_sentinel_swapped", "network", (fleet,), notes=notes, constructed=True)


def nku_lifecycle(data: Path) -> DataSet:
    """One plug, a capture for each state of its life: nothing but benign traffic."""
    (path,) = find(data / BEHAVIOUR_FOLDER / "nku_lifecycle", "xiaodu_plug.parquet")
    recording = one_after_another("xiaodu_plug", [(windows, 0) for windows in _captures_of(path, "state")])
    notes = (
        "no attack in it: a test of false alarms; one device, a capture a state, as the file has them, an hour apart",
        TYPED_NOTE,
    )
    return DataSet("nku_lifecycle", "network", (Fleet("nku_lifecycle", NETWORK_FLOWS, (recording,)),), notes=notes)


def mqttset(data: Path) -> DataSet:
    """Seven MQTT clients, and behind each one's traffic that of three attacks, sent under the client's address."""
    folder = data / NETWORK_FOLDER / "mqttset"
    attacks = [
        (windows_of(_mqtt(folder / f"attack_{name}.parquet"), number), 1) for number, name in enumerate(MQTT_ATTACKS, 1)
    ]
    recordings = tuple(
        one_after_another(path.stem.removeprefix("benign_"), [(windows_of(_mqtt(path)), 0), *attacks])
        for path in find(folder, "benign_*.parquet")
    )
    notes = (
        "constructed: attack captures of other hosts and days, put under each client's address",
        "clients are simulated (strictly periodic); packets without sequence numbers; its captures are in pcaps, too",
        "windows without a packet in an attack capture count as neither",
    )
    return DataSet("mqttset", "network", (Fleet("mqttset", NETWORK_FLOWS, recordings),), notes=notes, constructed=True)


def cryptojacking(data: Path) -> DataSet:
    """A Raspberry Pi in use, and others on other days and networks that mine in a browser."""
    folder = data / BEHAVIOUR_FOLDER / "cryptojacking"
    addresses: dict[str, int] = {}
    captures = []
    for number, (name, label) in enumerate(MINING):
        windows = windows_of(_mining(folder / f"{name}.parquet", addresses), number)
        captures.append((windows, label))
    whole = one_after_another("raspberry_pi", captures)
    places = [NETWORK_FLOWS.index(name) for name in MINING_KNOWN]
    known = tuple(Window(w.entity, w.start_s, w.end_s, w.values[places]) for w in whole.windows)
    notes = (
        "benign use and mining are of other machines, networks and months: volume alone separates them",
        "a recording is benign or mining as a whole; windows without a packet while mining count as neither",
        "no peers, ports and flags: 12 of the 24 columns",
    )
    recording = Recording("raspberry_pi", known, whole.labels, breaks=whole.breaks)
    return DataSet("cryptojacking", "network", (Fleet("cryptojacking", MINING_SCHEMA, (recording,)),), notes=notes)


def _set_ups(data: Path) -> dict[str, list[list[Window]]]:
    """Windows of each device's set-ups, in the order of its file."""
    paths = find(data / BEHAVIOUR_FOLDER / "iot_sentinel", "*.parquet")
    return {path.stem: _captures_of(path, "session") for path in paths}


def _captures_of(path: Path, by: str) -> list[list[Window]]:
    """Windows of each capture of a table of frames; captures in which the device sent no IP packet have none.

    Args:
        path: the table.
        by: column that tells captures apart.
    """
    columns = read_parquet(path, (by, *TYPED_COLUMNS))
    names = columns.pop(by)
    captures = []
    for number, name in enumerate(dict.fromkeys(names.tolist())):
        rows = names == name
        part = {column: values[rows] for column, values in columns.items()}
        windows = windows_of(typed_peers(path.name, part), number)
        if windows:
            captures.append(windows)
    return captures


def _mqtt(path: Path) -> PacketTable:
    """TCP packets between a client (or what attacks) and the broker; who that is, is in no column."""
    columns = read_parquet(path, MQTT_COLUMNS)
    n = len(columns["t"])
    return PacketTable(
        name=path.name,
        time_s=columns["t"],
        size=columns["ip_len"],
        outgoing=columns["to_broker"] == 1,
        device=np.full(n, DEVICE),
        peer=np.full(n, PEER_NETWORKS[0]),
        protocol=np.full(n, TCP),
        source_port=columns["sport"],
        target_port=columns["dport"],
        tcp_flags=columns["tcp_flags"],
        mqtt_type=np.array([_first_type(path, text) for text in columns["mqtt_types"]], np.int64),
    )


def _first_type(path: Path, text: Any) -> int:
    first = str(text).split(",", 1)[0]
    if not first:
        return 0
    if not first.isdecimal() or int(first) > 15:
        raise PeerError(f"{path.name}: found MQTT packet type {first!r}, expected 0 to 15")
    return int(first)


def _mining(path: Path, addresses: dict[str, int]) -> PacketTable:
    """Packets of the Pis; `addresses` has the place of each that was met, and takes those that are new."""
    columns = read_parquet(path, ("t", "len", "dir", "protocol", "device_mac"))
    unknown = sorted({str(name) for name in columns["protocol"]} - set(MINING_PROTOCOLS))
    if unknown:
        raise PeerError(f"{path.name}: found protocols {', '.join(unknown[:8])}, expected those of MINING_PROTOCOLS")
    names: Sequence[str] = [str(name) for name in columns["protocol"]]
    protocol: npt.NDArray[np.int64] = np.array([MINING_PROTOCOLS[name] for name in names])
    outgoing = columns["dir"] > 0
    query = np.array([name == "DNS" for name in names]) & outgoing
    arp = protocol == ARP
    hosts = [addresses.setdefault(str(mac), len(addresses)) for mac in columns["device_mac"]]
    return PacketTable(
        name=path.name,
        time_s=columns["t"],
        size=np.where(arp, ARP_BYTES, np.maximum(columns["len"] - ETHERNET_BYTES, 0)),
        outgoing=outgoing,
        device=DEVICE + np.array(hosts),
        peer=np.full(len(names), PEER_NETWORKS[1]),
        protocol=protocol,
        source_port=np.zeros(len(names), np.int64),
        target_port=np.where(query, DNS_PORT, 0),
        tcp_flags=np.zeros(len(names), np.int64),
        mqtt_type=np.zeros(len(names), np.int64),
    )


LOADERS: Final[Mapping[str, Loader]] = {
    "iot_sentinel": iot_sentinel,
    "iot_sentinel_swapped": iot_sentinel_swapped,
    "nku_lifecycle": nku_lifecycle,
    "mqttset": mqttset,
    "cryptojacking": cryptojacking,
}
