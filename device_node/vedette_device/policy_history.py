"""What the rules of a policy did: what tells them not to do it again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import msgpack

from vedette_device.policy_rules import Rule, Verdict
from vedette_schemas.alert import Alert
from vedette_schemas.errors import PeerError

DONE_MAX: Final = 1024
"""Pairs of rule and alert that are remembered: a device opens 30 alerts an hour, so more than a day."""
ENTITIES_MAX: Final = 1024
"""Pairs of rule and entity whose cool-down is remembered; past it the oldest goes."""
HOUR_S: Final = 3600.0
FORMAT: Final = 1


@dataclass(slots=True)
class History:
    """Memory of the rules, bounded; all times are the shell's seconds.

    Attributes:
        done: rule and alert (and report, for rules that act on each) for which it acted, oldest first.
        last: rule and entity → when it last acted on it, oldest first.
        hour: rule → when it acted within the last hour.
    """

    done: dict[str, None] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    hour: dict[str, list[float]] = field(default_factory=dict)

    def verdict(self, rule: Rule, alert: Alert, now: float) -> Verdict:
        """Whether a rule that matches may act."""
        if _report(rule, alert) in self.done:
            return Verdict.DONE
        if now - self.last.get(_pair(rule.name, alert.entity), float("-inf")) < rule.cooldown_s:
            return Verdict.COOLDOWN
        if sum(now - at < HOUR_S for at in self.hour.get(rule.name, ())) >= rule.per_hour_max:
            return Verdict.LIMIT
        return Verdict.ACT

    def acted(self, rule: Rule, alert: Alert, now: float) -> None:
        """Remember that a rule acted."""
        self.done[_report(rule, alert)] = None
        pair = _pair(rule.name, alert.entity)
        self.last.pop(pair, None)
        self.last[pair] = now
        recent = [at for at in self.hour.get(rule.name, ()) if now - at < HOUR_S]
        self.hour[rule.name] = [*recent, now]
        for memory, most in ((self.done, DONE_MAX), (self.last, ENTITIES_MAX)):
            while len(memory) > most:
                del memory[next(iter(memory))]

    def forget(self, rule: str, alert: str, entity: str) -> None:
        """Let a rule try again for an alert: what it asked for failed. It still counts for its limit an hour."""
        report = _pair(rule, alert)
        for key in [key for key in self.done if key == report or key.startswith(f"{report}.")]:
            del self.done[key]
        self.last.pop(_pair(rule, entity), None)

    def shift(self, by_s: float) -> None:
        """Move every time: the clock was set."""
        self.last = {pair: at + by_s for pair, at in self.last.items()}
        self.hour = {rule: [at + by_s for at in times] for rule, times in self.hour.items()}

    def to_bytes(self) -> bytes:
        """msgpack of all of it."""
        return bytes(msgpack.packb([FORMAT, list(self.done), self.last, self.hour]))

    @classmethod
    def from_bytes(cls, data: bytes) -> History:
        """Read `to_bytes`'s form back.

        Raises:
            PeerError: not this form.
        """
        try:
            number, done, last, hour = msgpack.unpackb(data)
            if number != FORMAT:
                raise ValueError(f"format {number!r}")
            return cls(
                {str(key): None for key in done},
                {str(pair): float(at) for pair, at in last.items()},
                {str(rule): [float(at) for at in times] for rule, times in hour.items()},
            )
        except (msgpack.UnpackException, ValueError, TypeError, AttributeError) as fault:
            raise PeerError(f"policy history: found {len(data)} bytes that are none ({fault!r})") from fault


def _report(rule: Rule, alert: Alert) -> str:
    return _pair(rule.name, alert.id if rule.once else f"{alert.id}.{alert.seq}")


def _pair(rule: str, what: str) -> str:
    return f"{rule} {what}"
