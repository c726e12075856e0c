"""The 24 flow-log columns of one device and window.

What each column counts, from the device's point of view (``peer`` is the other end of a flow):

========================================  =================================================================
``flows_out``, ``flows_in``               flows that the device began, and that others began with it
``bytes_*``, ``packets_*``                what it sent and got in them
``flow_max_bytes``                        bytes of the largest flow, both directions
``packet_mean_bytes``                     mean packet size, both directions
``duration_mean_s``, ``duration_max_s``   of the flows
``tcp_share``, ``udp_share``              shares of the flows; the rest is ICMP and others
``failed_out``, ``failed_in``             TCP connections that were refused or never answered
``failed_share``                          their share of the flows
``resets``                                connections that a reset tore down
``unanswered_share``                      share of flows in which nothing came back
``peers_distinct``                        distinct peers
``peers_new``                             peers that it did not talk with for a day; 0 in the first hour in which a
                                          device is watched, when it has no past to compare with
``service_ports_distinct``                distinct service ports: the lower of a flow's two
``service_port_entropy_bits``             Shannon entropy of the flows' service ports
``internal_share``                        share of flows whose peer is on the site, or is a group address
``dns_flows``, ``mqtt_flows``             flows with these services
========================================  =================================================================
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vedette_device.sources.application import DNS_PORT, MQTT_PORTS
from vedette_device.sources.flow_record import FAILED_STATES, FlowRecord, FlowState
from vedette_device.sources.packets import TCP, UDP


@dataclass(slots=True)
class FlowSums:
    """What one device did in one open window.

    Attributes:
        sent: whether it sent anything: else it is only an address that somebody spoke to.
        peers: the other ends, as 128-bit numbers.
        services: flows by service port.
    """

    sent: bool = False
    flows_out: int = 0
    flows_in: int = 0
    bytes_out: int = 0
    bytes_in: int = 0
    packets_out: int = 0
    packets_in: int = 0
    flow_max_bytes: int = 0
    duration_s: float = 0.0
    duration_max_s: float = 0.0
    tcp: int = 0
    udp: int = 0
    failed_out: int = 0
    failed_in: int = 0
    resets: int = 0
    unanswered: int = 0
    internal: int = 0
    dns: int = 0
    mqtt: int = 0
    peers: set[int] = field(default_factory=set)
    services: Counter[int] = field(default_factory=Counter)

    def add(self, flow: FlowRecord, *, outgoing: bool, internal: bool) -> None:
        """Count a flow."""
        there, back = flow.originator_bytes, flow.responder_bytes
        if outgoing:
            self.sent = True
            self.flows_out += 1
            self.bytes_out += there
            self.bytes_in += back
            self.packets_out += flow.originator_packets
            self.packets_in += flow.responder_packets
            self.failed_out += flow.state in FAILED_STATES
            self.peers.add(flow.responder)
        else:
            self.sent = self.sent or flow.responder_packets > 0 or back > 0
            self.flows_in += 1
            self.bytes_out += back
            self.bytes_in += there
            self.packets_out += flow.responder_packets
            self.packets_in += flow.originator_packets
            self.failed_in += flow.state in FAILED_STATES
            self.peers.add(flow.originator)
        self.flow_max_bytes = max(self.flow_max_bytes, there + back)
        self.duration_s += flow.duration_s
        self.duration_max_s = max(self.duration_max_s, flow.duration_s)
        self.resets += flow.state is FlowState.RESET
        self.unanswered += flow.responder_packets == 0 and back == 0
        self.internal += internal
        if flow.protocol in (TCP, UDP):
            self.tcp += flow.protocol == TCP
            self.udp += flow.protocol == UDP
            service = min(flow.originator_port, flow.responder_port)
            self.services[service] += 1
            self.dns += service == DNS_PORT
            self.mqtt += service in MQTT_PORTS

    def row(self, peers_new: int) -> NDArray[np.float32]:
        """The columns of ``FLOW_LOGS``, ``(24,) float32``."""
        flows = self.flows_out + self.flows_in
        packets = self.packets_out + self.packets_in
        values = (
            self.flows_out,
            self.flows_in,
            self.bytes_out,
            self.bytes_in,
            self.packets_out,
            self.packets_in,
            self.flow_max_bytes,
            (self.bytes_out + self.bytes_in) / packets if packets else 0.0,
            self.duration_s / flows,
            self.duration_max_s,
            self.tcp / flows,
            self.udp / flows,
            self.failed_out,
            self.failed_in,
            (self.failed_out + self.failed_in) / flows,
            self.resets,
            self.unanswered / flows,
            len(self.peers),
            peers_new,
            len(self.services),
            _entropy_bits(self.services.values()),
            self.internal / flows,
            self.dns,
            self.mqtt,
        )
        return np.array(values, dtype=np.float32)


def _entropy_bits(counts: Iterable[int]) -> float:
    numbers = list(counts)
    total = sum(numbers)
    return sum(n / total * math.log2(total / n) for n in numbers)
