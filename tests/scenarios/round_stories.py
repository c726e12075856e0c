"""What the scenarios are told with: fleets, the paragraphs of a transcript about a node, and crashes at a write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fleet_simulator.disk import Verdict
from fleet_simulator.problem import settings
from fleet_simulator.process import Process
from fleet_simulator.simulation import Fleet

from vedette_schemas.round import Phase

AGAIN = "          (and again)"
NEVER_S = 1e6


def fleet(devices: int = 6, helpers: int = 0, *, seed: int = 1, liars: Any = None, **changes: Any) -> Fleet:
    """A fleet of which five devices make a quorum."""
    return Fleet(seed, devices, settings(devices, **changes), helpers, liars or {})


def about(story: Fleet, *names: str) -> list[str]:
    """The transcript's paragraphs about these nodes."""
    paragraphs: list[list[str]] = []
    for line in story.transcript.lines:
        if "→" not in line:
            paragraphs.append([])
        paragraphs[-1].append(line)
    kept: list[list[str]] = []
    for paragraph in paragraphs:
        if paragraph[0][10:].startswith(tuple(names)):
            if not (kept and _untimed(kept[-1]) == _untimed(paragraph)):
                kept.append(paragraph)
            elif kept[-1][-1] != AGAIN:
                kept[-1].append(AGAIN)
    return [line for paragraph in kept for line in paragraph]


def _untimed(paragraph: Sequence[str]) -> list[str]:
    return [line[10:] for line in paragraph if line != AGAIN]


def ended(story: Fleet) -> list[tuple[int, Phase]]:
    """Rounds that have ended, and how."""
    return story.observer.ended


def vanish(story: Fleet, at_s: float, *names: str, for_s: float = NEVER_S) -> None:
    """These nodes go away at a time, and come back later, or never."""
    for name in names:
        node = story.observer.processes[name]
        node.restart_s = for_s
        story.scheduler.after(at_s, node.crash)


def at_key(key: str, moment: Verdict, which: int = 1) -> Callable[[int, str], Verdict]:
    """A power switch that goes once, at the n-th write of a key that begins so."""
    found = [0]

    def switch(_number: int, written: str) -> Verdict:
        found[0] += written.startswith(key)
        return moment if written.startswith(key) and found[0] == which else None

    return switch


def at_write(number: int, moment: Verdict) -> Callable[[int, str], Verdict]:
    """A power switch that goes at the n-th write."""
    return lambda found, _key: moment if found == number else None


def process(story: Fleet, name: str) -> Process:
    """A node."""
    return story.observer.processes[name]
