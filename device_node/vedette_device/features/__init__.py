"""Features: from packets and readings to windows with named columns, and from windows to scaled model inputs."""

from vedette_device.features.addresses import PRIVATE_NETWORKS
from vedette_device.features.behaviour import BehaviourWindower
from vedette_device.features.flow_logs import FlowLogWindower
from vedette_device.features.network import NetworkWindower
from vedette_device.features.scaling import EntityScalers, RobustScaler, transforms_for
from vedette_device.features.sensor import SensorWindower
from vedette_device.features.windows import Window

__all__ = [
    "PRIVATE_NETWORKS",
    "BehaviourWindower",
    "EntityScalers",
    "FlowLogWindower",
    "NetworkWindower",
    "RobustScaler",
    "SensorWindower",
    "Window",
    "transforms_for",
]
