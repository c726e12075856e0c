"""The scenario ``revoked-device``: a device takes part, and its certificates are revoked while it is connected.

First the broker is not told, as if it were slow or hostile: the device stays connected, and aggregator and devices
refuse it all the same. Then the broker has the list, too: it ends the connection and does not let the device in again.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from vedette.demo.diary import Diary
from vedette.demo.poisoned_figures import round_at
from vedette.demo.recordings import load
from vedette.demo.stage import ScenarioOptions, Stage, StagePlan, names, staged
from vedette.site import Site
from vedette_broker import ca_revocation
from vedette_core.crypto.revocation import RevocationReason
from vedette_core.runtime.durable import write_durable
from vedette_core.runtime.identity import Bundle, client_context
from vedette_core.runtime.mqtt import AuthenticationError, LinkConfig, MqttLink, MqttMessage, UnreachableError

NAME: Final = "revoked-device"
DEVICES: Final = 10
REVOKED: Final = "light-03"
ROUNDS_BEFORE: Final = 2
ROUNDS_AFTER: Final = 3
RECONNECT_S: Final = 5.0
"""How long the revoked device tries to come back; a broker that refuses it says so at once."""
_REFUSED: Final = re.compile(rf"/device/{REVOKED}/up/fl/[a-z0-9-]+/([a-z]+): .*found it revoked")


def stage_plan(options: ScenarioOptions) -> StagePlan:
    """One group of all devices, drawn anew for every round."""
    return StagePlan(
        devices=names(DEVICES),
        task={
            "training": {"local_epochs": 2, "batch_size": 32, "learning_rate": 0.003, "examples_min": 32},
            "round": {
                "checkin_s": 1.0,
                "collect_s": 10.0,
                "unmask_s": 8.0,
                "interval_s": 0.5,
                "quorum": 5,
                "group_size": 10,
                "groups": 1,
                "survivors_min": 5,
                "epoch_rounds": 1,
                "clip_norm": 3.0,
            },
        },
        rows={"data": options.data},
        arrange=set_broker_apart,
    )


def set_broker_apart(site: Site) -> None:
    """Give the broker a bundle of its own, as on a machine of its own: the authority writes no list into it."""
    bundle = site.directory / "ca" / "bundles" / "broker"
    apart = broker_bundle(site)
    shutil.copytree(bundle, apart)
    text = site.broker_config.read_text(encoding="utf-8")
    site.broker_config.write_text(text.replace(f'"{bundle}"', f'"{apart}"'), encoding="utf-8")


def broker_bundle(site: Site) -> Path:
    """Where the broker's own bundle is."""
    return site.directory / "broker-bundle"


async def run_revoked(options: ScenarioOptions) -> dict[str, Any]:
    """Run the scenario; returns its figures.

    Raises:
        ConfigError: recordings that cannot be used.
        TransientError: a process ended early, or the time was up.
    """
    started = time.monotonic()
    load(options.data)  # what is wrong with it shows before anything starts
    async with staged(options, lambda _: stage_plan(options)) as stage:

        def tell(number: int) -> None:
            facts = stage.releases[number]
            options.on_line(f"round {number}: {facts.participants} updates in release {facts.version}")

        stage.on_released = tell
        await stage.until("rounds", lambda: stage.completed >= ROUNDS_BEFORE)
        await stage.until("device", lambda: stage.diary.last_round_of(REVOKED) > 0)
        authority = stage.site.directory / "ca"
        before = ca_revocation.newest_list(authority).number
        made = ca_revocation.revoke(authority, REVOKED, RevocationReason.KEY_COMPROMISE, now=time.time())
        revoked_at = time.monotonic()
        options.on_line(f"{REVOKED}: revoked, list {made.number}")
        await stage.until("list", lambda: f"revoked: {REVOKED}" in stage.aggregator_log)
        seconds = time.monotonic() - revoked_at
        # The round that is under way may have its rosters already.
        last = round_at(stage.aggregator_log, "revoked: ") or stage.ended
        ended = stage.ended
        options.on_line(f"the aggregator knows after {seconds:.1f} s, in round {last}")
        await stage.until("rounds after", lambda: stage.ended >= ended + 1 + ROUNDS_AFTER)
        await stage.until("refusal", lambda: bool(refusals(stage.aggregator_log)))
        refused = refusals(stage.aggregator_log)
        options.on_line(
            f"{REVOKED} is connected, and refused: {', '.join(f'{n} {what}' for what, n in refused.items())}"
        )
        write_durable(Bundle(broker_bundle(stage.site)).crl, made.pem, 0o644)
        broker_log = stage.fleet.logs / "broker.log"
        await stage.until("broker", lambda: f"session refused: {REVOKED}:" in broker_log.read_text(errors="replace"))
        options.on_line(f"the broker has the list and ends the connection of {REVOKED}")
        came_back = await _comes_back(stage)
        options.on_line(f"{REVOKED} tries to connect again: {'let in' if came_back else 'refused'}")
        told = (stage.fleet.logs / "swarm.log").read_text(errors="replace")
        figures = revoked_figures(stage.diary, last, [n for n in stage.releases if n > last])
        completed, lists = stage.completed, dict(stage.diary.lists)
    return {
        "scenario": NAME,
        "devices": DEVICES,
        "protection": "none" if options.plain else "masked",
        "revoked": REVOKED,
        "list_before": before,
        "list_after": made.number,
        "seconds_to_effect": round(seconds, 1),
        "rounds_completed": completed,
        **figures,
        "refused": refused,
        "told_why": f"{REVOKED}: the aggregator rejected" in told and "revoked: certificate" in told,
        "nodes_with_the_list": sum(number >= made.number for number in lists.values()),
        "reconnect_refused": not came_back,
        "seconds": round(time.monotonic() - started, 1),
    }


def refusals(log: str) -> dict[str, int]:
    """How often the aggregator refused what the revoked device said, by what it was."""
    found: dict[str, int] = {}
    for step in _REFUSED.findall(log):
        found[step] = found.get(step, 0) + 1
    return found


def revoked_figures(diary: Diary, last: int, released: Sequence[int]) -> dict[str, Any]:
    """Who took part, before and after.

    Args:
        diary: what the nodes said.
        last: the last round that may have had its rosters when the list came.
        released: rounds after that one that were released.
    """
    took_part = sorted({place[0] for place in diary.joined if REVOKED in diary.rostered(place)})
    after = sorted({place[0] for place in diary.joined if place[0] > last})
    return {
        "rounds_with_it_before": len([number for number in took_part if number <= last]),
        "in_a_roster_afterwards": [number for number in took_part if number > last],
        "rounds_released_afterwards": len(released),
        "others_in_rosters_afterwards": min(
            (len(set().union(*(diary.rostered(p) for p in diary.joined if p[0] == number))) for number in after),
            default=0,
        ),
    }


def broken_revoked(figures: Mapping[str, Any]) -> list[str]:
    """What was promised and did not happen; empty if all is well."""
    broken = []
    who = figures["revoked"]
    if not figures["rounds_with_it_before"]:
        broken.append(f"{who} was in no round before it was revoked")
    if figures["list_after"] != figures["list_before"] + 1:
        broken.append(f"lists {figures['list_before']} and {figures['list_after']}, expected the next number")
    if figures["in_a_roster_afterwards"]:
        broken.append(f"{who} was in rosters of rounds {figures['in_a_roster_afterwards']} after it was revoked")
    if not figures["refused"]:
        broken.append(f"nothing that {who} said was refused")
    if not figures["told_why"]:
        broken.append(f"{who} was not told why")
    if not figures["reconnect_refused"]:
        broken.append(f"the broker let {who} in again")
    if figures["rounds_released_afterwards"] < ROUNDS_AFTER:
        broken.append(f"{figures['rounds_released_afterwards']} of {ROUNDS_AFTER} rounds were released afterwards")
    if figures["nodes_with_the_list"] < figures["devices"] - 1:
        broken.append(f"{figures['nodes_with_the_list']} nodes have the list, expected {figures['devices'] - 1}")
    return broken


async def _comes_back(stage: Stage) -> bool:
    """Whether the broker lets the revoked device in with its bundle."""

    async def nothing(_: MqttMessage) -> None:
        return

    port = stage.port
    context = client_context(Bundle(stage.site.directory / "ca" / "bundles" / REVOKED))
    async with MqttLink(LinkConfig("127.0.0.1", port, REVOKED, context), nothing) as link:
        try:
            await link.wait_connected(RECONNECT_S)
        except (AuthenticationError, UnreachableError):
            return False
    return True
