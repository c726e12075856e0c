"""A rollout's cohorts and mass alerts, kept up report by report, against their plain definitions."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from vedette_aggregator.rollout_events import DeviceReported
from vedette_aggregator.rollout_settings import RolloutSettings
from vedette_aggregator.rollout_state import Phase, RolloutRecord
from vedette_aggregator.rollout_watch import RolloutWatch
from vedette_core.crypto.cohorts import bucket
from vedette_schemas.rollout import PPM, RolloutPin

NAMES = [f"gw-{n:02}" for n in range(12)]
FEW = NAMES[:6]
"""Few, so that the same one reports and alerts again and again."""
DEVICES = st.sampled_from(FEW)
REPORTS = st.builds(
    DeviceReported, DEVICES, st.sampled_from([True, True, False]), st.sampled_from([1, 1, None]), st.just(0),
    st.just("none"),
)  # fmt: skip
ALERTS = st.tuples(DEVICES, st.sampled_from([True, True, False]))
PINS = st.sets(DEVICES, max_size=2).map(lambda names: tuple(RolloutPin(device=n, version=1) for n in sorted(names)))
MEMBERS = st.just(()) | st.sets(DEVICES, min_size=3).map(lambda names: tuple(sorted(names)))
CHANGES = st.one_of(
    st.fixed_dictionaries({"salt": st.sampled_from([b"", b"a" * 16, b"b" * 16])}),
    st.fixed_dictionaries({"share_ppm": st.sampled_from([0, PPM // 4, PPM // 2])}),
    st.fixed_dictionaries({"control_ppm": st.sampled_from([0, PPM // 4, PPM // 2])}),
    st.fixed_dictionaries({"members": MEMBERS}),
    st.fixed_dictionaries({"pins": PINS}),
)
"""What a rollout draws its cohorts otherwise by."""
STEPS = st.sampled_from("rrrraaaac").flatmap(lambda kind: {"r": REPORTS, "a": ALERTS, "c": CHANGES}[kind])
BEGUN = RolloutRecord(phase=Phase.RUNNING, salt=b"a" * 16, share_ppm=PPM // 2, control_ppm=PPM // 2)


def cohorts(newest: dict[str, DeviceReported], record: RolloutRecord) -> tuple[set[str], set[str]]:
    """By the definition: every device that is here, runs something and is not pinned, by its place in the draw."""
    exposed, control = set[str](), set[str]()
    pinned = {pin.device for pin in record.pins}
    for name, device in newest.items():
        if not record.salt or not device.is_online or device.version is None or name in pinned:
            continue
        place = bucket(record.salt, name)
        if place < record.share_ppm:
            if not record.members or name in record.members:
                exposed.add(name)
        elif place >= PPM - record.control_ppm:
            control.add(name)
    return exposed, control


def mass_alerts(alerts: list[tuple[str, bool]], limits: RolloutSettings, exposed: set[str], control: set[str]) -> str:
    """By the definition: enough exposed devices with so many alerts each, and the others not half as loud."""

    def flooding(devices: set[str], is_candidate: bool) -> int:
        return sum(alerts.count((name, is_candidate)) >= limits.mass_alerts for name in devices)

    loud, quiet = flooding(exposed, True), flooding(control, False)
    enough = bool(exposed) and loud >= max(min(2, len(exposed)), math.ceil(limits.mass_share * len(exposed)))
    if not enough or (control and quiet / len(control) > loud / len(exposed) / 2):
        return ""
    return (
        f"{loud} of {len(exposed)} exposed devices opened {limits.mass_alerts} alerts or more, "
        f"{quiet} of {len(control)} in the control cohort"
    )


@given(st.lists(STEPS, min_size=10, max_size=60), st.integers(1, 3), st.sampled_from([0.1, 0.5, 1.0]))
@settings(max_examples=300)
def test_cohorts_and_mass_alerts_are_what_they_are_defined_as(
    steps: list[DeviceReported | tuple[str, bool] | dict[str, Any]], least: int, share: float
) -> None:
    limits = replace(RolloutSettings(), mass_alerts=least, mass_share=share)
    watch, record = RolloutWatch(), BEGUN
    newest: dict[str, DeviceReported] = {}
    alerts: list[tuple[str, bool]] = []
    for step in steps:
        match step:
            case DeviceReported(device=device):
                watch.take_device(step)
                newest[device] = step
            case dict():
                record = record.model_copy(update=step)
            case (name, is_candidate):
                watch.alerted(name, is_candidate=is_candidate)
                alerts.append((name, is_candidate))
        exposed, control = cohorts(newest, record)
        assert watch.cohorts(record) == (exposed, control)
        assert watch.mass_alerts(limits, *watch.cohorts(record)) == mass_alerts(alerts, limits, exposed, control)


def test_the_definition_tells_a_flood_from_a_quiet_fleet() -> None:
    """What the property compares with is not empty throughout."""
    watch, limits = RolloutWatch(), RolloutSettings()
    for name in NAMES:
        watch.take_device(DeviceReported(name, True, 1, 0, "none"))
    exposed, control = watch.cohorts(BEGUN)
    assert len(exposed) >= 2
    assert exposed | control == set(NAMES)
    alerts = [(name, True) for name in exposed for _ in range(limits.mass_alerts)]
    for name, is_candidate in alerts:
        watch.alerted(name, is_candidate=is_candidate)
    said = mass_alerts(alerts, limits, set(exposed), set(control))
    assert said.startswith(f"{len(exposed)} of {len(exposed)} exposed devices")
    assert watch.mass_alerts(limits, exposed, control) == said
