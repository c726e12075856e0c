"""Who a connection is, and what it may do: both default-deny, and both as amqtt plugins.

The identity comes from the verified client certificate of *this* connection and from nothing that the client says.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, Final

from amqtt.contexts import Action as BrokerAction
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin

from vedette_broker.credentials import Credentials
from vedette_core.crypto.certificate_chain import load_certificates, verify_chain
from vedette_core.crypto.certificates import Purpose
from vedette_schemas.errors import PeerError
from vedette_schemas.topics import Role, Topics

IDENTITY: Final = "vedette.identity"
"""Key of the session attribute that holds the verified `Holder`."""
REFUSAL: Final = "vedette.refusal"
"""Key of the session attribute that says why there is none."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Whom a session belongs to.

    Attributes:
        id: its id, which is also its MQTT client id.
        role: its role in the access table.
        serial: serial number of the connection's certificate, 0 for a kept session without a connection.
        not_after: epoch seconds at which that certificate ends.
        issuer: serial number of the authority that issued it, 0 without a connection.
    """

    id: str
    role: Role
    serial: int = 0
    not_after: float = math.inf
    issuer: int = 0


class Access:
    """What the topic grammar's access table allows, and nothing else.

    Args:
        site: the site that is served.
    """

    def __init__(self, site: str) -> None:
        self._topics = Topics(site)

    @property
    def revoked(self) -> str:
        """Topic of the site's revocation list."""
        return self._topics.revoked

    def allows(self, holder: object, topic: str | None, action: BrokerAction | None) -> bool:
        """Tell whether a holder may publish to, subscribe to, or receive from a topic or filter."""
        if not isinstance(holder, Holder) or not topic:
            return False
        if action is BrokerAction.PUBLISH:
            return self._topics.may_publish(holder.role, holder.id, topic)
        if action is BrokerAction.SUBSCRIBE:
            return self._topics.may_subscribe(holder.role, holder.id, topic)
        if action is BrokerAction.RECEIVE:
            return self._topics.may_receive(holder.role, holder.id, topic)
        return False


class CertificateIdentity(BaseAuthPlugin):  # type: ignore[misc]
    """Authenticates by client certificate: the client id must be its common name; site and role are in its URI."""

    @dataclass
    class Config:
        """Plugin configuration.

        Attributes:
            site: the site that is served.
            credentials: know the site's authorities, also those that come while the broker runs.
        """

        site: str
        credentials: Credentials

    async def authenticate(self, *, session: Any) -> bool:
        """Verify the peer's certificate again, by our own rules, and remember who it is."""
        try:
            session.attributes[IDENTITY] = self._identify(session)
        except PeerError as error:
            session.attributes[REFUSAL] = str(error)
            return False
        return True

    def _identify(self, session: Any) -> Holder:
        presented = session.ssl_object.getpeercert(binary_form=True) if session.ssl_object is not None else None
        if not presented:
            raise PeerError("found no client certificate, expected one of this site", reason="certificate")
        leaf, *_ = load_certificates(presented)
        known: Credentials = self.config.credentials
        identity = verify_chain(
            leaf, known.intermediates, known.root, time.time(), purpose=Purpose.TLS_CLIENT, site=self.config.site
        )
        if session.client_id != identity.id:
            raise PeerError(
                f"found client id {str(session.client_id)[:80]!r}, expected the certificate's name {identity.id!r}",
                reason="identity",
            )
        return Holder(identity.id, identity.access_role, leaf.serial_number, identity.not_after, identity.issuer)


class GrammarAccess(BaseTopicPlugin):  # type: ignore[misc]
    """`Access` for amqtt's own code: the hub asks `Access` itself, and nothing behind it is open by default."""

    @dataclass
    class Config:
        """Plugin configuration.

        Attributes:
            site: the site that is served.
        """

        site: str

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self._access = Access(self.config.site)

    async def topic_filtering(self, *, session: Any = None, topic: str | None = None, action: Any = None) -> bool:
        """Tell whether the session may publish to, subscribe to, or receive from a topic or filter."""
        holder = session.attributes.get(IDENTITY) if session is not None else None
        return self._access.allows(holder, topic, action)
