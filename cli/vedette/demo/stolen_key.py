"""The scenario ``stolen-release-key``: a thief signs a release, devices run it; it is seen, and undone for good.

Somebody was on the aggregator's machine and has all that lies there. He holds the service up, signs a blunt model as
the next release, and publishes it under the aggregator's name: the devices take it, for its signatures hold. Then he is
thrown out. The aggregator sees that devices run what it never signed; people replace the online keys with the
offline ones and revoke the release by its digest; devices go back to their last good one, and refuse whatever the thief
signs from then on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

from vedette.demo import plan, recordings
from vedette.demo.fleet import Fleet, free_port
from vedette.demo.release_theft import ReleaseThief
from vedette.demo.stage import FLAG, ScenarioOptions
from vedette.observer import Observer
from vedette.site import Site, create
from vedette_aggregator.registry import Registry
from vedette_core.runtime.durable import make_directory
from vedette_schemas.errors import TransientError

NAME: Final = "stolen-release-key"
TASK: Final = "network"
ROUNDS: Final = 2
ATTEMPTS_AFTER: Final = 3
"""Releases that the thief signs after his keys were replaced."""
THEFT_S: Final = 60.0
"""Longest that devices are given to run the stolen release, while the aggregator cannot say a word."""
WATCHED_S: Final = 6.0
"""How long each of them is left for devices to fall for."""
NEVER: Final = 1_000_000
"""A release that the recordings wait for in vain: the devices stay, with their models, until they are stopped."""
POLL_S: Final = 0.1
REFUSED: Final = re.compile(r"too few valid signatures|found an older version than before|not the one its siblings")
SEEN: Final = re.compile(
    r"(\S+) runs release (\d+) of network \(sha256 ([0-9a-f]{64})\) that this repository never signed"
)


async def run_stolen_key(options: ScenarioOptions) -> dict[str, Any]:
    """Run the scenario; returns its figures.

    Raises:
        ConfigError: recordings that cannot be used.
        TransientError: a process ended early, or the time was up.
    """
    started = time.monotonic()
    replayed = recordings.load(options.data)
    async with AsyncExitStack() as stack:
        base = options.keep
        if base is None:
            base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vedette-demo-")))
        port = free_port()
        site = _make_site(base / "site", replayed, port)
        offline = base / "offline"
        make_directory(offline)
        (site.directory / "trust" / "root-keys").rename(offline / "root-keys")  # as an operator does after `init`
        fleet = stack.enter_context(Fleet(base / "logs"))
        fleet.start("broker", "broker", "run", "-c", str(site.broker_config))
        fleet.wait_for_port(port)
        observer = await stack.enter_async_context(Observer(site.analytics_bundle, "127.0.0.1", port))
        flags = (FLAG,) if options.plain else ()
        fleet.start("aggregator", "aggregator", "run", "-c", str(site.aggregator_config), *flags)
        for device, config in site.device_configs.items():
            fleet.start(device, "device", "run", "-c", str(config), *flags)
        play = _Play(site, fleet, observer, port, base, options)
        figures = await play.run(offline / "root-keys")
    return {
        "scenario": NAME,
        "protection": "none" if options.plain else "masked",
        **figures,
        "seconds": round(time.monotonic() - started, 1),
    }


class _Play:
    """The acts, one after the other."""

    def __init__(
        self, site: Site, fleet: Fleet, observer: Observer, port: int, base: Path, options: ScenarioOptions
    ) -> None:
        self._site, self._fleet, self._observer, self._port = site, fleet, observer, port
        self._base, self._say = base, options.on_line
        self._limit = time.monotonic() + options.timeout_s
        self._devices = tuple(site.device_configs)
        self._registry = Registry(site.directory / "trust")

    async def run(self, offline_keys: Path) -> dict[str, Any]:
        await self._until("releases of rounds", lambda: self._running(ROUNDS) == set(self._devices))
        good = self._digests()
        self._say(f"{len(self._devices)} devices run release {ROUNDS}, made in {ROUNDS} rounds")

        bundle = self._site.directory / "ca" / "bundles" / "aggregator"
        thief = ReleaseThief(self._site.directory / "trust", self._base / "loot", bundle, self._port)
        version, stolen, publication = await asyncio.to_thread(thief.forge, TASK)
        self._fleet.signal("aggregator", signal.SIGSTOP)
        published = time.monotonic()
        try:
            await thief.publish(publication)
            with contextlib.suppress(TransientError):
                await self._until("stolen release", lambda: self._victims(stolen) == set(self._devices), THEFT_S)
            victims = self._victims(stolen)
        finally:
            self._fleet.signal("aggregator", signal.SIGCONT)
        self._say(
            f"{len(victims)} devices run release {version} of the thief {time.monotonic() - published:.1f} s later"
        )

        await self._until("detection", lambda: bool(SEEN.search(self._log("aggregator"))))
        detected = time.monotonic()
        digests = {digest for _, _, digest in SEEN.findall(self._log("aggregator"))}
        self._say(
            f"the aggregator sees {detected - published:.1f} s after the theft that it never signed what they run"
        )

        rotate = [x for role in ("timestamp", "snapshot", "release", "beacon") for x in ("--rotate", role)]
        await self._vedette("trust", "renew", "--offline-keys", str(offline_keys), *rotate)
        by_digest = [x for digest in sorted(digests) for x in ("--sha256", digest)]
        reason = ("--reason", "signed with a stolen release key")
        await self._vedette("model", "revoke", TASK, str(version), *by_digest, *reason)
        await self._until("recovery", lambda: self._digests() == good)
        recovered = time.monotonic()
        self._say(f"{recovered - detected:.1f} s later all devices are back; the online keys are new")

        after = await self._attempts_after(thief, good)
        return {
            "devices_total": len(self._devices),
            "devices_ran_stolen": len(victims),
            "stolen_release": version,
            "seconds_to_detection": round(detected - published, 1),
            "seconds_to_recovery": round(recovered - detected, 1),
            "devices_recovered": sum(self._digests()[d] == good[d] for d in self._devices),
            "releases_after": sorted({v for v in range(version + 1) if self._running(v)}),
            "root_version": self._registry.roles()[0].version,
            "revoked": [r.version for r in self._registry.revoked(TASK)],
            **after,
        }

    async def _attempts_after(self, thief: ReleaseThief, good: Mapping[str, str]) -> dict[str, Any]:
        """What the keys are worth now: more releases, each under the aggregator's name, one after the other."""
        before = {device: len(REFUSED.findall(self._log(device))) for device in self._devices}
        fell_for: set[str] = set()
        for _ in range(ATTEMPTS_AFTER):
            _, stolen, publication = await asyncio.to_thread(thief.forge, TASK)
            await thief.publish(publication)
            until = time.monotonic() + WATCHED_S
            while time.monotonic() < until:
                self._fleet.check()
                fell_for |= self._victims(stolen)
                await asyncio.sleep(POLL_S)
        refused = [d for d in self._devices if len(REFUSED.findall(self._log(d))) > before[d]]
        self._say(f"{ATTEMPTS_AFTER} more releases of the thief: {len(fell_for)} devices took one")
        return {
            "thief_attempts_after": ATTEMPTS_AFTER,
            "devices_that_took_one": len(fell_for),
            "devices_that_refused": len(refused),
            "devices_on_good_release": sum(digest == good[d] for d, digest in self._digests().items()),
        }

    def _digests(self) -> dict[str, str]:
        """Digest of the model that each device runs; those without one are left out."""
        return {
            device: model.digest
            for device, state in self._observer.states.items()
            for model in state.models
            if model.task == TASK
        }

    def _running(self, version: int) -> set[str]:
        states = self._observer.states.items()
        return {d for d, state in states if any((m.task, m.version) == (TASK, version) for m in state.models)}

    def _victims(self, stolen: frozenset[str]) -> set[str]:
        return {device for device, digest in self._digests().items() if digest in stolen}

    def _log(self, name: str) -> str:
        return (self._fleet.logs / f"{name}.log").read_text(errors="replace")

    async def _until(self, what: str, condition: Callable[[], bool], seconds: float = float("inf")) -> None:
        limit = min(self._limit, time.monotonic() + seconds)
        while not condition():
            self._fleet.check()
            if time.monotonic() > limit:
                raise TransientError(f"{what}: not in time; see the logs in {self._fleet.logs}")
            await asyncio.sleep(POLL_S)

    async def _vedette(self, *arguments: str) -> None:
        command = (sys.executable, "-m", "vedette.main", *arguments, "-c", str(self._site.aggregator_config))
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        _, error = await process.communicate()
        if process.returncode:
            raise TransientError(f"vedette {' '.join(arguments)}: {error.decode(errors='replace').strip()}")


def broken_stolen_key(figures: Mapping[str, Any]) -> list[str]:
    """What was promised and did not happen; empty if all is well."""
    broken, total = [], figures["devices_total"]
    if not figures["devices_ran_stolen"]:
        broken.append("no device ran the stolen release: nothing was shown")
    if figures["devices_recovered"] < total:
        broken.append(f"{figures['devices_recovered']} of {total} devices recovered")
    if figures["devices_that_took_one"]:
        broken.append(f"{figures['devices_that_took_one']} devices took a release of the thief after the keys were new")
    if not figures["devices_that_refused"]:
        broken.append("no device refused anything afterwards: the thief was not heard")
    if figures["devices_on_good_release"] < total:
        broken.append(f"{figures['devices_on_good_release']} of {total} devices run the good release in the end")
    if figures["stolen_release"] not in figures["revoked"]:
        broken.append("the stolen release is not revoked")
    return broken


def _make_site(directory: Path, replayed: recordings.Recordings, port: int) -> Site:
    devices = [gateway.id for gateway in replayed.gateways]
    network, *_ = plan.tasks(replayed.gateways[0].sensor.columns, len(devices))
    task = json.loads(json.dumps(network))
    task["round"]["rounds_max"] = ROUNDS
    task["training"]["local_epochs"] = 5
    tables = {}
    for gateway in replayed.gateways:
        table = plan.device_tables(gateway, plan.Pace(0))
        del table["sensor"]
        table["network"]["replay"]["wait_for_release"] = NEVER
        tables[gateway.id] = table
    return create(directory, plan.SITE, devices, port=port, tasks=[task], device_tables=tables)
