"""The rules of a policy: which alerts are answered with what, and how often at most.

A rules file is TOML with one ``[[rule]]`` table a rule; see ``device_node/policy.example.toml``. Every rule that
matches an alert acts, in the order of the file; each has its own memory of what it did
(`vedette_device.policy_history`).

Source: `docs/detection.md` §3 «Policy».
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Protocol, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from vedette_schemas.alert import Alert, AlertState, Severity
from vedette_schemas.errors import ConfigError
from vedette_schemas.topics import ID_PATTERN

RULES_MAX: Final = 256
"""Every alert is held against every rule; nobody oversees more of them."""
RULES_BYTES_MAX: Final = 1024 * 1024
MEASURE_S_MAX: Final = 30 * 86_400
"""No quarantine lasts longer than a month: what is meant for good belongs into the site's own firewall."""
RATES_MAX: Final = 16
"""Different rates of throttle rules: each costs the firewall a set and two rules."""
PAYLOAD_CHARACTERS_MAX: Final = 4096
FAULTS_SHOWN: Final = 8
LOOPBACK_NAMES: Final = frozenset({"localhost", "localhost.localdomain", "ip6-localhost"})

Glob = Annotated[str, Field(min_length=1, max_length=100)]
Seconds = Annotated[float, Field(gt=0, le=MEASURE_S_MAX)]


class RuleBase(BaseModel):
    """What every rule has: when it matches (all of it must), and how often it acts.

    Attributes:
        name: unique in the file; in the audit and the logs.
        detector: detectors whose alerts it is for; none is any.
        kind: kinds of alerts, ``magnitude`` or ``sustained``; none is any.
        severity_min: least severity.
        confidence_min: least confidence, 0–1.
        feature: shell patterns, of which one must match one of the alert's features; none is any.
        entity: shell patterns or networks (``192.168.10.0/24``), of which one must hold the entity; none is any.
        state: states of the alert's reports.
        cooldown_s: seconds after it acted on an entity in which it does not act on the same entity again.
        per_hour_max: most times that it acts in an hour.
        once: whether it acts once for an alert, or for every report of it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=f"^{ID_PATTERN}$")]
    detector: Annotated[tuple[str, ...], Field(max_length=8)] = ()
    kind: Annotated[tuple[str, ...], Field(max_length=8)] = ()
    severity_min: Severity = Severity.LOW
    confidence_min: Annotated[float, Field(ge=0, le=1)] = 0.0
    feature: Annotated[tuple[Glob, ...], Field(max_length=64)] = ()
    entity: Annotated[tuple[Glob, ...], Field(max_length=64)] = ()
    state: Annotated[tuple[AlertState, ...], Field(min_length=1, max_length=3)] = (AlertState.OPEN, AlertState.UPDATED)
    cooldown_s: Annotated[float, Field(ge=0, le=30 * 86_400)] = 300.0
    per_hour_max: Annotated[int, Field(ge=1, le=360)] = 10
    once: bool = True

    @field_validator("detector", "kind")
    @classmethod
    def _known(cls, value: tuple[str, ...], info: Any) -> tuple[str, ...]:
        # What alerts can say is written down once, in their schema.
        known = get_args(Alert.model_fields[info.field_name].annotation)
        for word in value:
            if word not in known:
                raise ValueError(f"no alert says {word!r}, expected of: {', '.join(known)}")
        return value

    @field_validator("entity")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in value:
            if "/" in pattern:
                ip_network(pattern)
        return value

    def matches(self, alert: Alert) -> bool:
        """Whether the rule is for this report of this alert."""
        return (
            alert.state in self.state
            and (not self.detector or alert.detector in self.detector)
            and (not self.kind or alert.kind in self.kind)
            and alert.severity.rank >= self.severity_min.rank
            and alert.confidence >= self.confidence_min
            and (not self.entity or any(_holds(pattern, alert.entity) for pattern in self.entity))
            and (not self.feature or any(fnmatchcase(f.name, p) for f in alert.features for p in self.feature))
        )


class LogRule(RuleBase):
    """Write a line into the node's log, at `level`."""

    action: Literal["log"]
    level: Literal["info", "warning", "error"] = "warning"


class PublishRule(RuleBase):
    """Publish a message on the site's own broker (``[policy.broker]``), for what listens there.

    Attributes:
        topic: topic name, without wildcards.
        payload: text that is published; ``alert`` publishes the alert's JSON.
        retain: whether the broker keeps it.
    """

    action: Literal["publish"]
    topic: Annotated[str, Field(min_length=1, max_length=512, pattern=r"^[^+#\x00$][^+#\x00]*$")]
    payload: Annotated[str, Field(max_length=PAYLOAD_CHARACTERS_MAX)] = "alert"
    retain: bool = False


class _MeasureRule(RuleBase):
    """A measure on an address, for a time.

    Attributes:
        seconds: how long it lasts; further alerts draw it out up to ``quarantine_s_max``.
        release_on_close: whether it ends when its alert closes. A host that is cut off falls silent, which closes its
            alert: leave it off for a quarantine unless that is meant.
    """

    seconds: Seconds = 900.0
    release_on_close: bool = False


class QuarantineRule(_MeasureRule):
    """Drop everything from and to the entity's address."""

    action: Literal["quarantine"]


class ThrottleRule(_MeasureRule):
    """Let only so many bytes a second from and to the entity's address pass.

    Attributes:
        kbytes_per_s: kilobytes (1,024 bytes) a second, each way.
    """

    action: Literal["throttle"]
    kbytes_per_s: Annotated[int, Field(ge=1, le=1_000_000)]


class WebhookRule(RuleBase):
    """POST the alert as JSON.

    Attributes:
        url: ``https``, or ``http`` to this machine.
        timeout_s: seconds for all of an attempt.
        plain_http_allowed: allow ``http`` to another machine: what is sent can be read and changed on its way.
        secret_file: file with a key; the request then has ``X-Vedette-Signature: sha256=`` HMAC-SHA-256 of the body.
    """

    action: Literal["webhook"]
    url: Annotated[str, Field(min_length=8, max_length=2000)]
    timeout_s: Annotated[float, Field(ge=0.1, le=30)] = 5.0
    plain_http_allowed: bool = False
    secret_file: Path | None = None

    @model_validator(mode="after")
    def _address(self) -> WebhookRule:
        check_url(self.url, plain_http_allowed=self.plain_http_allowed)
        return self


class ExecRule(RuleBase):
    """Run a program, without a shell, with the alert's JSON on its standard input.

    Attributes:
        command: absolute path and arguments, as they are: nothing of an alert is put into them.
        timeout_s: seconds after which it is killed, with everything that it started.
    """

    action: Literal["exec"]
    command: Annotated[tuple[Annotated[str, Field(max_length=4096)], ...], Field(min_length=1, max_length=64)]
    timeout_s: Annotated[float, Field(ge=0.1, le=600)] = 10.0

    @field_validator("command")
    @classmethod
    def _absolute(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value[0].startswith("/"):
            raise ValueError(f"found the program {value[0]!r}, expected an absolute path")
        if any("\0" in word for word in value):
            raise ValueError("found a NUL character, expected none")
        return value


Rule = LogRule | PublishRule | QuarantineRule | ThrottleRule | WebhookRule | ExecRule


class Policy(BaseModel):
    """All rules, in the order of their file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rule: Annotated[
        tuple[Annotated[Rule, Field(discriminator="action")], ...], Field(min_length=1, max_length=RULES_MAX)
    ]

    @model_validator(mode="after")
    def _together(self) -> Policy:
        names = [rule.name for rule in self.rule]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"found two rules of the name {twice[0]!r}, expected a name each")
        if len(self.rates) > RATES_MAX:
            raise ValueError(f"found {len(self.rates)} different kbytes_per_s, expected at most {RATES_MAX}")
        return self

    @property
    def rates(self) -> frozenset[int]:
        """Every rate that a throttle rule names, kilobytes a second."""
        return frozenset(rule.kbytes_per_s for rule in self.rule if isinstance(rule, ThrottleRule))

    @property
    def needs_firewall(self) -> bool:
        """Whether any rule acts on packets."""
        return any(isinstance(rule, _MeasureRule) for rule in self.rule)


class Verdict(StrEnum):
    """What a rule that matches does."""

    ACT = "act"
    DONE = "done"
    """It has acted for this alert already."""
    COOLDOWN = "cooldown"
    """It acted on this entity a short while ago."""
    LIMIT = "limit"
    """It has acted as often as it may in an hour."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A rule that matches an alert, and what it does about it."""

    rule: Rule
    verdict: Verdict


class Memory(Protocol):
    """What a decision needs to know of earlier ones."""

    def verdict(self, rule: Rule, alert: Alert, now: float) -> Verdict:
        """Whether a rule that matches may act."""


def decide(alert: Alert, now: float, memory: Memory, policy: Policy) -> list[Decision]:
    """Every rule that matches a report, in the order of the file, and whether it acts; changes nothing.

    Args:
        alert: the report.
        now: seconds.
        memory: what the rules did before.
        policy: the rules.
    """
    return [Decision(rule, memory.verdict(rule, alert, now)) for rule in policy.rule if rule.matches(alert)]


def parse_policy(text: str, where: str) -> Policy:
    """Rules from the text of a rules file.

    Args:
        text: TOML.
        where: what the file is called in errors.

    Raises:
        ConfigError: no TOML, an unknown key (with a suggestion), a value out of range, two rules of one name.
    """
    if len(text) > RULES_BYTES_MAX:
        raise ConfigError(f"{where}: found {len(text)} characters, expected at most {RULES_BYTES_MAX}")
    try:
        plain = tomllib.loads(text)
    except tomllib.TOMLDecodeError as fault:
        raise ConfigError(f"{where}: found no valid TOML ({fault})") from fault
    try:
        return Policy.model_validate(plain)
    except ValidationError as fault:
        lines = [_explain(plain, error) for error in fault.errors(include_url=False)[:FAULTS_SHOWN]]
        raise ConfigError(f"{where}: " + "; ".join(lines)) from fault


def check_url(url: str, *, plain_http_allowed: bool = False) -> None:
    """Check where a webhook goes to.

    Raises:
        ValueError: neither https nor this machine, credentials in the URL, no host, or characters that are none of a
            URL.
    """
    parts = urlsplit(url)
    if not url.isascii() or any(ord(c) <= 0x20 or ord(c) == 0x7F for c in url):
        raise ValueError(f"found the URL {url!r}, expected ASCII without spaces; encode the rest")
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise ValueError(f"found the URL {url!r}, expected https://host/path")
    if parts.username is not None or parts.password is not None:
        raise ValueError("found credentials in the URL, expected none: sign with secret_file")
    _ = parts.port  # raises for a port that is none
    if parts.scheme == "http" and not (plain_http_allowed or _is_loopback(parts.hostname)):
        raise ValueError(f"found plain http to {parts.hostname}, expected https; plain_http_allowed = true allows it")


def _is_loopback(host: str) -> bool:
    if host in LOOPBACK_NAMES:
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _holds(pattern: str, entity: str) -> bool:
    if "/" not in pattern:
        return fnmatchcase(entity, pattern)
    try:
        return ip_address(entity) in ip_network(pattern)
    except ValueError:
        return False


def _explain(plain: dict[str, Any], error: Any) -> str:
    """One fault in words: which rule, which key, what was found, what was expected."""
    path: Sequence[Any] = error["loc"]
    rules = plain.get("rule")
    subject, action = "", ""
    if len(path) > 1 and path[0] == "rule" and isinstance(rules, list):
        table = rules[path[1]]
        name, action = (str(table.get(key, "")) if isinstance(table, dict) else "" for key in ("name", "action"))
        subject = f"rule {path[1] + 1}" + (f" ({name!r})" if name else "") + ": "
        path = [p for p in path[2:] if p != action] or path[2:]
    key = ".".join(str(p) for p in path)
    if error["type"] == "extra_forbidden":
        known = _keys(action) if subject else ["rule"]
        close = difflib.get_close_matches(str(path[-1]), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(sorted(known))}"
        return f"{subject}unknown key {key!r}; {hint}"
    if error["type"] == "missing":
        return f"{subject}key {key!r} is missing"
    if error["type"] in ("union_tag_not_found", "union_tag_invalid"):
        found = f"found action {action!r}" if action else "key 'action' is missing"
        return f"{subject}{found}, expected one of {', '.join(_ACTIONS)}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{subject}{key + ': ' if key else ''}{message}"
    return f"{subject}{key}: found {error.get('input')!r}, {message[0].lower()}{message[1:]}"


_ACTIONS: Final = {get_args(cls.model_fields["action"].annotation)[0]: cls for cls in get_args(Rule)}


def _keys(action: str) -> list[str]:
    return list(_ACTIONS[action].model_fields) if action in _ACTIONS else list(RuleBase.model_fields)
