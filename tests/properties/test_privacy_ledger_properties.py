from __future__ import annotations

import math
from dataclasses import replace

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vedette_core.privacy.events import FoldedHistory, PrivacyEvent, Scope
from vedette_core.privacy.ledger import Budget, Ledger
from vedette_schemas.errors import ConfigError, RefusedError

NAMES = [f"gw-{number}" for number in range(6)]


@st.composite
def histories(draw: st.DrawFn) -> list[PrivacyEvent]:
    """Events in the order of their rounds, attempts and all; sometimes the same one again."""
    out: list[PrivacyEvent] = []
    number = 1
    for _ in range(draw(st.integers(0, 12))):
        number += draw(st.integers(0, 4))
        attempt = 1 + sum(1 for e in out if e.round == number)
        z = draw(st.sampled_from([0.0, 0.5, 2.0, 7.3, 100.0]) | st.floats(0.1, 50))
        devices = tuple(sorted(draw(st.sets(st.sampled_from(NAMES), min_size=1))))
        out.append(PrivacyEvent("network", number, attempt, z, 1.0, 1, draw(st.sampled_from(Scope)), devices))
    return out


budgets = st.builds(
    Budget,
    epsilon_max=st.floats(0, 100) | st.just(math.inf),
    delta=st.just(1e-6),
    participations_max=st.integers(0, 4),
    period_rounds=st.integers(1, 15),
)


@given(events=histories(), budget=budgets, later=budgets, data=st.data())
@settings(max_examples=150)
def test_folding_at_any_time_under_any_budget_never_lowers_what_was_spent(
    events: list[PrivacyEvent], budget: Budget, later: Budget, data: st.DataObject
) -> None:
    """Folded now and then, stored, read back, its deleted events partly still there, its period changed on the way."""
    folding = Ledger("network", budget)
    kept: list[PrivacyEvent] = []
    for event in events:
        if event.round <= folding.history.through:
            continue  # refused: `check` says that the period is closed
        folding.record(event)
        kept.append(event)
        if data.draw(st.booleans()):
            folding.fold(event.round)
        if data.draw(st.booleans()):
            stored = FoldedHistory.from_bytes(folding.history.to_bytes(), "k")
            still_there = [e for e in kept if e.round > stored.through or data.draw(st.booleans())]
            folding = Ledger("network", data.draw(st.sampled_from([budget, later])), stored, still_there)
    plain = Ledger("network", folding.budget, events=kept)
    assert folding.releases == plain.releases
    for device in NAMES:
        assert folding.spent_ever(device) == plain.spent_ever(device)
        for number in range(1, 60):
            folded, unfolded = folding.spent(device, number), plain.spent(device, number)
            assert folded.releases >= unfolded.releases
            assert folded.units >= unfolded.units
            assert folded.bare >= unfolded.bare
            assert folded.epsilon(1e-6) >= unfolded.epsilon(1e-6)
    assert folding.most_exposed()[1].rank == plain.most_exposed()[1].rank


@given(events=histories(), budget=budgets)
@settings(max_examples=150)
def test_what_passes_the_check_stays_within_the_budget(events: list[PrivacyEvent], budget: Budget) -> None:
    book = Ledger("network", budget)
    for event in events:
        allowed = set(book.eligible(event.devices, event.round, event.noise_multiplier))
        if allowed != set(event.devices):
            with pytest.raises(RefusedError) as refusal:
                book.check(event)
            assert refusal.value.rule == "budget"
            continue
        book.check(event)
        reckoned = book.epsilon_with(event.devices, event.round, event.noise_multiplier)
        book.record(event)
        book.check(event)
        spent = [book.spent(device, event.round) for device in event.devices]
        assert max(e.epsilon(budget.delta) for e in spent) == reckoned <= budget.epsilon_max
        assert not budget.participations_max or max(e.releases for e in spent) <= budget.participations_max


@given(events=histories(), budget=budgets, data=st.data())
@settings(max_examples=100)
def test_order_and_repetition_of_stored_events_do_not_matter(
    events: list[PrivacyEvent], budget: Budget, data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(events + events[::2]))
    stored = [PrivacyEvent.from_bytes(event.to_bytes(), "k") for event in shuffled]
    assert Ledger("network", budget, events=stored).exposures() == Ledger("network", budget, events=events).exposures()


FIELDS = [
    "task",
    "round",
    "attempt",
    "noise_multiplier",
    "clip_norm",
    "weight_max",
    "scope",
    "devices",
    "through",
    "releases",
    "format",
    "other",
]


@given(
    data=st.binary(max_size=200),
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4),
    plain=st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5) | st.binary(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6,
    ),
    field=st.sampled_from(FIELDS),
)
@settings(max_examples=400)
def test_whatever_is_in_the_store_is_read_or_for_the_operator(
    data: bytes, changes: list[tuple[int, int]], plain: object, field: str
) -> None:
    event = PrivacyEvent("network", 3, 1, 2.0, 1.0, 4, Scope.GROUP, ("gw-1", "gw-2"))
    history = FoldedHistory("network").with_events([event, replace(event, noise_multiplier=0.0)], 10)
    for kind, whole in ((PrivacyEvent, event.to_bytes()), (FoldedHistory, history.to_bytes())):
        flipped = bytearray(whole)
        for place, value in changes:
            flipped[place % len(flipped)] = value
        changed = bytes(msgpack.packb(msgpack.unpackb(whole) | {field: plain}))
        for stored in (data, bytes(flipped), changed, whole[: len(data)]):
            try:
                read = kind.from_bytes(stored, "k")
            except ConfigError:
                continue
            assert kind.from_bytes(read.to_bytes(), "k") == read
