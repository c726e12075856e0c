"""The topic grammar: the one place where topics are built, parsed, and access to them is written down.

Every broker's access rules are generated from `ACCESS`; see ``schemas/README.md`` for the table.

Source: MQTT 3.1.1 §4.7 (topic names and filters).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from vedette_schemas.errors import PeerError

WIRE_VERSION: Final = 1
ID_PATTERN: Final = r"[a-z0-9-]{1,60}"
TASK_PATTERN: Final = r"[a-z0-9-]{1,40}"
TOKEN_ID_PREFIX: Final = "enrol-"
"""Ids of enrolment tokens begin with it, and no node's does: a token has no branch below ``device/``."""
TOPIC_BYTES_MAX: Final = 512
"""No topic of the grammar is longer; longer ones are refused before they are parsed."""

_ID: Final = re.compile(ID_PATTERN)
_TASK: Final = re.compile(TASK_PATTERN)
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_FILE: Final = re.compile(r"[a-z0-9-]{1,60}(\.[a-z0-9-]{1,60}){0,3}\.json")


class Role(StrEnum):
    """Who a certificate says that its holder is."""

    DEVICE = "device"
    AGGREGATOR = "aggregator"
    ANALYTICS = "analytics"
    AUTHORITY = "authority"
    BOOTSTRAP = "bootstrap"


class Action(StrEnum):
    """What an access rule allows."""

    READ = "read"
    WRITE = "write"


class FlStep(StrEnum):
    """What a device says in a round."""

    CHECKIN = "checkin"
    UPLOAD = "upload"
    VOTE = "vote"
    SHARES = "shares"


RENEW: Final = "renew"
"""Name of the remote call that renews certificates."""
_STEPS: Final = frozenset(step.value for step in FlStep)


@dataclass(frozen=True, slots=True)
class AccessRule:
    """One line of the default-deny access table.

    Attributes:
        role: whom it allows.
        action: read (subscribe and receive) or write (publish).
        pattern: topic filter below ``vedette/1/{site}/``; ``%u`` stands for the holder's own id.
    """

    role: Role
    action: Action
    pattern: str


ACCESS: Final[tuple[AccessRule, ...]] = (
    AccessRule(Role.DEVICE, Action.WRITE, "device/%u/up/#"),
    AccessRule(Role.DEVICE, Action.READ, "device/%u/down/#"),
    AccessRule(Role.DEVICE, Action.READ, "public/#"),
    AccessRule(Role.AGGREGATOR, Action.READ, "device/+/up/#"),
    AccessRule(Role.AGGREGATOR, Action.WRITE, "device/+/down/#"),
    AccessRule(Role.AGGREGATOR, Action.READ, "public/#"),
    AccessRule(Role.AGGREGATOR, Action.WRITE, "public/#"),
    AccessRule(Role.AGGREGATOR, Action.READ, "label/#"),
    AccessRule(Role.ANALYTICS, Action.READ, "device/+/up/alert"),
    AccessRule(Role.ANALYTICS, Action.READ, "device/+/up/state"),
    AccessRule(Role.ANALYTICS, Action.READ, "device/+/up/telemetry"),
    AccessRule(Role.ANALYTICS, Action.READ, "public/#"),
    AccessRule(Role.ANALYTICS, Action.READ, "label/#"),
    AccessRule(Role.ANALYTICS, Action.WRITE, "label/#"),
    AccessRule(Role.AUTHORITY, Action.READ, "enrol/+/up"),
    AccessRule(Role.AUTHORITY, Action.WRITE, "enrol/+/down"),
    AccessRule(Role.AUTHORITY, Action.READ, "device/+/up/rpc/renew"),
    AccessRule(Role.AUTHORITY, Action.WRITE, "device/+/down/rpc/renew"),
    AccessRule(Role.AUTHORITY, Action.READ, "public/#"),
    AccessRule(Role.AUTHORITY, Action.WRITE, "public/revoked"),
    AccessRule(Role.BOOTSTRAP, Action.WRITE, "enrol/%u/up"),
    AccessRule(Role.BOOTSTRAP, Action.READ, "enrol/%u/down"),
)
"""The whole of who may speak. What is not here is denied."""


def check_id(value: str, what: str = "id") -> str:
    """Return `value` if it is a valid id.

    Raises:
        PeerError: if it is not ``[a-z0-9-]{1,60}``.
    """
    if not _ID.fullmatch(value):
        raise PeerError(f"{what}: found {value[:80]!r}, expected {ID_PATTERN}", reason="topic")
    return value


def is_filter(text: str) -> bool:
    """Tell whether a text is a valid topic filter (§4.7.1: wildcards fill a whole level, ``#`` only the last)."""
    levels = text.split("/")
    return (
        text != ""
        and "\0" not in text
        and all(level in ("+", "#") or not set(level) & set("+#") for level in levels)
        and "#" not in levels[:-1]
    )


def matches(topic_filter: str, topic: str) -> bool:
    """Tell whether an MQTT topic filter matches a topic name (§4.7; ``$``-topics never match a leading wildcard)."""
    if topic.startswith("$") and topic_filter[:1] in ("+", "#"):
        return False
    wanted, found = topic_filter.split("/"), topic.split("/")
    for i, level in enumerate(wanted):
        if level == "#":
            return i == len(wanted) - 1
        if i >= len(found) or (level != "+" and level != found[i]):
            return False
    return len(wanted) == len(found)


def covers(rule_filter: str, asked_filter: str) -> bool:
    """Tell whether every topic that `asked_filter` can match is also matched by `rule_filter`.

    This is what a SUBSCRIBE must be checked with: a rule ``a/+`` does not allow a subscription to ``a/#``. What is no
    valid filter is covered by nothing.
    """
    if not is_filter(asked_filter) or (asked_filter.startswith("$") and rule_filter[:1] in ("+", "#")):
        return False
    rule, asked = rule_filter.split("/"), asked_filter.split("/")
    if asked[0] == "#" and rule == ["+", "#"]:
        return True  # a topic has at least one level, so that these two are the same set
    for i, level in enumerate(rule):
        if level == "#":
            return True
        if i >= len(asked):
            return False
        if asked[i] == "#" or (level != "+" and asked[i] != level):
            return False
    return len(rule) == len(asked)


@dataclass(frozen=True, slots=True)
class Topics:
    """Builds the topics and filters of one site.

    Args:
        site: the site's id.
    """

    site: str

    def __post_init__(self) -> None:
        check_id(self.site, "site")

    @property
    def root(self) -> str:
        """The site's prefix, without a trailing slash."""
        return f"vedette/{WIRE_VERSION}/{self.site}"

    def alert(self, device: str) -> str:
        """Topic of a device's alerts (JSON)."""
        return f"{self.root}/device/{device}/up/alert"

    def state(self, device: str) -> str:
        """Topic of a device's retained state and will (JSON)."""
        return f"{self.root}/device/{device}/up/state"

    def telemetry(self, device: str) -> str:
        """Topic of a device's node report."""
        return f"{self.root}/device/{device}/up/telemetry"

    def fl(self, device: str, task: str, step: FlStep) -> str:
        """Topic of one step of a round, from a device."""
        return f"{self.root}/device/{device}/up/fl/{task}/{step.value}"

    def receipt(self, device: str) -> str:
        """Topic on which the aggregator tells a device which ids it accepted or rejected."""
        return f"{self.root}/device/{device}/down/receipt"

    def command(self, device: str) -> str:
        """Topic of signed commands to a device."""
        return f"{self.root}/device/{device}/down/command"

    def committee(self, device: str) -> str:
        """Topic of committee work for a device."""
        return f"{self.root}/device/{device}/down/committee"

    def rpc_up(self, device: str, name: str) -> str:
        """Topic of a device's question to the aggregator, or its answer."""
        return f"{self.root}/device/{device}/up/rpc/{name}"

    def rpc_down(self, device: str, name: str) -> str:
        """Topic of the aggregator's answer to a device, or its question."""
        return f"{self.root}/device/{device}/down/rpc/{name}"

    @property
    def attestation(self) -> str:
        """Retained topic of the aggregator's own measurement."""
        return f"{self.root}/public/attestation"

    def round(self, task: str) -> str:
        """Retained topic of a task's current round."""
        return f"{self.root}/public/round/{task}"

    def group(self, task: str, gid: int) -> str:
        """Retained topic of one group's roster in the current round."""
        return f"{self.root}/public/round/{task}/group/{gid}"

    def groups(self, task: str) -> str:
        """Filter of every group's roster, for helpers that sit in many committees."""
        return f"{self.root}/public/round/{task}/group/+"

    def trust(self, file: str) -> str:
        """Retained topic of a TUF metadata file; a dot becomes ``_``: NATS before 2.10 takes no dot in a topic."""
        return f"{self.root}/public/trust/{file.replace('.', '_')}"

    def artifact(self, sha256: str, chunk: int | None = None) -> str:
        """Retained topic of a content-addressed artifact, or of one chunk of a large one."""
        base = f"{self.root}/public/artifact/{sha256}"
        return base if chunk is None else f"{base}/{chunk}"

    def rollout(self, task: str) -> str:
        """Retained topic of a task's rollout state."""
        return f"{self.root}/public/rollout/{task}"

    @property
    def revoked(self) -> str:
        """Retained topic of the newest revocation list."""
        return f"{self.root}/public/revoked"

    def renewal_request(self, device: str) -> str:
        """Topic on which a node asks for newer certificates; ``+`` for every node's."""
        return f"{self.root}/device/{device}/up/rpc/{RENEW}"

    def renewal_reply(self, device: str) -> str:
        """Topic on which the authority answers a node."""
        return f"{self.root}/device/{device}/down/rpc/{RENEW}"

    def enrolment_request(self, token: str) -> str:
        """Topic on which a new node asks for its first certificates; ``+`` for every token's."""
        return f"{self.root}/enrol/{token}/up"

    def enrolment_reply(self, token: str) -> str:
        """Topic on which the authority answers a new node."""
        return f"{self.root}/enrol/{token}/down"

    def parse(self, topic: str) -> Parsed:
        """Take a topic name apart.

        Raises:
            PeerError: if it is not a topic of this site's grammar.
        """
        return _parse(self, topic)

    def access(self, role: Role, holder: str) -> tuple[tuple[Action, str], ...]:
        """Every (action, topic filter) that `role` held by `holder` is allowed; the rest is denied."""
        check_id(holder, "holder")
        return tuple(
            (rule.action, f"{self.root}/{rule.pattern.replace('%u', holder)}") for rule in ACCESS if rule.role is role
        )

    def may_publish(self, role: Role, holder: str, topic: str) -> bool:
        """Tell whether the holder may publish to a topic name (§3.3.2.1: a name has no wildcard)."""
        return not set(topic) & set("+#\0") and any(
            a is Action.WRITE and matches(f, topic) for a, f in self.access(role, holder)
        )

    def may_receive(self, role: Role, holder: str, topic: str) -> bool:
        """Tell whether a message on a topic may be delivered to the holder."""
        return any(a is Action.READ and matches(f, topic) for a, f in self.access(role, holder))

    def may_subscribe(self, role: Role, holder: str, topic_filter: str) -> bool:
        """Tell whether the holder may subscribe to a filter: every topic that it can match must be readable."""
        return any(a is Action.READ and covers(f, topic_filter) for a, f in self.access(role, holder))


@dataclass(frozen=True, slots=True)
class Parsed:
    """A topic name, taken apart.

    Attributes:
        kind: the conversation: ``alert state telemetry fl rpc receipt command committee round group trust
            artifact rollout revoked intel attestation label enrol``.
        device: the device's id, for ``device/`` topics; the labelled alert's id for ``label``; the token's for
            ``enrol``.
        task: for ``fl``, ``round``, ``group`` and ``rollout``.
        step: for ``fl``.
        key: the file, digest, or rpc name.
        index: group id or chunk number.
    """

    kind: str
    device: str | None = None
    task: str | None = None
    step: FlStep | None = None
    key: str | None = None
    index: int | None = None


def _parse(topics: Topics, topic: str) -> Parsed:
    refused = PeerError(
        f"topic: found {topic[:120]!r}, expected one of the grammar below {topics.root}/", reason="topic"
    )
    prefix = topics.root + "/"
    # The grammar is ASCII, so that characters are bytes for everything that gets past the pattern.
    if len(topic) > TOPIC_BYTES_MAX or not topic.startswith(prefix):
        raise refused
    match topic.removeprefix(prefix).split("/"):
        case ["device", device, "up", ("alert" | "state" | "telemetry") as kind] if _is_device(device):
            return Parsed(kind, device=device)
        case ["device", device, "up", "fl", task, step] if (
            _is_device(device) and _TASK.fullmatch(task) and step in _STEPS
        ):
            return Parsed("fl", device=device, task=task, step=FlStep(step))
        case ["device", device, ("up" | "down"), "rpc", key] if _is_device(device) and _ID.fullmatch(key):
            return Parsed("rpc", device=device, key=key)
        case ["device", device, "down", ("receipt" | "command" | "committee") as kind] if _is_device(device):
            return Parsed(kind, device=device)
        case ["public", ("round" | "rollout") as kind, task] if _TASK.fullmatch(task):
            return Parsed(kind, task=task)
        case ["public", "round", task, "group", gid] if _TASK.fullmatch(task) and _number(gid):
            return Parsed("group", task=task, index=int(gid))
        case ["public", "trust", level] if "." not in level and _FILE.fullmatch(level.replace("_", ".")):
            return Parsed("trust", key=level.replace("_", "."))
        case ["public", "artifact", digest] if _SHA256.fullmatch(digest):
            return Parsed("artifact", key=digest)
        case ["public", "artifact", digest, chunk] if _SHA256.fullmatch(digest) and _number(chunk):
            return Parsed("artifact", key=digest, index=int(chunk))
        case ["public", ("revoked" | "intel" | "attestation") as kind]:
            return Parsed(kind)
        case ["enrol", token, ("up" | "down")] if _ID.fullmatch(token) and token.startswith(TOKEN_ID_PREFIX):
            return Parsed("enrol", device=token)
        case ["label", alert] if _ID.fullmatch(alert):
            return Parsed("label", device=alert)
    raise refused


def _is_device(level: str) -> bool:
    return _ID.fullmatch(level) is not None and not level.startswith(TOKEN_ID_PREFIX)


def _number(level: str) -> bool:
    return re.fullmatch(r"0|[1-9][0-9]{0,5}", level) is not None
