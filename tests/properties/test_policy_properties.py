"""Laws of the policy: whatever happens in whatever order, nobody protected is touched, and every measure ends."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from vedette_core.machine import Effect, Event, Persist, Tick
from vedette_device.firewall_script import FAMILIES, FirewallScript
from vedette_device.policy_effects import (
    AlertReported,
    Measure,
    MeasureFailed,
    ProtectionLearned,
    Quarantine,
    Release,
    ReleaseAsked,
    Throttle,
)
from vedette_device.policy_machine import PolicyLimits, PolicyMachine
from vedette_device.policy_protection import Protection, plain_address
from vedette_device.policy_rules import parse_policy
from vedette_schemas.alert import Alert
from vedette_schemas.errors import PeerError, RefusedError

SECONDS_MAX = 500.0
HOSTS_MAX = 3
POLICY = parse_policy(
    "\n".join(
        f"[[rule]]\nname = '{name}'\naction = '{action}'\n{more}"
        for name, action, more in (
            ("a", "quarantine", "seconds = 100\ncooldown_s = 0\nper_hour_max = 360\nonce = false"),
            ("b", "quarantine", "seconds = 900\ncooldown_s = 30\nrelease_on_close = true\nkind = ['sustained']"),
            ("c", "throttle", "kbytes_per_s = 16\nseconds = 50\nstate = ['closed', 'open']\nper_hour_max = 360"),
            ("d", "throttle", "kbytes_per_s = 8\nseconds = 300\nentity = ['fd00::/64', '10.0.0.0/29']"),
        )
    ),
    "rules",
)
LOCAL = ("10.0.0.0/28", "fd00::/124")
HOSTS = (*(f"10.0.0.{i}" for i in range(1, 7)), "fd00::1", "fd00::2", "::ffff:10.0.0.2")
SPECIAL = ("127.0.0.1", "10.0.0.15", "255.255.255.255", "224.0.0.1", "::1", "ff02::1", "0.0.0.0", "::ffff:10.0.0.1")
# Few of them, so that the same ones meet: a run in which nothing happens twice shows nothing.
entities = st.sampled_from([*HOSTS, *HOSTS, *HOSTS, *SPECIAL, "8.8.8.8", "tank-1", "fd01::1"])
protected_sets = st.frozensets(
    st.sampled_from([*HOSTS, "10.0.0.4/30", "fd00::/126", "::ffff:10.0.0.0/126"]), max_size=3
)


def an_alert(entity: str, number: int, seq: int, state: str, kind: str) -> Alert:
    plain: dict[str, Any] = {
        "id": f"alert-{number}",
        "seq": seq,
        "time": "2026-10-01T12:00:05Z",
        "site": "s",
        "device": "d",
        "entity": entity,
        "detector": "network",
        "kind": kind,
        "severity": "high",
        "confidence": 0.9,
        "score": 9.0,
        "p_value": 1e-5,
        "threshold": 1.0,
        "window_start": "2026-10-01T12:00:00Z",
        "window_end": "2026-10-01T12:00:05Z",
        "features": (),
        "model": {"task": "network", "version": 3, "digest": "0123456789abcdef"},
        "state": state,
        "count": 1,
        "summary": "",
    }
    return Alert.model_validate(plain)


def learned(protected: frozenset[str]) -> ProtectionLearned:
    return ProtectionLearned(Protection.of(LOCAL, {"somebody": tuple(sorted(protected))}))


reports = st.builds(
    an_alert,
    entities,
    st.integers(0, 5),
    st.integers(0, 3),
    st.sampled_from(["open", "updated", "closed"]),
    st.sampled_from(["magnitude", "sustained"]),
).map(AlertReported)
events = st.one_of(
    reports,
    reports,
    reports,
    st.just(Tick()),
    protected_sets.map(learned),
    st.one_of(entities, st.just("")).map(lambda e: ReleaseAsked(e, "me")),
    st.builds(
        MeasureFailed,
        st.sampled_from(["quarantine", "throttle"]),
        entities.filter(lambda e: e != "tank-1").map(lambda e: plain_address(e)),
        st.just("no"),
    ),
    st.just("restart"),
)
steps = st.lists(
    st.tuples(events, st.one_of(st.floats(0, 40), st.floats(0, 40), st.sampled_from([0.0, 1e4, -30.0, -1e6]))),
    min_size=8,
    max_size=40,
)


class Kernel:
    """What a firewall does that only knows what it was told: it ends a measure at its end, by its own clock."""

    def __init__(self) -> None:
        self.ends: dict[tuple[str, IPv4Address | IPv6Address], float] = {}
        self.begun: dict[tuple[str, IPv4Address | IPv6Address], float] = {}
        self.uptime = 0.0

    def pass_time(self, seconds: float) -> None:
        self.uptime += seconds
        self.ends = {place: end for place, end in self.ends.items() if end > self.uptime}

    def told(self, effects: Sequence[Effect], now: float) -> None:
        for effect in effects:
            if isinstance(effect, Quarantine | Throttle):
                place = ("quarantine" if isinstance(effect, Quarantine) else "throttle", effect.address)
                if place not in self.ends:
                    self.begun[place] = self.uptime
                self.ends[place] = self.uptime + effect.until - now
            elif isinstance(effect, Release):
                self.ends.pop((effect.kind, effect.address), None)


def is_covered(address: IPv4Address | IPv6Address, protected: frozenset[str]) -> bool:
    """An oracle of its own: by comparing numbers."""
    texts = [*protected, "127.0.0.0/8", "224.0.0.0/3", "0.0.0.0/8", "10.0.0.0", "10.0.0.15", "::/127", "ff00::/8"]
    mapped = int(address) + (0xFFFF << 32 if address.version == 4 else 0)
    for text in texts:
        network = ip_network(text)
        add, size = (0xFFFF << 32, 32) if network.version == 4 else (0, 128)
        low = int(network.network_address) + add
        if low <= mapped < low + (1 << (size - network.prefixlen)):
            return True
    return False


@settings(max_examples=300)
@given(st.one_of(protected_sets, protected_sets, st.none()), steps)
def test_nobody_protected_is_ever_covered_and_everything_ends(
    known: frozenset[str] | None, sequence: list[tuple[Event | str, float]]
) -> None:
    if known is not None:
        sequence = [(learned(known), 0.0), *sequence]
    limits = PolicyLimits(SECONDS_MAX, HOSTS_MAX)
    machine, store, kernel = PolicyMachine(POLICY, limits, "p/"), dict[str, bytes](), Kernel()
    now, protected = 1e6, frozenset[str]()
    is_known = False
    for event, seconds in sequence:
        now += seconds
        kernel.pass_time(max(seconds, 0.0))
        if isinstance(event, str):
            machine = PolicyMachine(POLICY, limits, "p/")
            effects = machine.restore(dict(store), now)
            if is_known:
                effects += machine.handle(learned(protected), now)
            # The shell puts the table in place anew, with what is in force.
            kernel.told(effects, now)
            kernel.ends = {(m.kind, m.address): kernel.uptime + m.until - now for m in machine.in_force}
            if seconds < 0:  # nobody can tell how long it was away: what is left is at most what it began with
                kernel.begun = dict.fromkeys(kernel.ends, kernel.uptime)
            effects = [e for e in effects if not isinstance(e, Quarantine | Throttle | Release)]
        else:
            if isinstance(event, ProtectionLearned):
                networks = [str(n) for n, owner in event.protection.protected.items() if owner == "somebody"]
                protected, is_known = frozenset(networks), True
            effects = machine.handle(event, now)
            kernel.told(effects, now)
        for effect in effects:
            if isinstance(effect, Persist):
                store.pop(effect.key, None)
                if effect.value is not None:
                    store[effect.key] = effect.value
        # 1. Nobody who is protected, or not local, is in force anywhere; and nobody before it is known who that is.
        assert is_known or not kernel.ends
        for _, address in kernel.ends:
            assert not is_covered(address, protected), address
            assert any(address in ip_network(n) for n in LOCAL), address
        # 2. Machine and firewall agree, the store knows all of it, and there are not too many.
        places = {(m.kind, m.address) for m in machine.in_force}
        assert set(kernel.ends) <= places
        assert places == {(m.kind, m.address) for m in map(Measure.from_bytes, _measures(store))}
        assert len({address for _, address in places}) <= HOSTS_MAX
        # 3. Nothing lasts longer than it may, whatever the clock does.
        for place, end in kernel.ends.items():
            assert end - kernel.begun[place] <= SECONDS_MAX + 1e-3
        for measure in machine.in_force:
            assert now < measure.until <= now + SECONDS_MAX + 1e-6
    # 4. Without any further alert, all of it ends: by the machine, and by the firewall alone.
    deadline = machine.next_deadline()
    while deadline is not None:
        effects = machine.handle(Tick(), deadline)
        assert any(isinstance(e, Release) for e in effects)
        deadline = machine.next_deadline()
    kernel.pass_time(SECONDS_MAX + 1e-3)
    assert kernel.ends == {}


def _measures(store: dict[str, bytes]) -> list[bytes]:
    return [value for key, value in store.items() if key.startswith("p/measure/")]


@given(entities, protected_sets)
def test_a_check_says_no_to_whatever_an_oracle_finds_covered(entity: str, protected: frozenset[str]) -> None:
    protection = Protection.of(LOCAL, {"somebody": tuple(protected)})
    try:
        address = protection.check(entity)
    except RefusedError as refusal:
        if refusal.rule == "protected":
            assert is_covered(plain_address(entity), protected)
        return
    assert not is_covered(address, protected)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_no_measure_or_one_that_can_be_written_again(data: bytes) -> None:
    try:
        measure = Measure.from_bytes(data)
    except PeerError:
        return
    assert Measure.from_bytes(measure.to_bytes()) == measure


@given(st.text(max_size=200))
def test_arbitrary_text_is_no_address_that_could_reach_the_firewalls_language(text: str) -> None:
    try:
        address = plain_address(text)
    except ValueError:
        return
    assert ip_address(str(address)) == address
    script = FirewallScript("plant-1", "gw-01", [16])
    measure = Measure("quarantine", address, 0.0, 1.0, "r;\n}", "a\n")
    for line in script.begin(FAMILIES, measure, 0.0).splitlines():
        assert set(line) <= set("abcdefghijklmnopqrstuvwxyz0123456789 _-{}.:")
