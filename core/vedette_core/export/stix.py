"""A STIX 2.1 bundle with a sighting: what a threat-intelligence platform takes in.

::

    identity (Vedette at the site) ── made everything
    indicator (this detector, this model, this rule) ◄── sighting ──► identity (the gateway that saw it)
    ipv4-addr | ipv6-addr | mac-addr ◄── observed-data ◄──┘

Every id is derived, so that the same message gives the same bundle wherever it is converted, and importing it twice
changes nothing. Each message of an alert is a sighting of its own: a later version of *one* sighting would have to
repeat its creation time, which an update does not know. The message that closes an alert is marked as ``summary``: it
repeats what was reported, and must not be counted again.

Source: OASIS STIX 2.1 §2.9 (deterministic ids), §3.2, §4.5, §4.7, §4.14, §5.2, §6.
"""

from __future__ import annotations

import json
from typing import Any, Final

from vedette_core.export import facts
from vedette_core.export.facts import EntityKind
from vedette_schemas.alert import Alert, AlertState

SPEC_VERSION: Final = "2.1"
OBSERVABLE_NAMESPACE: Final = "00abedb4-aa42-466c-9c01-fed23315a9b7"
"""The namespace that STIX gives to cyber-observables (§2.9): everybody's id of an address is the same."""
OBSERVABLES: Final = {EntityKind.IPV4: "ipv4-addr", EntityKind.IPV6: "ipv6-addr", EntityKind.MAC: "mac-addr"}
COUNT_MAX: Final = 999_999_999
"""Largest ``count`` of a sighting (§5.2)."""
SINCE: Final = "2026-01-01T00:00:00.000Z"
"""Creation time of what all bundles share (identities, indicators): one id must not have two of them."""
PATTERN_TYPE: Final = "vedette"
"""An indicator must have a pattern. What is seen is a model's judgement, which STIX patterns cannot say."""


def bundle(alert: Alert) -> dict[str, Any]:
    """An alert as a bundle of a sighting and everything that it refers to.

    Raises:
        PeerError: a time that does not exist.
    """
    site = _identity(f"site/{alert.site}", f"Vedette at {alert.site}")
    gateway = _identity(f"device/{alert.site}/{alert.device}", alert.device, site["id"])
    indicator = _indicator(alert, site["id"])
    objects = [site, gateway, indicator]
    sighting = _sighting(alert, site["id"], indicator["id"], gateway["id"])
    closed = alert.state is AlertState.CLOSED
    observable = None if closed else _observable(alert)
    if observable is not None:
        observed = _observed_data(alert, site["id"], observable["id"])
        objects += [observable, observed]
        sighting["observed_data_refs"] = [observed["id"]]
    objects.append(sighting)
    return {"type": "bundle", "id": f"bundle--{_derived(alert, 'bundle')}", "objects": objects}


def _identity(name: str, title: str, creator: str | None = None) -> dict[str, Any]:
    identity = {
        "type": "identity",
        "spec_version": SPEC_VERSION,
        "id": f"identity--{facts.uuid5(facts.NAMESPACE, name)}",
        "created": SINCE,
        "modified": SINCE,
        "name": title,
        "identity_class": "system",
    }
    return identity if creator is None else {**identity, "created_by_ref": creator}


def _indicator(alert: Alert, creator: str) -> dict[str, Any]:
    model = alert.model
    pattern = f"{alert.detector}/{alert.kind}/{model.task}/{model.version}/{model.digest}"
    return {
        "type": "indicator",
        "spec_version": SPEC_VERSION,
        "id": f"indicator--{facts.uuid5(facts.NAMESPACE, f'indicator/{alert.site}/{pattern}')}",
        "created_by_ref": creator,
        "created": SINCE,
        "modified": SINCE,
        "name": f"{facts.TITLES[alert.detector]} ({alert.kind})",
        "description": f"Model of task {model.task}, release {model.version}, digest {model.digest}",
        "indicator_types": ["anomalous-activity"],
        "pattern": pattern,
        "pattern_type": PATTERN_TYPE,
        "valid_from": SINCE,
    }


def _observable(alert: Alert) -> dict[str, Any] | None:
    """The entity as a cyber-observable; None for what is no address: STIX has no object for a sensor."""
    entity = facts.entity_of(alert)
    kind = OBSERVABLES.get(entity.kind)
    if kind is None:
        return None
    # The contributing properties in the canonical JSON of RFC 8785: one ASCII string needs no more than this.
    contributing = json.dumps({"value": entity.value}, separators=(",", ":"))
    identity = facts.uuid5(OBSERVABLE_NAMESPACE, contributing)
    return {"type": kind, "spec_version": SPEC_VERSION, "id": f"{kind}--{identity}", "value": entity.value}


def _observed_data(alert: Alert, creator: str, observable: str) -> dict[str, Any]:
    start, end = facts.window(alert)
    return {
        "type": "observed-data",
        "spec_version": SPEC_VERSION,
        "id": f"observed-data--{_derived(alert, 'observed-data')}",
        "created_by_ref": creator,
        "created": facts.iso_ms(alert.time),
        "modified": facts.iso_ms(alert.time),
        "first_observed": facts.iso_ms(start),
        "last_observed": facts.iso_ms(end),
        "number_observed": 1,
        "object_refs": [observable],
    }


def _sighting(alert: Alert, creator: str, indicator: str, gateway: str) -> dict[str, Any]:
    start, end = facts.window(alert)
    sighting: dict[str, Any] = {
        "type": "sighting",
        "spec_version": SPEC_VERSION,
        "id": f"sighting--{_derived(alert, 'sighting')}",
        "created_by_ref": creator,
        "created": facts.iso_ms(alert.time),
        "modified": facts.iso_ms(alert.time),
        "first_seen": facts.iso_ms(start),
        "last_seen": facts.iso_ms(end),
        "description": f"{alert.entity}: {alert.severity.value}, {alert.state.value}. {alert.summary}",
        "sighting_of_ref": indicator,
        "where_sighted_refs": [gateway],
        "confidence": facts.confidence_percent(alert),
        "labels": [f"severity:{alert.severity.value}", f"state:{alert.state.value}"],
        "external_references": [{"source_name": "vedette", "external_id": alert.id}],
    }
    if alert.state is AlertState.CLOSED:
        sighting |= {"summary": True, "count": min(alert.count, COUNT_MAX)}
    return sighting


def _derived(alert: Alert, kind: str) -> str:
    return facts.uuid5(facts.NAMESPACE, f"{kind}/{facts.message_uuid(alert)}")
