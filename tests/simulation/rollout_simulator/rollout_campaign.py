"""Many rollouts, each site from its own seed; a failing one is printed with the command that repeats it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from seed_campaign import Campaign, options_of

from vedette_aggregator.rollout_events import Verb

from .rollout_site import Site
from .world import QUIET

COMMAND: Final = "python -m tests.simulation.rollouts --seed"
FAULTS_S: Final = 2_500.0
"""How long everything may go wrong."""
QUIET_S_MAX: Final = 30_000.0
"""Afterwards, every rollout must end within this: a person is waited for 600 s a pause, an hour limits exposures, and
what waits for its turn comes after that."""
RETRY_S: Final = 4_000.0
"""Then, a device whose download failed may take an hour for its next try."""
SLICE_S: Final = 250.0
ROUNDS_MAX: Final = 4


@dataclass(frozen=True)
class Run:
    """What came of a run.

    Attributes:
        seed: it repeats the run.
        devices: of the fleet.
        ends: rollouts by how they ended.
        exposures: activations of candidates.
        returns: returns of devices from a confirmed release.
        crashes: of processes.
        liars: devices whose reports were made up.
        asked: what a person asked for.
        steps: of the simulation.
    """

    seed: int
    devices: int
    ends: Counter[str]
    exposures: int
    returns: int
    crashes: int
    liars: int
    asked: int
    steps: int


def run(seed: int, site: Site | None = None) -> Run:
    """Run a site through its faults, and on until everything has ended.

    Raises:
        ViolationError, AssertionError: something did not hold.
    """
    site = site or Site(seed)
    world, random = site.world, site.random
    site.start()
    for _ in range(random.randint(1, ROUNDS_MAX)):
        world.later(random.uniform(5.0, FAULTS_S), site.round_ends)
    if random.random() < 0.6:
        world.later(10.0, site.attend)
    if world.faults.person:
        for _ in range(random.randint(1, 8)):
            verb = random.choice(list(Verb))
            world.later(random.uniform(20.0, FAULTS_S), lambda verb=verb: site.ask(verb))  # type: ignore[misc]
    world.run(world.now + FAULTS_S)
    liars = sum(gateway.lies for gateway in site.gateways.values())
    world.faults = QUIET
    for gateway in site.gateways.values():
        gateway.lies = False
        if not gateway.is_online:
            world.later(1.0, gateway.connect)
    limit = world.now + QUIET_S_MAX
    while site.machine.record.is_live and world.now < limit:
        world.run(world.now + SLICE_S)
    world.is_busy = False
    world.run(world.now + RETRY_S)
    site.observer.check_end()
    site.observer.check_floods(liars <= 1)
    return Run(
        seed,
        len(site.gateways),
        Counter(past.phase.value for past in site.machine.record.history),
        site.observer.exposures.total(),
        site.observer.returns,
        site.crashes + sum(gateway.crashes for gateway in site.gateways.values()),
        liars,
        len(site.asked),
        world.steps,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: run seeds, report, and return 1 if one failed."""
    options = options_of(COMMAND, "Simulate rollouts and check them.", 100).parse_args(arguments)
    seeds = range(options.first, options.first + options.seeds)
    if options.seed is not None:
        seeds = range(options.seed, options.seed + 1)
    campaign, totals, ends = Campaign(run, COMMAND), Counter[str](), Counter[str]()
    for done in campaign.sound(seeds, options.jobs):
        ends.update(done.ends)
        for name in ("devices", "exposures", "returns", "crashes", "liars", "asked", "steps"):
            totals[name] += getattr(done, name)
    print("rollouts: " + ", ".join(f"{count} {name}" for name, count in ends.most_common()))
    print("totals: " + ", ".join(f"{count} {name}" for name, count in totals.items()))
    return campaign.end()
