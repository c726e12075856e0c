"""The own certificate while the process runs: looked at, and loaded anew when the bundle holds a newer one.

Only the TLS side has to change in a running process: a renewal keeps the signing key.
"""

from __future__ import annotations

import logging
import time

from vedette_core.runtime.bundle_requests import bundle_changed
from vedette_core.runtime.identity import NodeIdentity, load_node, reload_context
from vedette_core.runtime.metrics import Metrics
from vedette_core.runtime.mqtt import MqttLink
from vedette_schemas.errors import ConfigError, PeerError, TransientError

log = logging.getLogger("vedette.identity")


class OwnCertificate:
    """Follows a bundle.

    Args:
        node: who the process is, as it was loaded.
        link: its session.
        metrics: with ``certificate_expiry_timestamp_seconds``.
    """

    def __init__(self, node: NodeIdentity, link: MqttLink, metrics: Metrics) -> None:
        self.node, self._link, self._metrics = node, link, metrics
        self._metrics.set("certificate_expiry_timestamp_seconds", value=node.tls_not_after)

    def look(self) -> NodeIdentity | None:
        """See whether the bundle holds another certificate, and go on with it; returns who the node is then.

        Whoever renewed the bundle may be writing it at this moment: what does not fit together is looked at again.
        """
        try:
            if not bundle_changed(self.node.bundle, self.node):
                return None
            fresh = load_node(self.node.bundle.directory, time.time())
        except (ConfigError, PeerError, TransientError) as fault:
            log.warning("%s; going on with the certificate that is loaded", fault)
            return None
        if (fresh.id, fresh.role, fresh.site) != (self.node.id, self.node.role, self.node.site):
            log.error("%s: found a bundle of %s there now, expected %s", fresh.bundle.directory, fresh.id, self.node.id)
            return None
        before, self.node = self.node, fresh
        self._metrics.set("certificate_expiry_timestamp_seconds", value=fresh.tls_not_after)
        self._link.reconnect(self._reload)
        if fresh.signer.public_key != before.signer.public_key:
            # What is signed here is signed with the key that was loaded: its certificate has to stay beside it.
            log.error("%s: found another signing key in %s; restart to use it", fresh.id, fresh.bundle.directory)
            return None
        log.info("%s: certificate renewed; connecting anew", fresh.id)
        return fresh

    def _reload(self) -> None:
        context = self._link.config.tls
        assert context is not None, "nobody without a certificate has one renewed"
        try:
            reload_context(context, self.node.bundle)
        except ConfigError as fault:
            log.error("%s", fault)
