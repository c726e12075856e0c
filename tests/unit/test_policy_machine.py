"""The policy's machine: every state with every event, restarts, clocks, and the order of what it asks for."""

from __future__ import annotations

import json
from ipaddress import ip_address

import pytest
from policy_parts import BROKER, QUARANTINE, THROTTLE, alert, protection, rules

from vedette_core.machine import Effect, Event, Note, Persist, Tick
from vedette_device.policy_effects import (
    AlertReported,
    Audit,
    Execute,
    Measure,
    MeasureFailed,
    Protect,
    ProtectionLearned,
    PublishCommand,
    Quarantine,
    Release,
    ReleaseAsked,
    Throttle,
    Webhook,
)
from vedette_device.policy_machine import PolicyLimits, PolicyMachine
from vedette_device.policy_rules import Policy
from vedette_schemas.errors import PeerError

HOST = "192.168.10.20"
ADDRESS = ip_address(HOST)


def machine(policy: Policy | None = None, *, seconds_max: float = 3600.0, hosts_max: int = 2) -> PolicyMachine:
    return PolicyMachine(policy or rules(QUARANTINE), PolicyLimits(seconds_max, hosts_max), "policy/live/")


def ready(policy: Policy | None = None, *, seconds_max: float = 3600.0, hosts_max: int = 2) -> PolicyMachine:
    made = machine(policy, seconds_max=seconds_max, hosts_max=hosts_max)
    made.handle(ProtectionLearned(protection()), 0.0)
    return made


def of(effects: list[Effect], *kinds: type[Effect]) -> list[Effect]:
    return [effect for effect in effects if isinstance(effect, kinds)]


def audits(effects: list[Effect]) -> list[tuple[str, str]]:
    return [(e.event, e.outcome) for e in effects if isinstance(e, Audit)]


def persisted(*batches: list[Effect]) -> dict[str, bytes]:
    store: dict[str, bytes] = {}
    for effect in (effect for batch in batches for effect in batch):
        if isinstance(effect, Persist):
            store.pop(effect.key, None)
            if effect.value is not None:
                store[effect.key] = effect.value
    return store


def test_a_quarantine_is_persisted_then_audited_then_in_force() -> None:
    effects = ready().handle(AlertReported(alert()), 100.0)
    kinds = [type(e) for e in effects if isinstance(e, Persist | Audit | Quarantine)]
    assert kinds == [Persist, Audit, Quarantine, Persist]
    assert of(effects, Quarantine) == [Quarantine(ADDRESS, 160.0)]
    (line,) = of(effects, Audit)
    assert line == Audit("quarantine", "begun", "cut", "alert-1", HOST, 160.0)


# -- state × event ----------------------------------------------------------------------------------------------------

CLOSED = alert(seq=3, state="closed")
EVENTS: dict[str, Event] = {
    "alert": AlertReported(alert(number=2)),
    "alert that no rule matches": AlertReported(alert("10.1.1.1", 3, detector="sensor")),
    "close": AlertReported(CLOSED),
    "tick": Tick(),
    "protection as before": ProtectionLearned(protection()),
    "protection that covers it": ProtectionLearned(protection(other=(HOST,))),
    "release": ReleaseAsked(HOST, "me"),
    "release of all": ReleaseAsked("", "me"),
    "release of another": ReleaseAsked("192.168.10.21", "me"),
    "release of nothing": ReleaseAsked("tank-1", "me"),
    "failure": MeasureFailed("quarantine", ADDRESS, "no"),
    "failure of another": MeasureFailed("throttle", ADDRESS, "no"),
}
NONE, HELD, OVER, ON_CLOSE = "none", "in force", "its time is over", "in force until the close"
TABLE: dict[str, dict[str, list[tuple[str, str]]]] = {
    "alert": {
        NONE: [("quarantine", "begun")],
        HELD: [("quarantine", "extended")],
        OVER: [("quarantine", "ended"), ("quarantine", "begun")],
        ON_CLOSE: [("quarantine", "extended")],
    },
    "alert that no rule matches": {NONE: [], HELD: [], OVER: [("quarantine", "ended")], ON_CLOSE: []},
    "close": {NONE: [], HELD: [], OVER: [("quarantine", "ended")], ON_CLOSE: [("quarantine", "ended")]},
    "tick": {NONE: [], HELD: [], OVER: [("quarantine", "ended")], ON_CLOSE: []},
    "protection as before": {NONE: [], HELD: [], OVER: [("quarantine", "ended")], ON_CLOSE: []},
    "protection that covers it": {
        NONE: [],
        HELD: [("quarantine", "ended")],
        OVER: [("quarantine", "ended")],
        ON_CLOSE: [("quarantine", "ended")],
    },
    "release": {
        NONE: [("release", "refused")],
        HELD: [("quarantine", "released")],
        OVER: [("quarantine", "ended"), ("release", "refused")],
        ON_CLOSE: [("quarantine", "released")],
    },
    "release of all": {
        NONE: [("release", "refused")],
        HELD: [("quarantine", "released")],
        OVER: [("quarantine", "ended"), ("release", "refused")],
        ON_CLOSE: [("quarantine", "released")],
    },
    "release of another": {
        NONE: [("release", "refused")],
        HELD: [("release", "refused")],
        OVER: [("quarantine", "ended"), ("release", "refused")],
        ON_CLOSE: [("release", "refused")],
    },
    "release of nothing": {
        NONE: [("release", "refused")],
        HELD: [("release", "refused")],
        OVER: [("quarantine", "ended"), ("release", "refused")],
        ON_CLOSE: [("release", "refused")],
    },
    "failure": {
        NONE: [],
        HELD: [("quarantine", "failed")],
        OVER: [("quarantine", "ended")],
        ON_CLOSE: [("quarantine", "failed")],
    },
    "failure of another": {NONE: [], HELD: [], OVER: [("quarantine", "ended")], ON_CLOSE: []},
}


@pytest.mark.parametrize("state", [NONE, HELD, OVER, ON_CLOSE])
@pytest.mark.parametrize("event", EVENTS)
def test_every_state_answers_every_event(state: str, event: str) -> None:
    table = QUARANTINE + ("\nrelease_on_close = true" if state == ON_CLOSE else "") + '\ndetector = ["network"]'
    made = ready(rules(table))
    if state != NONE:
        made.handle(AlertReported(alert()), 0.0)
    now = 60.0 if state == OVER else 10.0
    effects = made.handle(EVENTS[event], now)
    assert audits(effects) == TABLE[event][state]
    ended = sum(outcome in ("ended", "released", "failed") for _, outcome in audits(effects))
    begun = sum(outcome in ("begun", "extended") for _, outcome in audits(effects))
    assert len(of(effects, Release)) == ended
    assert len(of(effects, Quarantine)) == begun
    # What the machine says is in force is what was begun and not ended.
    was = state != NONE
    assert bool(made.in_force) == (bool(begun) or (was and not ended))
    assert made.next_deadline() == (made.in_force[0].until if made.in_force else None)


def test_the_table_is_complete() -> None:
    assert set(TABLE) == set(EVENTS)
    assert all(set(row) == {NONE, HELD, OVER, ON_CLOSE} for row in TABLE.values())


def test_an_unknown_event_is_a_fault_of_the_program() -> None:
    with pytest.raises(AssertionError, match="does not know"):
        ready().handle(Event(), 0.0)


# -- limits -----------------------------------------------------------------------------------------------------------


def test_before_it_is_known_who_is_protected_nobody_is_cut_off() -> None:
    made = machine(rules(QUARANTINE, 'name = "say"\naction = "log"'))
    effects = made.handle(AlertReported(alert()), 0.0)
    assert audits(effects) == [("quarantine", "refused"), ("log", "asked")]
    assert not of(effects, Quarantine)
    assert of(effects, Note)


@pytest.mark.parametrize("entity", [BROKER, f"::ffff:{BROKER}", "8.8.8.8", "tank-1", "192.168.10.255"])
def test_a_rule_that_names_whom_it_must_not_is_refused_and_audited_once(entity: str) -> None:
    made = ready(rules(QUARANTINE + f'\nentity = ["{entity}"]'))
    effects = made.handle(AlertReported(alert(entity)), 0.0)
    assert audits(effects) == [("quarantine", "refused")]
    assert made.in_force == ()
    assert not audits(made.handle(AlertReported(alert(entity, seq=1, state="updated")), 1.0))


def test_only_so_many_hosts_at_once() -> None:
    made = ready(rules(QUARANTINE, THROTTLE))
    for i in (20, 21, 22):
        effects = made.handle(AlertReported(alert(f"192.168.10.{i}", i)), 0.0)
    assert audits(effects) == [("quarantine", "refused"), ("throttle", "refused")]
    assert {str(m.address) for m in made.in_force} == {"192.168.10.20", "192.168.10.21"}
    assert len(made.in_force) == 4
    again = made.handle(AlertReported(alert("192.168.10.21", 99)), 1.0)
    assert audits(again) == [("quarantine", "extended"), ("throttle", "extended")]


def test_a_measure_is_drawn_out_up_to_the_longest_and_no_further() -> None:
    made = ready(seconds_max=100.0)
    untils = []
    for i in range(10):
        effects = made.handle(AlertReported(alert(number=i)), 20.0 * i)
        untils += [e.until for e in of(effects, Quarantine) if isinstance(e, Quarantine)]
    # Begun at 0, drawn out to 100 and over; begun anew at 100, drawn out to 200.
    assert untils == [60.0, 80.0, 100.0, 160.0, 180.0, 200.0]


def test_an_alert_that_changes_nothing_is_audited_and_done_nothing_about() -> None:
    made = ready(rules(QUARANTINE, QUARANTINE.replace("cut", "shorter").replace("60", "10")))
    effects = made.handle(AlertReported(alert()), 0.0)
    assert audits(effects) == [("quarantine", "begun"), ("quarantine", "kept")]
    assert len(of(effects, Quarantine)) == 1


def test_of_two_rates_the_slower_holds() -> None:
    fast = THROTTLE.replace("slow", "fast").replace("16", "64")
    made = ready(rules(THROTTLE, fast))
    effects = made.handle(AlertReported(alert()), 0.0)
    assert of(effects, Throttle) == [Throttle(ADDRESS, 16, 60.0)]
    made = ready(rules(fast, THROTTLE))
    effects = made.handle(AlertReported(alert()), 0.0)
    assert of(effects, Throttle) == [Throttle(ADDRESS, 64, 60.0), Throttle(ADDRESS, 16, 60.0)]


def test_only_the_close_of_its_own_alert_ends_it() -> None:
    made = ready(rules(QUARANTINE + "\nrelease_on_close = true"))
    made.handle(AlertReported(alert()), 0.0)
    assert not of(made.handle(AlertReported(alert(number=9, state="closed")), 1.0), Release)
    assert of(made.handle(AlertReported(CLOSED), 2.0), Release) == [Release("quarantine", ADDRESS)]


def test_after_a_failure_the_next_report_of_the_same_alert_tries_again_within_the_limit() -> None:
    made = ready(rules(QUARANTINE.replace("360", "2").replace("cooldown_s = 0", "cooldown_s = 300")))
    outcomes = []
    for seq in range(4):
        report = alert(seq=seq, state="updated" if seq else "open")
        outcomes.append(audits(made.handle(AlertReported(report), float(seq))))
        made.handle(MeasureFailed("quarantine", ADDRESS, "nft"), seq + 0.5)
    assert outcomes == [[("quarantine", "begun")], [("quarantine", "begun")], [], []]


# -- calls ------------------------------------------------------------------------------------------------------------


def test_calls_are_remembered_before_they_are_made_and_measures_after_they_are() -> None:
    calls = (
        'name = "w"\naction = "webhook"\nurl = "https://soc.example.org/"',
        'name = "p"\naction = "publish"\ntopic = "a/b"\npayload = "OFF"',
        'name = "x"\naction = "exec"\ncommand = ["/bin/true"]',
    )
    made = ready(rules(*calls, QUARANTINE))
    effects = made.handle(AlertReported(alert()), 0.0)
    kinds = [type(e) for e in effects if not isinstance(e, Audit | Note)]
    at = [i for i, e in enumerate(effects) if isinstance(e, Persist) and e.key == "policy/live/history"]
    assert len(at) == 1
    assert effects.index(of(effects, Quarantine)[0]) < at[0]
    assert all(effects.index(e) > at[0] for e in of(effects, Webhook, Execute, PublishCommand))
    assert {Webhook, PublishCommand, Execute} < set(kinds)
    # A restart with what was persisted makes none of them again.
    again = machine(rules(*calls, QUARANTINE))
    again.restore(persisted(effects), 1.0)
    again.handle(ProtectionLearned(protection()), 1.0)
    assert not of(again.handle(AlertReported(alert()), 1.0), Webhook, Execute, PublishCommand, Quarantine)


def test_a_call_says_what_the_alert_says_and_nothing_of_it_is_a_word_of_the_command() -> None:
    made = ready(
        rules(
            'name = "w"\naction = "webhook"\nurl = "https://soc.example.org/"',
            'name = "p"\naction = "publish"\ntopic = "a/b"',
            'name = "x"\naction = "exec"\ncommand = ["/bin/true", "$VEDETTE_ENTITY"]',
        )
    )
    evil = alert("tank\n;\x00rm -rf\u202e", summary="a\nb")
    effects = made.handle(AlertReported(evil), 0.0)
    (hook,) = (e for e in effects if isinstance(e, Webhook))
    assert json.loads(hook.body)["alert"]["entity"] == evil.entity
    assert json.loads(hook.body)["rule"] == "w"
    (message,) = (e for e in effects if isinstance(e, PublishCommand))
    assert json.loads(message.payload)["id"] == "alert-1"
    (program,) = (e for e in effects if isinstance(e, Execute))
    assert program.rule.command == ("/bin/true", "$VEDETTE_ENTITY")
    assert dict(program.environment)["VEDETTE_ENTITY"] == "tank?;?rm -rf?"
    assert all(name.startswith("VEDETTE_") and value.isprintable() for name, value in program.environment)


def test_the_log_shows_no_control_characters() -> None:
    effects = ready(rules('name = "say"\naction = "log"')).handle(AlertReported(alert("a\nb", summary="c\x1b[2J")), 0.0)
    (note,) = (e for e in effects if isinstance(e, Note))
    assert note.text.isprintable()


# -- restarts and clocks ----------------------------------------------------------------------------------------------


def test_what_was_in_force_goes_on_with_its_end() -> None:
    made = ready(rules(QUARANTINE, THROTTLE))
    store = persisted(made.handle(AlertReported(alert()), 100.0))
    again = machine(rules(QUARANTINE))
    assert not of(again.restore(store, 130.0), Release)
    assert {(m.kind, m.until, m.kbytes_per_s) for m in again.in_force} == {
        ("quarantine", 160, 0),
        ("throttle", 160, 16),
    }
    effects = again.handle(ProtectionLearned(protection()), 131.0)
    assert [type(e) for e in effects] == [Protect]
    assert len(of(again.handle(Tick(), 160.0), Release)) == 2


def test_what_is_over_at_the_restart_is_ended() -> None:
    store = persisted(ready().handle(AlertReported(alert()), 100.0))
    again = machine()
    effects = again.restore(store, 160.0)
    assert audits(effects) == [("quarantine", "ended")]
    assert "policy/live/measure/quarantine/192.168.10.20" not in {**store, **persisted(effects)} or again.in_force == ()
    assert persisted([Persist(k, v) for k, v in store.items()], effects).keys() == {"policy/live/history"}


def test_what_is_protected_since_the_restart_is_ended_behind_the_new_protection() -> None:
    store = persisted(ready().handle(AlertReported(alert()), 100.0))
    again = machine()
    again.restore(store, 110.0)
    effects = again.handle(ProtectionLearned(protection(other=(HOST,))), 110.0)
    assert [type(e) for e in effects] == [Protect, Release, Persist, Audit]
    assert again.in_force == ()


def test_after_the_limit_was_lowered_the_longest_stay() -> None:
    made = ready(rules(QUARANTINE, THROTTLE), hosts_max=4)
    store: dict[str, bytes] = {}
    for i in range(4):
        store |= persisted(made.handle(AlertReported(alert(f"192.168.10.{20 + i}", i)), float(i)))
    again = machine(hosts_max=2)
    effects = again.restore(store, 10.0)
    assert {str(m.address) for m in again.in_force} == {"192.168.10.22", "192.168.10.23"}
    assert len(of(effects, Release)) == 4


@pytest.mark.parametrize("now", [-1e9, 0.0, 99.0, 100.0, 159.0])
def test_no_clock_makes_it_last_longer_than_it_was_meant_to(now: float) -> None:
    store = persisted(ready().handle(AlertReported(alert()), 100.0))
    again = machine()
    again.restore(store, now)
    (measure,) = again.in_force
    assert 0 < measure.until - now <= 60.0


def test_a_clock_that_is_set_back_moves_what_is_in_force_and_what_is_remembered() -> None:
    made = ready(rules(QUARANTINE.replace("cooldown_s = 0", "cooldown_s = 100")))
    made.handle(AlertReported(alert()), 1000.0)
    made.handle(Tick(), 1020.0)
    effects = made.handle(Tick(), 520.0)
    assert [m.until for m in made.in_force] == [560.0]
    assert len(of(effects, Persist)) == 2
    assert not of(made.handle(AlertReported(alert(number=2)), 590.0), Quarantine)
    assert of(made.handle(AlertReported(alert(number=3)), 600.0), Quarantine)


def test_what_was_stored_wrongly_is_dropped_and_said() -> None:
    store = {"policy/live/history": b"x", "policy/live/measure/quarantine/1.2.3.4": b"\x90"}
    made = machine()
    effects = made.restore(store, 0.0)
    assert [e.level for e in effects if isinstance(e, Note)] == ["error", "error"]
    assert persisted([Persist(k, v) for k, v in store.items()], effects) == {}
    assert made.in_force == ()


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "ban"},
        {"since": float("nan")},
        {"until": float("inf")},
        {"since": 5.0, "until": 4.0},
        {"kbytes_per_s": 7},
        {"kind": "throttle"},
    ],
)
def test_a_measure_that_cannot_be_is_refused(change: dict[str, object]) -> None:
    good = {"kind": "quarantine", "address": ADDRESS, "since": 1.0, "until": 2.0, "rule": "r", "alert": "a"}
    assert Measure.from_bytes(Measure(**good).to_bytes()) == Measure(**good)  # type: ignore[arg-type]
    with pytest.raises(PeerError, match="measure"):
        Measure.from_bytes(Measure(**{**good, **change}).to_bytes())  # type: ignore[arg-type]
