"""Who takes part in no round: devices that a person quarantined, and devices whose certificate is revoked."""

from __future__ import annotations

import logging

from vedette_aggregator.quarantine import Quarantine
from vedette_aggregator.revocation_watch import RevocationWatch
from vedette_core.runtime.metrics import Metrics

log = logging.getLogger("vedette.aggregator")


class Exclusions:
    """Follows both lists.

    Args:
        quarantine: what a person wrote beside the aggregator.
        revocations: the newest revocation list.
        metrics: the aggregator's.

    Attributes:
        devices: everybody who is kept out.
    """

    def __init__(self, quarantine: Quarantine, revocations: RevocationWatch, metrics: Metrics) -> None:
        self._quarantine, self._revocations, self._metrics = quarantine, revocations, metrics
        self._lists: dict[str, frozenset[str]] = {"quarantined": frozenset(), "revoked": frozenset()}
        self.devices: frozenset[str] = frozenset()

    def look(self) -> bool:
        """See who is kept out now; tells whether that has changed."""
        lists = {"quarantined": self._quarantine.devices(), "revoked": self._revocations.devices()}
        self._metrics.set("quarantined_devices", value=len(lists["quarantined"]))
        self._metrics.set("revoked_devices", value=len(lists["revoked"]))
        for what, devices in lists.items():
            if devices != self._lists[what]:
                log.warning("%s: %s", what, ", ".join(sorted(devices)) or "nobody any more")
        self._lists, before = lists, self.devices
        self.devices = lists["quarantined"] | lists["revoked"]
        return self.devices != before
