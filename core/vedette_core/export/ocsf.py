"""OCSF 1.8 Detection Finding (class 2004).

Source: OCSF schema 1.8.0, class ``detection_finding``, objects ``finding_info``, ``anomaly_analysis``, ``metadata``.
"""

from __future__ import annotations

from typing import Any, Final

from vedette_core.export import facts
from vedette_core.export.facts import EntityKind
from vedette_schemas.alert import Alert, AlertState, Severity

OCSF_VERSION: Final = "1.8.0"
CATEGORY_UID: Final = 2
CLASS_UID: Final = 2004
ACTIVITIES: Final = {
    AlertState.OPEN: (1, "Create"),
    AlertState.UPDATED: (2, "Update"),
    AlertState.CLOSED: (3, "Close"),
}
SEVERITIES: Final = {
    Severity.LOW: (2, "Low"),
    Severity.MEDIUM: (3, "Medium"),
    Severity.HIGH: (4, "High"),
    Severity.CRITICAL: (5, "Critical"),
}
STATUSES: Final = {
    AlertState.OPEN: (1, "New"),
    AlertState.UPDATED: (1, "New"),
    AlertState.CLOSED: (99, "Calm again"),
}
"""A detector that sees calm windows has reviewed nothing: ``Resolved`` would say that somebody had."""
CONFIDENCES: Final = {"Low": 1, "Medium": 2, "High": 3}
IOT_DEVICE: Final = 7
LEARNING_ANALYTIC: Final = 4
OBSERVABLE_IP: Final = 2
OBSERVABLE_MAC: Final = 3


def finding(alert: Alert, version: str) -> dict[str, Any]:
    """An alert as a Detection Finding.

    Args:
        alert: the alert.
        version: Vedette's version, as the product's.

    Raises:
        PeerError: a time that does not exist.
    """
    activity_id, activity = ACTIVITIES[alert.state]
    severity_id, severity = SEVERITIES[alert.severity]
    status_id, status = STATUSES[alert.state]
    confidence = facts.confidence_word(alert)
    start, end = facts.window(alert)
    document: dict[str, Any] = {
        "class_uid": CLASS_UID,
        "class_name": "Detection Finding",
        "category_uid": CATEGORY_UID,
        "category_name": "Findings",
        "activity_id": activity_id,
        "activity_name": activity,
        "type_uid": CLASS_UID * 100 + activity_id,
        "type_name": f"Detection Finding: {activity}",
        "time": facts.epoch_ms(alert.time),
        "start_time": facts.epoch_ms(start),
        "end_time": facts.epoch_ms(end),
        "severity_id": severity_id,
        "severity": severity,
        "status_id": status_id,
        "status": status,
        "confidence_id": CONFIDENCES[confidence],
        "confidence": confidence,
        "confidence_score": facts.confidence_percent(alert),
        "is_alert": alert.state is not AlertState.CLOSED,
        "count": facts.bounded(alert.count),
        "message": alert.summary,
        "metadata": _metadata(alert, version),
        "finding_info": _finding_info(alert, end),
        "device": _device(alert),
        "evidences": [_evidence(alert)],
        "anomaly_analyses": [_analysis(alert)],
    }
    observables = _observables(alert)
    if observables:
        document["observables"] = observables
    return document


def _metadata(alert: Alert, version: str) -> dict[str, Any]:
    return {
        "version": OCSF_VERSION,
        "product": {"name": facts.PRODUCT, "vendor_name": facts.VENDOR, "version": version},
        "uid": facts.message_uuid(alert),
        "correlation_uid": facts.alert_uuid(alert),
        "sequence": facts.bounded(alert.seq),
        "event_code": f"{alert.detector}-{alert.kind}",
        "original_time": alert.time,
        "tenant_uid": alert.site,
        "reporter": {"name": alert.device, "uid": alert.device},
    }


def _finding_info(alert: Alert, end: str) -> dict[str, Any]:
    return {
        "uid": alert.id,
        "uid_alt": facts.alert_uuid(alert),
        "title": facts.TITLES[alert.detector],
        "desc": alert.summary,
        "types": [alert.detector],
        "last_seen_time": facts.epoch_ms(end),
        "modified_time": facts.epoch_ms(alert.time),
        "analytic": {
            "name": alert.model.task,
            "uid": alert.model.digest,
            "version": str(alert.model.version),
            "category": alert.kind,
            "type_id": LEARNING_ANALYTIC,
            "type": "Learning (ML/DL)",
        },
    }


def _device(alert: Alert) -> dict[str, Any]:
    """The one that behaves strangely; the gateway that saw it is the reporter."""
    entity = facts.entity_of(alert)
    device: dict[str, Any] = {"type_id": IOT_DEVICE, "type": "IOT", "uid": alert.entity, "name": alert.entity}
    if entity.is_ip:
        device["ip"] = entity.value
    elif entity.kind is EntityKind.MAC:
        device["mac"] = entity.value
    return device


def _observables(alert: Alert) -> list[dict[str, Any]]:
    entity = facts.entity_of(alert)
    if entity.is_ip:
        return [{"name": "device.ip", "type_id": OBSERVABLE_IP, "type": "IP Address", "value": entity.value}]
    if entity.kind is EntityKind.MAC:
        return [{"name": "device.mac", "type_id": OBSERVABLE_MAC, "type": "MAC Address", "value": entity.value}]
    return []


def _evidence(alert: Alert) -> dict[str, Any]:
    evidence: dict[str, Any] = {
        "name": "window",
        "data": {
            "score": alert.score,
            "threshold": alert.threshold,
            "p_value": alert.p_value,
            "features": [
                {"name": f.name, "value": f.value, "usual": list(f.usual), "share": f.share} for f in alert.features
            ],
        },
    }
    if alert.evidence is not None:
        evidence["uid"] = alert.evidence
    return evidence


def _analysis(alert: Alert) -> dict[str, Any]:
    """Score and features, each as it was and as it usually is; the score comes first, so that there is always one."""
    anomalies = [_observation("anomaly score", "score", facts.number(alert.score))]
    baselines = [_observation("anomaly score", "score", f"at most {facts.number(alert.threshold)}")]
    for feature in alert.features:
        low, high = (facts.number(v) for v in feature.usual)
        anomalies.append(_observation(feature.name, "feature", facts.number(feature.value)))
        baselines.append(_observation(feature.name, "feature", f"{low} to {high}"))
    return {
        "analysis_targets": [{"name": alert.entity, "type": alert.detector}],
        "anomalies": anomalies,
        "baselines": baselines,
    }


def _observation(parameter: str, kind: str, value: str) -> dict[str, Any]:
    return {"observation_parameter": parameter, "observation_type": kind, "observations": [{"value": value}]}
