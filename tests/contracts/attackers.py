"""What attacks on the embedded broker have in common: connected clients, and certificates that are none."""

from __future__ import annotations

import ssl
from pathlib import Path

import raw_mqtt as raw
from broker_parties import Authority, Embedded, make_authority
from raw_mqtt import ClosedError, RawClient

from vedette_core.runtime.identity import Bundle


def client(broker: Embedded, site: Authority, who: str, **options: object) -> RawClient:
    """A connected client of an enrolled party."""
    made = RawClient(broker.port, site.context(who))
    code, _ = made.connect(who, **options)
    assert code == 0
    return made


def no_certificate(site: Authority) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(Bundle(site.bundles["dev-a"]).ca)
    return context


def refused(broker: Embedded, tls: ssl.SSLContext, data: bytes) -> bool:
    """Whether a connection that says this gets no session."""
    try:
        with RawClient(broker.port, tls) as attacker:
            attacker.send(data)
            answer = attacker.receive()
            return answer is not None and answer[0] == raw.CONNACK and answer[2][1] != 0
    except (ClosedError, OSError):
        return True


def foreign_context(site: Authority, tmp_path: Path, who: str) -> ssl.SSLContext:
    """A certificate of the same names from an authority of somebody else's."""
    foreign = make_authority(tmp_path / "foreign", ["dev-a", "dev-b"])
    bundle = Bundle(foreign.bundles[who])
    context = no_certificate(site)
    context.load_cert_chain(bundle.tls_certificate, bundle.tls_key)
    return context
