"""A scenario's stage: a site with real broker and aggregator processes, and a swarm of light nodes."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from vedette import toml_writer
from vedette.demo import plan
from vedette.demo.diary import Diary, DiaryReader
from vedette.demo.fleet import Fleet, free_port
from vedette.observer import Observer
from vedette.site import Site, create
from vedette_aggregator.registry import Registry
from vedette_core.learning.weights_file import WeightsFile, read_weights
from vedette_core.runtime.jobs import Jobs
from vedette_schemas.errors import ConfigError, RefusedError, TransientError, VedetteError
from vedette_schemas.model import Variant
from vedette_schemas.round import Plan, read_plan

TASK: Final = "network"
POLL_S: Final = 0.1
WATCH_S: Final = 0.5
"""Between two looks at the releases beside a scenario; the repository keeps three of them."""
DRAIN_S: Final = 2.0
"""How long stragglers are given to verify the last release."""
TAMPERED_CONFIG: Final = "swarm-tampered.toml"
FLAG: Final = "--insecure-plain-updates"
Line = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ScenarioOptions:
    """What the user asked for.

    Attributes:
        data: folder of recordings.
        keep: folder to keep everything in; None uses a temporary one.
        timeout_s: after this the scenario gives up.
        plain: whether rounds run without masking.
        on_line: takes a line of progress.
    """

    data: Path
    keep: Path | None
    timeout_s: float
    plain: bool = False
    on_line: Line = lambda _: None


@dataclass(frozen=True, slots=True)
class StagePlan:
    """Who is on a stage, and what they are told.

    Attributes:
        devices: ids of the light nodes.
        task: further tables of the aggregator's task.
        rows: the swarm's ``[rows]``.
        vanish: the swarm's ``[vanish]``.
        attacks: name of the attack of each node that lies.
        helpers: ids of committee helpers.
        aggregator: further tables of the aggregator's settings.
        arrange: changes the site before anything of it starts.
        attested: whether everybody must show the software that is installed here.
        tampered: nodes that run altered software, in a process of their own.
        packages: folder with that software.
    """

    devices: tuple[str, ...]
    task: Mapping[str, Any]
    rows: Mapping[str, Any] = field(default_factory=dict)
    vanish: Mapping[str, Any] = field(default_factory=dict)
    attacks: Mapping[str, str] = field(default_factory=dict)
    helpers: tuple[str, ...] = ()
    aggregator: Mapping[str, Any] = field(default_factory=dict)
    arrange: Callable[[Site], None] | None = None
    attested: bool = False
    tampered: tuple[str, ...] = ()
    packages: Path | None = None


@dataclass(frozen=True, slots=True)
class ReleaseFacts:
    """What a release says of the round that made it.

    Attributes:
        version: of the release.
        participants: updates in it.
        groups: groups whose sums were opened and sound.
        dropped: groups that do not count in it.
    """

    version: int
    participants: int
    groups: int
    dropped: int


class Stage:
    """A running stage.

    Args:
        site: its site.
        fleet: its processes.
        observer: watches its rounds.
        diary: reads what the swarm says.
        timeout_s: after this it gives up.
        port: TCP port of its broker.

    Attributes:
        releases: what each round's release says, by round.
        models: weights of each release, by version.
        plans: plan that went out with each release.
    """

    def __init__(
        self, site: Site, fleet: Fleet, observer: Observer, diary: DiaryReader, timeout_s: float, port: int
    ) -> None:
        self.site, self.fleet, self.observer, self.port = site, fleet, observer, port
        self.releases: dict[int, ReleaseFacts] = {}
        self.models: dict[int, WeightsFile] = {}
        self.plans: dict[int, Plan] = {}
        self.on_released: Callable[[int], None] | None = None
        self._diary, self._limit = diary, time.monotonic() + timeout_s
        self._registry = Registry(site.directory / "trust")

    @property
    def diary(self) -> Diary:
        """What the swarm said so far."""
        return self._diary.read()

    @property
    def aggregator_log(self) -> str:
        """What the aggregator logged so far."""
        return (self.fleet.logs / "aggregator.log").read_text(errors="replace")

    @property
    def completed(self) -> int:
        """Rounds that were released."""
        return len(self.observer.completed)

    @property
    def ended(self) -> int:
        """Rounds that were released or given up."""
        return self.completed + len(self.observer.failed)

    async def until(self, what: str, condition: Callable[[], bool]) -> None:
        """Look after everything until a condition holds.

        Raises:
            TransientError: a process ended, or it took too long.
        """
        while True:
            self.fleet.check()
            self._note_releases()
            if condition():
                return
            if time.monotonic() > self._limit:
                raise TransientError(f"{what}: not in time; see the logs in {self.fleet.logs}")
            await asyncio.sleep(POLL_S)

    async def drain(self, version: int, devices: tuple[str, ...]) -> int:
        """Give devices a little time for a release; returns how many have it."""
        limit = time.monotonic() + DRAIN_S

        def there() -> int:
            versions = self.diary.versions
            return sum(versions.get(device, -1) >= version for device in devices)

        while there() < len(devices) and time.monotonic() < limit:
            self.fleet.check()
            await asyncio.sleep(POLL_S)
        return there()

    async def watch_releases(self) -> None:
        """Note every release while it is there, also while the scenario waits for something else; until cancelled."""
        with contextlib.suppress(VedetteError):  # `until` comes upon it, too, and says so
            while True:
                self._note_releases()
                await asyncio.sleep(WATCH_S)

    def _note_releases(self) -> None:
        # The repository keeps the newest ones only.
        for version in self._registry.versions(TASK):
            if version not in self.models:
                # One that goes between two looks at the folder is refused, or its file is missing.
                with contextlib.suppress(RefusedError, ConfigError):
                    self.plans[version] = read_plan(self._registry.target(TASK, version, Variant.PLAN)[1])
                    self.models[version] = read_weights(self._registry.target(TASK, version, Variant.WEIGHTS)[1])
        for _, number in sorted(self.observer.completed):
            if number in self.releases:
                continue
            self.releases[number] = self._facts(number)
            if self.on_released is not None:
                self.on_released(number)

    def _facts(self, number: int) -> ReleaseFacts:
        for version in reversed(self._registry.versions(TASK)):
            with contextlib.suppress(RefusedError, ConfigError):
                target = self._registry.target(TASK, version, Variant.WEIGHTS)[0]
                if target.round == number:
                    said = {name: float(value) for name, value in target.metrics.items()}
                    return ReleaseFacts(
                        version, int(said["participants"]), int(said["groups"]), int(said["groups_dropped"])
                    )
        raise TransientError(f"round {number}: found no release of it in the repository, expected one")


@asynccontextmanager
async def staged(options: ScenarioOptions, prepare: Callable[[Path], StagePlan]) -> AsyncIterator[Stage]:
    """Make a site, start its processes, and stop them in the end.

    Args:
        options: what the user asked for.
        prepare: says who is there, and writes into the scenario's folder what they need.

    Raises:
        ConfigError: recordings or settings that cannot be used.
        TransientError: a process ended early.
    """
    async with AsyncExitStack() as stack:
        base = options.keep
        if base is None:
            base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vedette-demo-")))
        base.mkdir(parents=True, exist_ok=True)
        acts = prepare(base)
        port = free_port()
        site, swarm = make_site(base, port, acts, plain=options.plain)
        if acts.arrange is not None:
            acts.arrange(site)
        flags = (FLAG,) if options.plain else ()
        fleet = stack.enter_context(Fleet(base / "logs"))
        fleet.start("broker", "broker", "run", "-c", str(site.broker_config))
        fleet.wait_for_port(port)
        observer = await stack.enter_async_context(Observer(site.analytics_bundle, "127.0.0.1", port))
        fleet.start("aggregator", "aggregator", "run", "-c", str(site.aggregator_config), *flags)
        for helper, config in site.helper_configs.items():
            fleet.start(helper, "committee", "run", "-c", str(config))
        lines = base / "logs" / "swarm.jsonl"
        start_swarm(fleet, swarm, lines)
        if acts.tampered and acts.packages is not None:
            altered = swarm.with_name(TAMPERED_CONFIG)
            start_swarm(fleet, altered, lines, name="tampered", environment={"PYTHONPATH": str(acts.packages)})
        stage = Stage(site, fleet, observer, DiaryReader(lines), options.timeout_s, port)
        jobs = Jobs()
        stack.push_async_callback(jobs.cancel)
        jobs.start(stage.watch_releases(), "releases")
        yield stage


def start_swarm(
    fleet: Fleet, config: Path, lines: Path, name: str = "swarm", environment: Mapping[str, str] | None = None
) -> None:
    """Start a swarm that writes its lines to a file."""
    command = (sys.executable, "-m", "vedette.demo.swarm", str(config))
    fleet.start_program(name, *command, out=lines, environment=environment)


def make_site(base: Path, port: int, acts: StagePlan, *, plain: bool = False) -> tuple[Site, Path]:
    """A site for light nodes, and the settings file of their swarm."""
    task = {"task": TASK, "use_case": "network", **acts.task}
    site = create(
        base / "site",
        plan.SITE,
        acts.devices,
        port=port,
        tasks=[task],
        helpers=acts.helpers,
        aggregator=acts.aggregator,
        attested=acts.attested,
    )
    bundles = site.directory / "ca" / "bundles"
    nodes = [
        {"device": device, "bundle": bundles / device, "attack": acts.attacks.get(device, "none")}
        for device in acts.devices
    ]
    tables = {
        "site": plan.SITE,
        "state_dir": site.directory / "state",
        "trust_root": site.directory / "root.json",
        "task": TASK,
        "insecure_plain_updates": plain,
        "broker": {"host": "127.0.0.1", "port": port},
        "rows": dict(acts.rows),
        "vanish": dict(acts.vanish),
        "attestation": {"enabled": acts.attested},
    }

    def written(name: str, own: list[dict[str, Any]]) -> Path:
        path = site.directory / "config" / name
        path.write_text(toml_writer.dumps({**tables, "nodes": own}), encoding="utf-8")
        return path

    if acts.tampered:
        written(TAMPERED_CONFIG, [node for node in nodes if node["device"] in acts.tampered])
    return site, written("swarm.toml", [node for node in nodes if node["device"] not in acts.tampered])


def names(count: int) -> tuple[str, ...]:
    """Ids of so many light nodes."""
    return tuple(f"light-{number:02}" for number in range(1, count + 1))
