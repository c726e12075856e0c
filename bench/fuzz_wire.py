"""What `fuzz.py` is aimed at in the conversations: envelopes, messages, masked sums, score sketches, weights, MQTT.

The seeds are the golden messages of ``tests/vectors``, one of every message and kept complete by a test there, and what
is written here with the product's own encoders. A damaged message that still decodes must encode to itself again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, Self

import numpy as np
from cryptography.exceptions import InvalidSignature

from vedette_aggregator.intake import Intake as AggregatorIntake
from vedette_core.crypto.signing import Ed25519Signer
from vedette_core.learning.network import build_network
from vedette_core.learning.sketch import ScoreSketch
from vedette_core.learning.spec import flow_spec
from vedette_core.learning.weights_file import WeightsFile, read_weights, write_weights
from vedette_core.secagg.aggregator import Unmasking, UploadEvidence
from vedette_device.intake import Intake as DeviceIntake
from vedette_schemas import (
    alert,
    attestation,
    codec,
    command,
    enrolment,
    envelope,
    model,
    rollout,
    secagg,
    telemetry,
    trust,
)
from vedette_schemas import round as rounds
from vedette_schemas.codec import Message
from vedette_schemas.envelope import Envelope, unseal
from vedette_schemas.errors import PeerError, VedetteError
from vedette_schemas.features import NETWORK_FLOWS
from vedette_schemas.topics import Topics

GOLDEN: Final = Path(__file__).parents[1] / "tests" / "vectors" / "messages.json"
SITE: Final = Topics("plant-1")
NOW_S: Final = 1_770_000_000.0

CLASSES: Final[dict[str, type[Message]]] = {
    found.__name__: found
    for module in (alert, attestation, command, enrolment, model, rollout, rounds, secagg, telemetry, trust)
    for found in vars(module).values()
    if isinstance(found, type) and issubclass(found, Message) and found is not Message
}


@dataclass(frozen=True, slots=True)
class Target:
    """One parser, with what it may be given and what it may answer.

    Attributes:
        seeds: sound inputs; it accepts the first.
        run: gives it one input; True if anything was accepted, False or a declared exception if not.
        declared: the exceptions that its docstring promises; any other is a finding.
    """

    seeds: tuple[bytes, ...]
    run: Callable[[bytes], bool]
    declared: tuple[type[VedetteError], ...] = (PeerError,)


@dataclass(frozen=True, slots=True)
class Golden:
    """One golden message: its class, how it is encoded, and where it travels."""

    cls: type[Message]
    encoding: str
    topic: str
    kind: str
    sender: str
    data: bytes

    @property
    def body(self) -> bytes:
        """The message without its envelope."""
        return codec.unpack(Envelope, self.data).body if self.encoding == "sealed" else self.data


def golden() -> list[Golden]:
    """The golden messages."""
    rows = json.loads(GOLDEN.read_text())
    return [
        Golden(CLASSES[r["message"]], r["encoding"], r["topic"], r["type"], r["sender"], bytes.fromhex(r["hex"]))
        for r in rows
    ]


class _Believing:
    """Keys that hold whatever is signed: what is behind a signature must stand any bytes, too."""

    def sign(self, data: bytes) -> bytes:
        return hashlib.sha512(data).digest()

    def verify(self, sender: str, signature: bytes, data: bytes) -> None:
        """Holds."""

    def learn(self, certificate: bytes, now: float, **_: Any) -> None:
        """Held."""

    def fork(self) -> Self:
        return self

    def identity(self, sender: str) -> Any:
        return SimpleNamespace(not_after=NOW_S + 1.0)


class _Signed:
    """Real signatures, of one key that every sender has."""

    def __init__(self) -> None:
        self._signer = Ed25519Signer.from_seed(bytes(32))

    def sign(self, data: bytes) -> bytes:
        return self._signer.sign(data)

    def verify(self, sender: str, signature: bytes, data: bytes) -> None:
        try:
            self._signer.public_key.verify(signature, data)
        except InvalidSignature as fault:
            raise PeerError(f"signature of {sender} does not hold", reason="signature") from fault


def envelope_target(_: Path) -> Target:
    """Sealed messages with real signatures: what is opened must be what was sealed."""
    keys = _Signed()
    sealed = [each for each in golden() if each.encoding == "sealed"]
    bodies = {each.kind: each.cls for each in sealed}
    sent = {(each.kind, each.sender, each.body) for each in sealed}

    def run(data: bytes) -> bool:
        kind = envelope.kind_of(data)
        body, sender = unseal(bodies.get(kind, rounds.RoundOpen), data, kind, keys)
        if (kind, sender, codec.pack(body)) not in sent:
            raise AssertionError(f"opened a {kind} of {sender} that nobody sealed")
        return True

    seeds = [envelope.seal(codec.unpack(each.cls, each.body), each.kind, each.sender, keys) for each in sealed]
    return Target(tuple(seeds), run)


def message_target(_: Path) -> Target:
    """Every message body, msgpack and JSON; the first byte of an input says which message it is taken for."""
    kinds = list({(each.cls, each.encoding == "json"): None for each in golden()})

    def run(data: bytes) -> bool:
        if not data:
            return False
        (cls, is_json), body = kinds[data[0] % len(kinds)], data[1:]
        if cls is alert.Alert:
            alert.encode(alert.decode(body))
            return True
        found = codec.unpack_json(cls, body) if is_json else codec.unpack(cls, body)
        # JSON grows when it is written again (escapes, 1e99): only its limit may then be passed.
        if is_json:
            again = cls.model_validate_json(found.model_dump_json(exclude_none=True))
        else:
            again = codec.unpack(cls, codec.pack(found))
        if found != again:
            raise AssertionError(f"{cls.__name__} is another one when it is encoded again")
        return True

    seeds = (bytes([kinds.index((each.cls, each.encoding == "json"))]) + each.body for each in golden())
    return Target(tuple(seeds), run)


def secagg_target(_: Path) -> Target:
    """Everything of a round behind its signature: both intakes, and the sum that votes and shares are about."""
    keys = _Believing()
    travelling = [each for each in golden() if each.topic and each.kind]
    tasks = ("network",)
    aggregator = AggregatorIntake(SITE, keys, tasks)
    devices = {
        name: DeviceIntake(SITE, name, "aggregator", tasks, keys)
        for name in {each.topic.split("/")[4] for each in travelling if "/down/" in each.topic} | {"gw-01"}
    }
    first = {each.cls: each.data for each in reversed(travelling)}
    roster = unseal(rounds.Roster, first[rounds.Roster], rounds.ROSTER_TYPE, keys)[0]
    plan = codec.unpack(rounds.Plan, next(each.data for each in golden() if each.cls is rounds.Plan))
    uploads = [unseal(rounds.Upload, e.data, e.kind, keys)[0] for e in travelling if e.cls is rounds.Upload]
    evidence = {each.device: UploadEvidence.of(each) for each in uploads if each.boxes}

    def run(data: bytes) -> bool:
        if not data:
            return False
        each = travelling[data[0] % len(travelling)]
        body = data[1 : 1 + codec.PAYLOAD_BYTES_MAX]
        signature = keys.sign(body)
        sealed = codec.pack(Envelope(v=1, type=each.kind, sender=each.sender, body=body, sig=signature))
        if "/up/" in each.topic:
            aggregator.take(each.topic, sealed, NOW_S)
        else:
            parts = each.topic.split("/")
            devices.get(parts[4], devices["gw-01"]).take(each.topic, sealed)
        message = codec.unpack(each.cls, body)
        unmasking = Unmasking(roster, plan, evidence)
        if isinstance(message, secagg.Vote):
            unmasking.take_vote(message, sealed)
        elif isinstance(message, secagg.Shares):
            unmasking.take_shares(message)
        unmasking.try_open()
        return True

    return Target(tuple(bytes([place]) + each.body for place, each in enumerate(travelling)), run)


def sketch_target(_: Path) -> Target:
    """Score sketches; there is one form of each."""

    def run(data: bytes) -> bool:
        sketch = ScoreSketch.from_bytes(data)
        if sketch.to_bytes() != data:
            raise AssertionError("a sketch has two forms")
        if sketch.total:
            sketch.threshold(0.01)
            sketch.representatives(512)
            sketch.outline()
        return True

    rng = np.random.default_rng(7)
    samples: tuple[Any, ...] = (
        [],
        [0.5],
        rng.lognormal(0.0, 1.0, 500),
        rng.lognormal(0.0, 4.0, 5_000),
        np.full(300, 1e9),
    )
    return Target(tuple(ScoreSketch.of(each).to_bytes() for each in samples), run)


def weights_target(_: Path) -> Target:
    """Model files in full precision."""
    network = build_network(flow_spec(*NETWORK_FLOWS.input_shape))
    weights = np.random.default_rng(7).standard_normal(network.layout.size).astype(np.float32)

    def run(data: bytes) -> bool:
        write_weights(read_weights(data))
        return True

    return Target((write_weights(WeightsFile(network, weights, NETWORK_FLOWS)),), run)


def topic_target(_: Path) -> Target:
    """Names of topics."""

    def run(data: bytes) -> bool:
        SITE.parse(data.decode("utf-8", "replace"))
        return True

    names = {each.topic for each in golden() if each.topic} | {SITE.artifact("ab" * 32, 3), SITE.trust("root.json")}
    return Target(tuple(sorted(name.encode() for name in names)), run)


class _Writer:
    """What a connection writes to; forgets it."""

    def __init__(self) -> None:
        self.transport = SimpleNamespace(abort=lambda: None)

    def get_extra_info(self, _: str) -> None:
        return None

    def write(self, data: bytes) -> None:
        """Taken."""

    async def drain(self) -> None:
        """Nothing waits."""


class _Hub:
    """A broker that lets everyone in and counts what they say."""

    def __init__(self, make_session: Callable[..., Any], session_log: Any) -> None:
        self._make, self.session_log, self.heard = make_session, session_log, 0
        self.counts: Counter[str] = Counter()

    async def authenticate(self, session: Any) -> bool:
        return True

    async def attach(self, connection: Any, session: Any) -> Any:
        await connection.accept(session_present=False)
        state = self._make(session, True)
        state.connection = connection
        return state

    def detach(self, connection: Any, state: Any) -> None:
        """Gone."""

    async def publish(self, session: Any, message: Any) -> None:
        message.topic.encode()  # as the broker does
        self.heard += 1

    async def publish_will(self, session: Any) -> None:
        self.heard += 1

    async def subscribe(self, state: Any, topic_filter: str, qos: int) -> int:
        self.heard += 1
        return min(qos, 1)

    def acknowledged(self, state: Any, packet_id: int) -> None:
        self.heard += 1

    async def send_retained(self, state: Any, topic_filter: str, qos: int) -> None:
        """Nothing is retained."""

    def unsubscribe(self, state: Any, topic_filter: str) -> None:
        self.heard += 1


def _text(word: bytes) -> bytes:
    return struct.pack("!H", len(word)) + word


def _packet(first: int, body: bytes) -> bytes:
    assert len(body) < 128, "one byte of length"
    return bytes([first, len(body)]) + body


def mqtt_target(_: Path) -> Target:
    """What a client may send to the embedded broker, from CONNECT on; needs amqtt."""
    from vedette_broker.connection import Connection
    from vedette_broker.session import ClientSession
    from vedette_broker.session_log import SessionLog

    loop = asyncio.new_event_loop()

    async def serve(data: bytes) -> bool:
        hub, reader = _Hub(ClientSession, SessionLog()), asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        stubs: tuple[Any, Any] = hub, _Writer()
        # Every exception that may end a connection is caught inside; what comes out here is none of them.
        await Connection(stubs[0], reader, stubs[1]).serve()
        return hub.heard > 0

    def run(data: bytes) -> bool:
        return loop.run_until_complete(serve(data))

    topic = SITE.alert("gw-01").encode()
    connect = _packet(0x10, b"\x00\x04MQTT\x04\x02\x00\x3c" + _text(b"gw-01"))
    will = _packet(0x10, b"\x00\x04MQTT\x04\x2e\x00\x3c" + _text(b"gw-01") + _text(topic) + _text(b"gone"))
    publish = _packet(0x32, _text(topic) + b"\x00\x07" + b"{}") + _packet(0x30, _text(topic) + b"{}")
    ask = _packet(0x82, b"\x00\x01" + _text(b"vedette/1/+/public/#") + b"\x01" + _text(topic) + b"\x00")
    rest = _packet(0xA2, b"\x00\x02" + _text(topic)) + _packet(0x40, b"\x00\x01") + b"\xc0\x00\xe0\x00"
    return Target((connect + ask + publish + rest, will + publish, connect + publish * 3), run)


WIRE: Final[dict[str, Callable[[Path], Target]]] = {
    "envelope": envelope_target,
    "message": message_target,
    "secagg": secagg_target,
    "sketch": sketch_target,
    "weights": weights_target,
    "topic": topic_target,
    "mqtt": mqtt_target,
}
"""Name of a parser → how its target is made; the folder is for those that read files."""
