"""Who a connection is, and what it may do: two amqtt plugins, both default-deny.

The identity comes from the verified client certificate of *this* connection and from nothing that the client says.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from amqtt.contexts import Action as BrokerAction
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin

from vedette_core.crypto.certificate_chain import load_certificates, verify_chain
from vedette_core.crypto.certificates import Identity, Purpose
from vedette_core.runtime.identity import Bundle, load_authorities
from vedette_schemas.errors import PeerError
from vedette_schemas.topics import Topics

log = logging.getLogger("vedette.broker")

IDENTITY: Final = "vedette.identity"
"""Key of the session attribute that holds the verified `Identity`."""


class CertificateIdentity(BaseAuthPlugin):  # type: ignore[misc]
    """Authenticates by client certificate: the client id must be its common name; site and role are in its URI."""

    @dataclass
    class Config:
        """Plugin configuration.

        Attributes:
            site: the site that is served.
            bundle: directory of the broker's bundle, for its ``ca.crt``.
        """

        site: str
        bundle: str

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self._root, self._intermediates = load_authorities(Bundle(Path(self.config.bundle)))

    async def authenticate(self, *, session: Any) -> bool:
        """Verify the peer's certificate again, by our own rules, and remember who it is."""
        try:
            session.attributes[IDENTITY] = self._identify(session)
        except PeerError as error:
            log.warning("refused client %r: %s", str(session.client_id)[:80], error)
            return False
        return True

    def _identify(self, session: Any) -> Identity:
        presented = session.ssl_object.getpeercert(binary_form=True) if session.ssl_object is not None else None
        if not presented:
            raise PeerError("found no client certificate, expected one of this site", reason="certificate")
        leaf, *_ = load_certificates(presented)
        identity = verify_chain(
            leaf, self._intermediates, self._root, time.time(), purpose=Purpose.TLS_CLIENT, site=self.config.site
        )
        if session.client_id != identity.id:
            raise PeerError(
                f"found client id {str(session.client_id)[:80]!r}, expected the certificate's name {identity.id!r}",
                reason="identity",
            )
        return identity


class GrammarAccess(BaseTopicPlugin):  # type: ignore[misc]
    """Allows what the topic grammar's access table allows to the verified identity, and nothing else."""

    @dataclass
    class Config:
        """Plugin configuration.

        Attributes:
            site: the site that is served.
        """

        site: str

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self._topics = Topics(self.config.site)

    async def topic_filtering(self, *, session: Any = None, topic: str | None = None, action: Any = None) -> bool:
        """Tell whether the session may publish to, subscribe to, or receive from a topic or filter."""
        identity = session.attributes.get(IDENTITY) if session is not None else None
        if not isinstance(identity, Identity) or not topic:
            return False
        role, holder = identity.access_role, identity.id
        if action is BrokerAction.PUBLISH:
            return self._topics.may_publish(role, holder, topic)
        if action is BrokerAction.SUBSCRIBE:
            return self._topics.may_subscribe(role, holder, topic)
        if action is BrokerAction.RECEIVE:
            return self._topics.may_receive(role, holder, topic)
        return False
