"""Alerts, rules and protections for the tests of the policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vedette_device.policy_protection import Protection
from vedette_device.policy_rules import Policy, parse_policy
from vedette_device.settings import DeviceSettings, IdentitySection, NetworkSection, PolicySection
from vedette_schemas.alert import Alert, AlertModel, FeatureReason

LOCAL = ("192.168.10.0/24", "fd00:10::/64")
BROKER, GATEWAY, ROUTER, ALLOWED = "192.168.10.2", "192.168.10.1", "192.168.10.254", "192.168.10.64/28"


def alert(entity: str = "192.168.10.20", number: int = 1, **changes: Any) -> Alert:
    """An alert of high severity on an entity."""
    plain: dict[str, Any] = {
        "id": f"alert-{number}",
        "seq": 0,
        "time": "2026-10-01T12:00:05Z",
        "site": "plant-1",
        "device": "gw-01",
        "entity": entity,
        "detector": "network",
        "kind": "magnitude",
        "severity": "high",
        "confidence": 0.9,
        "score": 9.0,
        "p_value": 1e-5,
        "threshold": 1.0,
        "window_start": "2026-10-01T12:00:00Z",
        "window_end": "2026-10-01T12:00:05Z",
        "features": (FeatureReason(name="syn_count", value=900.0, usual=(0.0, 3.0), share=0.8),),
        "model": AlertModel(task="network", version=3, digest="0123456789abcdef"),
        "state": "open",
        "count": 1,
        "summary": "many more SYN than usual",
    }
    return Alert.model_validate({**plain, **changes})


def protection(**more: tuple[str, ...]) -> Protection:
    whose = {"this gateway": (GATEWAY, "fd00:10::1"), "the broker": (BROKER,), "a next hop": (ROUTER,)}
    return Protection.of(LOCAL, {**whose, "the allow list": (ALLOWED,), **more})


def rules(*tables: str) -> Policy:
    """A policy of these tables; every rule is without cool-down unless it says otherwise."""
    return parse_policy("\n".join(f"[[rule]]\n{table}" for table in tables), "rules.toml")


QUARANTINE = 'name = "cut"\naction = "quarantine"\nseconds = 60\ncooldown_s = 0\nper_hour_max = 360'
THROTTLE = 'name = "slow"\naction = "throttle"\nkbytes_per_s = 16\nseconds = 60\ncooldown_s = 0\nper_hour_max = 360'


def device_settings(folder: Path, rules_text: str, *, broker: str = "127.0.0.1", **policy: Any) -> DeviceSettings:
    """Settings of a device with these rules; dry run unless `policy` says otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rules.toml").write_text(rules_text)
    plain = {"enabled": True, "rules": folder / "rules.toml", **policy}
    return DeviceSettings(
        site="plant-1",
        device="gw-01",
        state_dir=folder,
        identity=IdentitySection(bundle=folder, trust_root=folder / "root.json"),
        broker={"host": broker},  # type: ignore[arg-type]
        policy=PolicySection(**plain),
        network=NetworkSection(source="file", path=folder / "x.pcap", local_networks=(*LOCAL, "10.0.0.0/16")),
    )
