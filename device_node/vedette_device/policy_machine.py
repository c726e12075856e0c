"""A policy at work on one device: alerts in; quarantines, throttles, calls and their ends out.

==================  ==================================  ===============================================================
event               measure on that address             answer
==================  ==================================  ===============================================================
alert, rule acts    none                                begin: persist, audit, then act; or refuse and audit (protected,
                                                        not local, no address, too many hosts, protection unknown yet)
alert, rule acts    in force                            draw out, to `seconds_max` from its beginning; the slower rate
alert closes        in force, of this alert, on_close   end it
tick                its time is over                    end it
protection          covers it now                       protect it, end it
release asked       in force                            end it
measure failed      in force                            forget it: the next alert may try again
clock set back      any                                 move it: what is left stays what it was
==================  ==================================  ===============================================================

Rules that match and may not act (cool-down, limit an hour, done already) are counted. What is in force is in the store
before the firewall hears of it, with its end, and the firewall has the end as well: whoever dies first, it ends.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Final

from vedette_core.machine import Count, Effect, Event, Note, Persist, Tick
from vedette_device.policy_effects import (
    AlertReported,
    Audit,
    Execute,
    Measure,
    MeasureFailed,
    MeasureKind,
    Protect,
    ProtectionLearned,
    PublishCommand,
    Quarantine,
    Release,
    ReleaseAsked,
    Throttle,
    Webhook,
)
from vedette_device.policy_history import History
from vedette_device.policy_protection import Address, Protection, plain_address
from vedette_device.policy_rules import (
    ExecRule,
    LogRule,
    Policy,
    PublishRule,
    QuarantineRule,
    ThrottleRule,
    Verdict,
    WebhookRule,
    decide,
)
from vedette_schemas import alert as alerts
from vedette_schemas.alert import Alert, AlertState
from vedette_schemas.errors import PeerError, RefusedError

MeasureRule = QuarantineRule | ThrottleRule
Key = tuple[MeasureKind, Address]

BACK_S: Final = 0.001
"""A clock that goes back by less is rounding."""


@dataclass(frozen=True, slots=True)
class PolicyLimits:
    """What no rule can pass.

    Attributes:
        seconds_max: longest measure, from its beginning, however often it is drawn out.
        hosts_max: most addresses with a measure at once.
    """

    seconds_max: float
    hosts_max: int


class PolicyMachine:
    """The measures of one device.

    Args:
        policy: the rules.
        limits: what no rule can pass.
        prefix: what every key that it persists starts with; dry runs have their own, so that nothing that was only said
            is ever put into force.
    """

    def __init__(self, policy: Policy, limits: PolicyLimits, prefix: str) -> None:
        self._policy, self._limits, self.prefix = policy, limits, prefix
        self._protection: Protection | None = None
        self._history = History()
        self._measures: dict[Key, Measure] = {}
        self._now = -inf

    @property
    def in_force(self) -> tuple[Measure, ...]:
        """Every measure, in the order in which they began."""
        return tuple(self._measures.values())

    @property
    def protection(self) -> Protection | None:
        """Who is never cut off; None before it is known."""
        return self._protection

    def next_deadline(self) -> float | None:
        """When the next measure ends."""
        return min((measure.until for measure in self._measures.values()), default=None)

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event; see the module's text."""
        effects = [*self._follow_clock(now), *self._end_overdue(now)]
        match event:
            case AlertReported(alert):
                effects += [*self._end_closed(alert), *self._answer(alert, now)]
            case ProtectionLearned(protection):
                effects += self._protect(protection)
            case ReleaseAsked(entity, who):
                effects += self._release_asked(entity, who)
            case MeasureFailed(kind, address, reason):
                effects += self._failed((kind, address), reason)
            case Tick():
                pass
            case _:
                raise AssertionError(f"a policy does not know {event!r}")
        return effects

    def restore(self, persisted: Mapping[str, bytes], now: float) -> list[Effect]:
        """Go on with what was in force when the process ended; once, before the first event.

        Args:
            persisted: every stored key that starts with `prefix`, and its value.
            now: seconds.

        Returns:
            The ends of what must not go on; the rest is `in_force`, to be put into the firewall anew as soon as it is
            known who is protected: `Protect` comes before it, with the ends of what is protected now.
        """
        self._now = now
        effects: list[Effect] = []
        for key, value in sorted(persisted.items()):
            try:
                if key == self._history_key:
                    self._history = History.from_bytes(value)
                    continue
                measure = Measure.from_bytes(value)
            except PeerError as fault:
                effects += [Note("error", f"{key}: {fault}; it is dropped"), Persist(key, None)]
                continue
            # A clock that was wrong then or is wrong now cannot make it last longer than it was meant to.
            left_s = min(measure.until - now, measure.until - measure.since, self._limits.seconds_max)
            place = (measure.kind, measure.address)
            moved = replace(measure, since=min(measure.since, now), until=min(now + left_s, measure.until))
            self._measures[place] = moved
            if left_s <= 0:
                effects += self._end(place, "ended", "its time was over while the node was not running")
            elif moved != measure:
                effects.append(Persist(key, moved.to_bytes()))
        return [*effects, *self._end_too_many()]

    @property
    def _history_key(self) -> str:
        return f"{self.prefix}history"

    def _key(self, place: Key) -> str:
        return f"{self.prefix}measure/{place[0]}/{place[1]}"

    # -- alerts -------------------------------------------------------------------------------------------------------

    def _answer(self, alert: Alert, now: float) -> list[Effect]:
        counts: list[Effect] = []
        measures: list[Effect] = []
        calls: list[Effect] = []
        for decision in decide(alert, now, self._history, self._policy):
            rule = decision.rule
            counts.append(Count("policy", decision.verdict.value, kind=f"policy-{rule.action}"))
            if decision.verdict is not Verdict.ACT:
                continue
            self._history.acted(rule, alert, now)
            if isinstance(rule, QuarantineRule | ThrottleRule):
                measures += self._measure(rule, alert, now)
            else:
                calls += [Audit(rule.action, "asked", rule.name, alert.id, alert.entity), _call(rule, alert)]
        if not measures and not calls:
            return counts
        # Between the two: after a crash a measure is taken once more, which changes nothing, and no call is made twice.
        return [*counts, *measures, Persist(self._history_key, self._history.to_bytes()), *calls]

    def _measure(self, rule: MeasureRule, alert: Alert, now: float) -> list[Effect]:
        try:
            address = self._allowed(rule.action, alert.entity)
        except RefusedError as refusal:
            return [
                Count("policy", "refused", kind=f"policy-{rule.action}"),
                Audit(rule.action, "refused", rule.name, alert.id, alert.entity, detail=f"{refusal.rule}: {refusal}"),
            ]
        place: Key = (rule.action, address)
        old = self._measures.get(place)
        since = now if old is None else old.since
        rate = rule.kbytes_per_s if isinstance(rule, ThrottleRule) else 0
        new = Measure(
            rule.action,
            address,
            since,
            min(now + rule.seconds, since + self._limits.seconds_max),
            rule.name,
            alert.id,
            rule.release_on_close,
            rate,
        )
        outcome = "begun"
        if old is not None:
            new = replace(new, until=max(old.until, new.until), kbytes_per_s=min(old.kbytes_per_s, rate))
            outcome = "kept" if (new.until, new.kbytes_per_s) == (old.until, old.kbytes_per_s) else "extended"
        self._measures[place] = new
        effects: list[Effect] = [
            Persist(self._key(place), new.to_bytes()),
            Audit(rule.action, outcome, rule.name, alert.id, str(address), new.until),
        ]
        if outcome != "kept":
            effects.append(_start(new))
        return effects

    def _allowed(self, kind: MeasureKind, entity: str) -> Address:
        if self._protection is None:
            raise RefusedError("what must be protected is not known yet", rule="unknown")
        address = self._protection.check(entity)
        hosts = {place[1] for place in self._measures}
        if address not in hosts and len(hosts) >= self._limits.hosts_max:
            raise RefusedError(
                f"{len(hosts)} hosts have a measure already, expected at most {self._limits.hosts_max}; "
                f"{address} gets no {kind}",
                rule="hosts",
            )
        return address

    def _end_closed(self, alert: Alert) -> Iterator[Effect]:
        if alert.state is AlertState.CLOSED:
            for place, measure in list(self._measures.items()):
                if measure.on_close and measure.alert == alert.id:
                    yield from self._end(place, "ended", "its alert closed")

    # -- ends ---------------------------------------------------------------------------------------------------------

    def _end(self, place: Key, outcome: str, why: str) -> list[Effect]:
        measure = self._measures.pop(place)
        return [
            Release(*place),
            Persist(self._key(place), None),
            Audit(measure.kind, outcome, measure.rule, measure.alert, str(measure.address), detail=why),
        ]

    def _failed(self, place: Key, reason: str) -> list[Effect]:
        measure = self._measures.get(place)
        if measure is None:
            return []
        self._history.forget(measure.rule, measure.alert, str(measure.address))
        return [*self._end(place, "failed", reason), Persist(self._history_key, self._history.to_bytes())]

    def _end_overdue(self, now: float) -> Iterator[Effect]:
        for place, measure in list(self._measures.items()):
            if measure.until <= now:
                yield from self._end(place, "ended", "its time is over")

    def _protect(self, protection: Protection) -> list[Effect]:
        if protection == self._protection:
            return []
        self._protection = protection
        # The firewall learns who is protected first: from then on it lets them pass even while they are in its sets.
        effects: list[Effect] = [Protect(protection)]
        for place in list(self._measures):
            try:
                protection.check(str(place[1]))
            except RefusedError as refusal:
                effects += self._end(place, "ended", f"{refusal.rule}: {refusal}")
        return effects

    def _end_too_many(self) -> Iterator[Effect]:
        """After the limit was lowered, the longest ones stay."""
        longest = sorted(self._measures.values(), key=lambda m: (-m.until, str(m.address)))
        hosts = list(dict.fromkeys(measure.address for measure in longest))
        for address in hosts[self._limits.hosts_max :]:
            for place in [place for place in self._measures if place[1] == address]:
                yield from self._end(place, "ended", f"only {self._limits.hosts_max} hosts may have a measure at once")

    def _release_asked(self, entity: str, who: str) -> list[Effect]:
        if not entity:
            places = list(self._measures)
        else:
            try:
                address = plain_address(entity)
            except ValueError:
                return [Audit("release", "refused", entity=entity, detail=f"no address; asked by {who}")]
            places = [place for place in self._measures if place[1] == address]
        ends = [effect for place in places for effect in self._end(place, "released", f"asked by {who}")]
        return ends or [Audit("release", "refused", entity=entity, detail=f"nothing is in force; asked by {who}")]

    # -- time ---------------------------------------------------------------------------------------------------------

    def _follow_clock(self, now: float) -> list[Effect]:
        """When the clock was set back, everything moves with it: the firewall counts what is left, not what it says."""
        back_s, self._now = self._now - now, now
        if back_s <= BACK_S or back_s == inf:
            return []
        self._history.shift(-back_s)
        effects: list[Effect] = [Persist(self._history_key, self._history.to_bytes())]
        for place, measure in self._measures.items():
            moved = replace(measure, since=measure.since - back_s, until=measure.until - back_s)
            self._measures[place] = moved
            effects.append(Persist(self._key(place), moved.to_bytes()))
        return effects


def _start(measure: Measure) -> Quarantine | Throttle:
    if measure.kind == "quarantine":
        return Quarantine(measure.address, measure.until)
    return Throttle(measure.address, measure.kbytes_per_s, measure.until)


def _call(rule: LogRule | PublishRule | WebhookRule | ExecRule, alert: Alert) -> Effect:
    match rule:
        case LogRule():
            text = f"policy {rule.name}: {alert.severity} alert {alert.id} on {_printable(alert.entity)}"
            return Note(rule.level, f"{text} ({alert.state}): {_printable(alert.summary)}")
        case PublishRule():
            payload = alerts.encode(alert) if rule.payload == "alert" else rule.payload.encode()
            return PublishCommand(rule, alert, payload)
        case WebhookRule():
            return Webhook(rule, alert, _body(rule, alert))
        case ExecRule():
            return Execute(rule, alert, tuple(_environment(rule, alert)), alerts.encode(alert))


def _body(rule: WebhookRule, alert: Alert) -> bytes:
    document = {"v": 1, "rule": rule.name, "alert": json.loads(alerts.encode(alert))}
    return json.dumps(document, separators=(",", ":")).encode()


def _environment(rule: ExecRule, alert: Alert) -> Iterator[tuple[str, str]]:
    """The whole of what a program is told by its environment; the rest is on its standard input."""
    for name, value in (
        ("RULE", rule.name),
        ("ALERT", alert.id),
        ("STATE", alert.state),
        ("SITE", alert.site),
        ("DEVICE", alert.device),
        ("ENTITY", alert.entity),
        ("DETECTOR", alert.detector),
        ("KIND", alert.kind),
        ("SEVERITY", alert.severity),
        ("CONFIDENCE", f"{alert.confidence:g}"),
    ):
        yield f"VEDETTE_{name}", _printable(str(value))


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)
