"""ArcSight's Common Event Format, one line an alert.

Nothing of the header comes from the network: vendor, product, a number and a title a detector. What may hold anything
(entity, features, summary) is in the extension, escaped and cut to the dictionary's lengths.

Source: *Implementing ArcSight Common Event Format*, version 26: header, extension, character encoding, dictionary.
"""

from __future__ import annotations

import re
from typing import Final

from vedette_core.export import facts
from vedette_core.export.facts import EntityKind
from vedette_schemas.alert import Alert, Severity

CEF_VERSION: Final = 0
SEVERITIES: Final = {Severity.LOW: 3, Severity.MEDIUM: 6, Severity.HIGH: 8, Severity.CRITICAL: 10}
"""The top of each of CEF's classes: low 0–3, medium 4–6, high 7–8, very high 9–10."""
MESSAGE_CHARACTERS_MAX: Final = 1023
CUSTOM_CHARACTERS_MAX: Final = 4000
HOST_CHARACTERS_MAX: Final = 100
"""Lengths of ``msg``, ``cs1``–``cs6`` and ``dvchost`` in the dictionary; ``externalId`` has 40: a UUID fits."""

_CONTROL: Final = re.compile("[\x00-\x09\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029]")
"""Every control character and line separator but the two line ends that an extension can say."""


def line(alert: Alert, version: str) -> str:
    """An alert as one line of CEF, without a line end.

    Args:
        alert: the alert.
        version: Vedette's version, as the device's.

    Raises:
        PeerError: a time that does not exist.
    """
    header = "|".join(
        escape_header(field)
        for field in (
            f"CEF:{CEF_VERSION}",
            facts.VENDOR,
            facts.PRODUCT,
            version,
            f"{alert.detector}-{alert.kind}",
            facts.TITLES[alert.detector],
            str(SEVERITIES[alert.severity]),
        )
    )
    pairs = (f"{key}={text}" for key, value in _extension(alert) if (text := escape_extension(value)))
    return f"{header}|{' '.join(pairs)}"


def escape_header(text: str) -> str:
    """A header field: backslash and pipe escaped, no line ends or control characters."""
    return _CONTROL.sub(" ", re.sub(r"[\r\n]+", " ", text)).replace("\\", "\\\\").replace("|", "\\|")


def escape_extension(text: str) -> str:
    r"""An extension's value: backslash and equals sign escaped, line ends as ``\n`` and ``\r``, trimmed."""
    text = _CONTROL.sub(" ", text).strip()
    return text.replace("\\", "\\\\").replace("=", "\\=").replace("\n", "\\n").replace("\r", "\\r")


def _extension(alert: Alert) -> list[tuple[str, str]]:
    """Keys and values in their order; an empty value is left out by the caller, and its label with it."""
    start, end = facts.window(alert)
    pairs = [
        ("rt", str(facts.epoch_ms(alert.time))),
        ("start", str(facts.epoch_ms(start))),
        ("end", str(facts.epoch_ms(end))),
        ("externalId", facts.alert_uuid(alert)),
        ("dvchost", alert.device[:HOST_CHARACTERS_MAX]),
        ("cat", alert.detector),
        ("act", alert.state.value),
        ("cnt", str(facts.bounded(alert.count))),
    ]
    entity = facts.entity_of(alert)
    if entity.kind is EntityKind.IPV4:
        pairs.append(("src", entity.value))
    elif entity.kind is EntityKind.IPV6:
        pairs += [("c6a2", entity.value), ("c6a2Label", "Source IPv6 Address")]
    elif entity.kind is EntityKind.MAC:
        pairs.append(("smac", entity.value))
    floats = (("score", alert.score), ("threshold", alert.threshold), ("pValue", alert.p_value))
    for place, (label, value) in enumerate((*floats, ("confidence", alert.confidence)), start=1):
        pairs += [(f"cfp{place}", facts.number(value)), (f"cfp{place}Label", label)]
    pairs += [("cn1", str(facts.bounded(alert.seq))), ("cn1Label", "sequence")]
    model = f"{alert.model.task} {alert.model.version} {alert.model.digest}"
    strings = (
        ("entity", alert.entity),
        ("alertId", alert.id),
        ("site", alert.site),
        ("features", "; ".join(_feature(f.name, f.value, *f.usual) for f in alert.features)),
        ("model", model),
        ("evidence", alert.evidence or ""),
    )
    for place, (label, text) in enumerate(strings, start=1):
        if escape_extension(text):
            pairs += [(f"cs{place}", text[:CUSTOM_CHARACTERS_MAX]), (f"cs{place}Label", label)]
    pairs.append(("msg", alert.summary[:MESSAGE_CHARACTERS_MAX]))
    return pairs


def _feature(name: str, value: float, low: float, high: float) -> str:
    return f"{name} {facts.number(value)} (usually {facts.number(low)} to {facts.number(high)})"
