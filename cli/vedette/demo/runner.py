"""Runs the demo: makes a site, starts its processes, watches them over MQTT, judges what they found."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vedette.demo import plan, recordings
from vedette.demo.fleet import Fleet, free_port
from vedette.demo.judge import Verdict, judge
from vedette.demo.recordings import Recordings, Source
from vedette.demo.stage import FLAG
from vedette.demo.summary import summarise
from vedette.observer import Observer
from vedette.site import Site, create
from vedette_aggregator.registry import Registry
from vedette_schemas.alert import Alert
from vedette_schemas.errors import ConfigError, RefusedError, TransientError
from vedette_schemas.model import Variant

POLL_S: Final = 0.25
DRAIN_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the user asked for.

    Attributes:
        data: folder of recordings.
        pace: how fast they are replayed.
        keep: folder to keep certificates, settings, state and logs in; None uses a temporary one.
        timeout_s: after this the demo gives up.
        plain: whether rounds run without masking.
    """

    data: Path
    pace: plan.Pace
    keep: Path | None
    timeout_s: float
    plain: bool = False


Watcher = Callable[[Observer], None]


async def run(
    options: DemoOptions, *, on_alert: Callable[[Alert], None] | None = None, on_look: Watcher | None = None
) -> tuple[dict[str, Any], Verdict]:
    """Run the demo once.

    Args:
        options: what to replay, and how.
        on_alert: called for every alert.
        on_look: called a few times a second, for a live table.

    Returns:
        The figures, and the verdict that they are made of.

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
        staged = plan.is_staged(replayed, options.pace)
        site = _make_site(base / "site", replayed, options.pace, port, staged=staged)
        fleet = stack.enter_context(Fleet(base / "logs"))
        fleet.start("broker", "broker", "run", "-c", str(site.broker_config))
        fleet.wait_for_port(port)
        observer = await stack.enter_async_context(Observer(site.analytics_bundle, "127.0.0.1", port, on_alert))
        flags = (FLAG,) if options.plain else ()
        fleet.start("aggregator", "aggregator", "run", "-c", str(site.aggregator_config), *flags)
        for device, config in site.device_configs.items():
            fleet.start(device, "device", "run", "-c", str(config), *flags, ends=True)
        signed = SignedReleases(site)
        while not fleet.finished():
            fleet.check()
            await asyncio.to_thread(signed.note)
            if time.monotonic() - started > options.timeout_s:
                raise TransientError(
                    f"demo: not finished after {options.timeout_s:.0f} s; see the logs in {fleet.logs}"
                )
            if on_look is not None:
                on_look(observer)
            await asyncio.sleep(POLL_S)
        await asyncio.sleep(DRAIN_S)
        verdict = judge(replayed, observer.sightings(), armed_from(observer))
        figures = summarise(
            observer,
            verdict,
            devices=len(replayed.gateways),
            staged=staged,
            tasks=("network", "sensor"),
            seconds=time.monotonic() - started,
            verified=signed.cover(observer),
            protection="none" if options.plain else "masked",
        )
    return figures, verdict


def armed_from(observer: Observer) -> dict[tuple[str, Source], float]:
    """(gateway, source) → recording time of the first scored window, as the devices report it."""
    armed: dict[tuple[str, Source], float] = {}
    for device, report in observer.reports.items():
        for detector in report.detectors:
            if detector.first_scored_s:
                armed[(device, "sensor" if detector.task == "sensor" else "network")] = detector.first_scored_s
    return armed


class SignedReleases:
    """What the release repository lists, and what it listed before: it keeps the newest releases only.

    Args:
        site: whose.
    """

    def __init__(self, site: Site) -> None:
        self._registry = Registry(site.directory / "trust")
        self._signed: dict[tuple[str, int], set[str]] = {}

    def note(self) -> None:
        """Look at what is listed now."""
        for task in self._registry.tasks:
            for version in self._registry.versions(task):
                if (task, version) not in self._signed:
                    # One that goes between two looks at the folder was seen before, or ran nowhere.
                    with contextlib.suppress(ConfigError):
                        self._signed[(task, version)] = set(self._digests(task, version))

    def cover(self, observer: Observer) -> bool:
        """Whether the bytes that every device activated are those of a signed target of that task and version."""
        self.note()
        return bool(observer.activated) and all(
            digest in self._signed.get((task, version), ())
            for (_device, task, version), digest in observer.activated.items()
        )

    def _digests(self, task: str, version: int) -> Iterator[str]:
        for variant in Variant:
            with contextlib.suppress(RefusedError):
                yield hashlib.sha256(self._registry.target(task, version, variant)[1]).hexdigest()


def _make_site(directory: Path, replayed: Recordings, pace: plan.Pace, port: int, *, staged: bool) -> Site:
    devices = [gateway.id for gateway in replayed.gateways]
    return create(
        directory,
        plan.SITE,
        devices,
        port=port,
        tasks=plan.tasks(replayed.gateways[0].sensor.columns, len(devices), staged=staged),
        device_tables={gateway.id: plan.device_tables(gateway, pace) for gateway in replayed.gateways},
    )
